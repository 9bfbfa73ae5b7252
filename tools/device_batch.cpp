#include "tools/device_batch.h"

#include <algorithm>
#include <cstring>
#include <functional>

namespace eigentrace {
namespace {

constexpr size_t alignment = 256, most_blocks = 64;

/// One tensor of the batch: where it goes and how its values are written.
struct Part {
  Tensor* tensor;
  Shape shape;
  DType dtype;
  std::function<void(std::byte*)> write;
  size_t bytes() const { return static_cast<size_t>(shape.numel()) * size_of(dtype); }
};

template <class T>
Part part(Tensor& tensor, const std::vector<T>& values, const Shape& shape, DType dtype) {
  return {&tensor, shape, dtype, [&values, dtype](std::byte* to) {
            if (dtype == dtype_of<T>()) {
              std::memcpy(to, values.data(), values.size() * sizeof(T));
            } else {  // float inputs of a model in double
              std::copy(values.begin(), values.end(), reinterpret_cast<double*>(to));
            }
          }};
}

}  // namespace

void DeviceBatch::load(const Batch& batch, bool masked, LossAverage average, Context* ctx) {
  sequences_ = batch.batch, time_ = batch.time;
  Tensor lengths, valid_time;
  const std::vector<int32_t> valid = {static_cast<int32_t>(batch.valid_time)};
  const bool all = average == LossAverage::all_positions && batch.per_position;
  const std::vector<double> count = {
      static_cast<double>(all ? batch.batch * batch.valid_time : batch.label_count)};
  const auto capacity = static_cast<int64_t>(batch.labels.size());
  std::vector<Part> parts;
  if (batch.features > 0) {
    parts.push_back(part(input_.values, batch.values, {batch.batch, batch.time, batch.features}, dtype_));
  } else {
    parts.push_back(part(input_.tokens.ids, batch.tokens, {batch.batch, batch.time}, DType::i32));
    parts.push_back(part(input_.tokens.order, batch.sorted_order, {batch.batch * batch.time}, DType::i32));
  }
  parts.push_back(part(lengths, batch.lengths, {batch.batch}, DType::i32));
  parts.push_back(part(valid_time, valid, {1}, DType::i32));
  parts.push_back(part(labels_.rows, batch.label_rows, {capacity}, DType::i32));
  parts.push_back(part(labels_.labels, batch.labels, {capacity}, DType::i32));
  parts.push_back(part(labels_.weights, batch.label_weights, {capacity}, DType::f32));
  parts.push_back(part(labels_.count, count, {1}, DType::f64));

  std::vector<int64_t> sizes, offsets;
  size_t bytes = 0;
  for (const Part& p : parts) {
    offsets.push_back(static_cast<int64_t>(bytes));
    for (const int64_t size : p.shape) sizes.push_back(size);
    bytes += (p.bytes() + alignment - 1) / alignment * alignment;
  }
  if (blocks_.size() >= most_blocks && !blocks_.count(sizes)) blocks_.clear();
  std::shared_ptr<Storage>& block = blocks_[sizes];
  if (!block) block = std::make_shared<Storage>(device_, bytes);
  const bool overlapped = ctx && device_.is_cuda();
  std::vector<std::byte> waiting(device_.is_cuda() && !overlapped ? bytes : 0);
  if (overlapped && !staging_) staging_ = std::make_unique<Staging>(device_);
  std::byte* host = overlapped ? staging_->buffer(bytes) : device_.is_cuda() ? waiting.data() : block->data();
  for (size_t i = 0; i < parts.size(); ++i) {
    parts[i].write(host + offsets[i]);
    *parts[i].tensor = Tensor(block, parts[i].dtype, parts[i].shape,
                              offsets[i] / static_cast<int64_t>(size_of(parts[i].dtype)));
  }
  if (overlapped)
    staging_->send(*ctx, block->data(), bytes);
  else if (device_.is_cuda())
    device_copy(device_, block->data(), {}, host, bytes);
  input_.lengths = masked ? lengths : Tensor{};
  input_.valid_time = batch.valid_time < batch.time ? valid_time : Tensor{};
}

}  // namespace eigentrace
