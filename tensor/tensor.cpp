#include "tensor/tensor.h"

#include <fmt/format.h>

#include "tensor/error.h"

namespace eigentrace {

Storage::Storage(Device device, size_t bytes)
    : device_(device), bytes_(bytes), data_(static_cast<std::byte*>(device_allocate(device, bytes))) {
  device_zero(device, data_, bytes);
}

Storage::Storage(std::shared_ptr<Slab> slab, size_t bytes)
    : device_(slab->device()),
      bytes_(bytes),
      slab_(std::move(slab)),
      data_(static_cast<std::byte*>(slab_->allocate(bytes))) {}

Storage::~Storage() {
  if (slab_)
    slab_->release(data_);
  else
    device_free(device_, data_);
}

Tensor::Tensor(std::shared_ptr<Storage> storage, DType dtype, const Shape& shape, int64_t offset)
    : storage_(std::move(storage)),
      dtype_(dtype),
      offset_(offset),
      shape_(shape),
      strides_(contiguous_strides(shape)) {}

Tensor Tensor::zeros(const Shape& shape, DType dtype, Device device) {
  for (int64_t size : shape)
    if (size < 0) fail(fmt::format("Tensor::zeros: shape {} has a negative size", to_string(shape)));
  const size_t bytes = static_cast<size_t>(shape.numel()) * size_of(dtype);
  return Tensor(std::make_shared<Storage>(device, bytes), dtype, shape);
}

template <class T>
Tensor Tensor::from(const std::vector<T>& values, const Shape& shape, Device device) {
  Tensor tensor = zeros(shape, dtype_of<T>(), device);
  tensor.assign(values);
  return tensor;
}

bool Tensor::contiguous() const {
  int64_t expected = 1;
  for (int axis = rank() - 1; axis >= 0; --axis) {
    if (shape_[axis] != 1 && strides_[axis] != expected) return false;
    expected *= shape_[axis];
  }
  return true;
}

void Tensor::check_dtype(DType wanted) const {
  if (!defined()) fail("Tensor::data: the tensor is undefined");
  if (dtype_ != wanted)
    fail(fmt::format("Tensor::data: {} elements asked of a tensor of {}", name_of(wanted), name_of(dtype_)));
}

Tensor Tensor::reshape(const Shape& shape) const {
  if (shape.numel() != numel())
    fail(fmt::format("Tensor::reshape: {} cannot become {}", to_string(*this), to_string(shape)));
  Tensor view = *this;
  view.shape_ = shape;
  if (contiguous()) {
    view.strides_ = contiguous_strides(shape);
    return view;
  }
  // Not contiguous: each new axis must lie inside one run of old axes that collapse into each other.
  view.strides_ = shape;
  int old_axis = rank() - 1, new_axis = shape.rank() - 1;
  while (new_axis >= 0 && shape[new_axis] == 1) view.strides_[new_axis--] = 1;
  while (old_axis >= 0) {
    int64_t run = shape_[old_axis], stride = strides_[old_axis], left = 1;
    if (run == 1) {  // its stride means nothing
      --old_axis;
      continue;
    }
    while (old_axis > 0 && (shape_[old_axis - 1] == 1 || strides_[old_axis - 1] == run * stride))
      --old_axis, run *= shape_[old_axis];
    --old_axis;
    while (new_axis >= 0 && left * shape[new_axis] <= run) {
      view.strides_[new_axis] = stride * left;
      left *= shape[new_axis--];
    }
    if (left != run)
      fail(fmt::format("Tensor::reshape: {} with strides {} cannot become {} without a copy",
                       to_string(*this), to_string(strides_), to_string(shape)));
  }
  return view;
}

Tensor Tensor::slice(int axis, int64_t start, int64_t length) const {
  if (axis < 0) axis += rank();
  if (axis < 0 || axis >= rank() || start < 0 || length < 0 || start + length > shape_[axis])
    fail(fmt::format("Tensor::slice: axis {}, {}..{} lies outside {}", axis, start, start + length,
                     to_string(*this)));
  Tensor view = *this;
  view.shape_[axis] = length;
  view.offset_ += start * strides_[axis];
  return view;
}

Tensor Tensor::transpose(int a, int b) const {
  Tensor view = *this;
  std::swap(view.shape_[a], view.shape_[b]);
  std::swap(view.strides_[a], view.strides_[b]);
  return view;
}

Tensor Tensor::expand(const Shape& shape) const {
  if (!(broadcast(shape_, shape) == shape))
    fail(fmt::format("Tensor::expand: {} does not broadcast to {}", to_string(*this), to_string(shape)));
  Tensor view = *this;
  view.shape_ = view.strides_ = shape;
  for (int axis = 0; axis < shape.rank(); ++axis) {
    const int own = axis - (shape.rank() - rank());
    view.strides_[axis] = own < 0 || shape_[own] == 1 ? 0 : strides_[own];
  }
  return view;
}

namespace {

/// Calls visit(k, offset) for the elements in row-major order; offset in elements of the strided view.
template <class F>
void for_each_offset(const Shape& shape, const Shape& strides, F&& visit) {
  const int64_t count = shape.numel();
  Shape index = shape;
  for (int axis = 0; axis < shape.rank(); ++axis) index[axis] = 0;
  int64_t offset = 0;
  for (int64_t k = 0; k < count; ++k) {
    visit(k, offset);
    for (int axis = shape.rank() - 1; axis >= 0; --axis) {
      offset += strides[axis];
      if (++index[axis] < shape[axis]) break;
      offset -= strides[axis] * shape[axis];
      index[axis] = 0;
    }
  }
}

template <class To, class From>
void gather(const Tensor& tensor, const std::byte* base, std::vector<To>& out) {
  const From* data = reinterpret_cast<const From*>(base);
  for_each_offset(tensor.shape(), tensor.strides(), [&](int64_t k, int64_t offset) {
    out[static_cast<size_t>(k)] = static_cast<To>(data[offset]);
  });
}

}  // namespace

template <class T>
std::vector<T> Tensor::to_vector() const {
  if (!defined()) fail("Tensor::to_vector: the tensor is undefined");
  if (is_floating(dtype_) != std::is_floating_point_v<T>)
    fail(fmt::format("Tensor::to_vector: {} elements asked of {}", name_of(dtype_of<T>()), to_string(*this)));
  std::vector<std::byte> staging;
  const std::byte* base = raw();
  if (device().is_cuda()) {  // copy the span this view covers, then gather on the host
    int64_t extent = numel() > 0 ? 1 : 0;
    for (int axis = 0; axis < rank(); ++axis) extent += (shape_[axis] - 1) * strides_[axis];
    staging.resize(static_cast<size_t>(extent > 0 ? extent : 0) * size_of(dtype_));
    device_copy({}, staging.data(), device(), base, staging.size());
    base = staging.data();
  }
  std::vector<T> out(static_cast<size_t>(numel()));
  switch (dtype_) {
    case DType::f32:
      gather<T, float>(*this, base, out);
      break;
    case DType::f64:
      gather<T, double>(*this, base, out);
      break;
    case DType::i32:
      gather<T, int32_t>(*this, base, out);
      break;
    case DType::i64:
      gather<T, int64_t>(*this, base, out);
      break;
    case DType::u8:
      gather<T, uint8_t>(*this, base, out);
      break;
    case DType::bf16:
      gather<T, BFloat16>(*this, base, out);
      break;
  }
  return out;
}

template <class T>
void Tensor::assign(const std::vector<T>& values) const {
  if (!contiguous() || static_cast<int64_t>(values.size()) != numel())
    fail(fmt::format("Tensor::assign: {} values for {} (which must be contiguous)", values.size(),
                     to_string(*this)));
  const void* source = values.data();
  std::vector<float> singles;
  std::vector<double> doubles;
  std::vector<BFloat16> halves;
  if (dtype_ != dtype_of<T>()) {
    if (dtype_ == DType::f32 && std::is_floating_point_v<T>)
      singles.assign(values.begin(), values.end()), source = singles.data();
    else if (dtype_ == DType::f64 && std::is_floating_point_v<T>)
      doubles.assign(values.begin(), values.end()), source = doubles.data();
    else if (dtype_ == DType::bf16 && std::is_floating_point_v<T>)
      singles.assign(values.begin(), values.end()), halves.assign(singles.begin(), singles.end()),
          source = halves.data();
    else
      check_dtype(dtype_of<T>());
  }
  device_copy(device(), raw(), {}, source, bytes());
}

void Tensor::copy_from(const Tensor& source) const {
  if (!(shape_ == source.shape_) || dtype_ != source.dtype_ || !contiguous() || !source.contiguous())
    fail(fmt::format("Tensor::copy_from: {} into {}: equal and contiguous expected", to_string(source),
                     to_string(*this)));
  device_copy(device(), raw(), source.device(), source.raw(), bytes());
}

double Tensor::item() const {
  if (numel() != 1) fail(fmt::format("Tensor::item: one element expected, found {}", to_string(*this)));
  return is_floating(dtype_) ? to_vector<double>()[0] : static_cast<double>(to_vector<int64_t>()[0]);
}

Tensor Tensor::clone(Device device, DType dtype) const {
  Tensor copy = zeros(shape_, dtype, device);
  if (dtype == dtype_ && contiguous())
    copy.copy_from(*this);
  else if (is_floating(dtype_))
    copy.assign(to_vector<double>());
  else if (dtype_ == DType::i32)
    copy.assign(to_vector<int32_t>());
  else if (dtype_ == DType::u8)
    copy.assign(to_vector<uint8_t>());
  else
    copy.assign(to_vector<int64_t>());
  return copy;
}

std::string to_string(const Tensor& tensor) {
  return tensor.defined() ? name_of(tensor.dtype()) + to_string(tensor.shape()) : "undefined";
}

bool collapses_to_rows(const Tensor& tensor) {
  if (tensor.rank() == 0) return true;
  if (tensor.dim(-1) != 1 && tensor.stride(-1) != 1) return false;
  int64_t expected = -1;  // stride that the next axis to the left must have
  for (int axis = tensor.rank() - 2; axis >= 0; --axis) {
    if (tensor.dim(axis) == 1) continue;
    if (expected >= 0 && tensor.stride(axis) != expected) return false;
    expected = tensor.stride(axis) * tensor.dim(axis);
  }
  return true;
}

template <class T>
Rows<T> rows_of(const Tensor& tensor, const char* what) {
  if (!collapses_to_rows(tensor))
    fail(fmt::format("{}: {} with strides {} is not a matrix of dense rows", what, to_string(tensor),
                     to_string(tensor.strides())));
  if (tensor.rank() == 0) return {tensor.data<T>(), 1, 1, 1};
  const int64_t cols = tensor.dim(-1), rows = cols == 0 ? 0 : tensor.numel() / cols;
  int64_t stride = cols;
  for (int axis = tensor.rank() - 2; axis >= 0; --axis)
    if (tensor.dim(axis) != 1) {
      stride = tensor.stride(axis);
      break;
    }
  return {tensor.data<T>(), rows, cols, stride};
}

template Rows<float> rows_of(const Tensor&, const char*);
template Rows<double> rows_of(const Tensor&, const char*);
template Rows<BFloat16> rows_of(const Tensor&, const char*);
template Rows<int32_t> rows_of(const Tensor&, const char*);
template Tensor Tensor::from(const std::vector<float>&, const Shape&, Device);
template Tensor Tensor::from(const std::vector<double>&, const Shape&, Device);
template Tensor Tensor::from(const std::vector<int32_t>&, const Shape&, Device);
template Tensor Tensor::from(const std::vector<int64_t>&, const Shape&, Device);
template Tensor Tensor::from(const std::vector<uint8_t>&, const Shape&, Device);
template std::vector<float> Tensor::to_vector() const;
template std::vector<double> Tensor::to_vector() const;
template std::vector<int32_t> Tensor::to_vector() const;
template std::vector<int64_t> Tensor::to_vector() const;
template std::vector<uint8_t> Tensor::to_vector() const;
template void Tensor::assign(const std::vector<float>&) const;
template void Tensor::assign(const std::vector<double>&) const;
template void Tensor::assign(const std::vector<int32_t>&) const;
template void Tensor::assign(const std::vector<int64_t>&) const;
template void Tensor::assign(const std::vector<uint8_t>&) const;

}  // namespace eigentrace
