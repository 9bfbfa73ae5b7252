#pragma once
// Tensor: a strided value on a device. It knows no gradient (autograd/var.h does).
#include <memory>
#include <string>
#include <vector>

#include "tensor/device.h"
#include "tensor/dtype.h"
#include "tensor/shape.h"
#include "tensor/slab.h"

namespace eigentrace {

/// Reference-counted bytes: on their own (parameters, optimiser state, inputs) or a piece of the slab (step
/// memory).
class Storage {
 public:
  Storage(Device device, size_t bytes);               ///< on its own, zeroed
  Storage(std::shared_ptr<Slab> slab, size_t bytes);  ///< a piece of the slab, not initialised
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;
  std::byte* data() const { return data_; }
  Device device() const { return device_; }
  size_t bytes() const { return bytes_; }

 private:
  Device device_;
  size_t bytes_;
  std::shared_ptr<Slab> slab_;  // null: on its own
  std::byte* data_;
};

/// A view of a storage: type, shape, strides (in elements), offset. Copies share the storage.
class Tensor {
 public:
  Tensor() = default;  ///< undefined
  /// `offset`: of the first element, in elements.
  Tensor(std::shared_ptr<Storage> storage, DType dtype, const Shape& shape, int64_t offset = 0);
  /// Zeroed memory of its own: parameters, optimiser state, inputs. Step memory comes from Context::empty.
  static Tensor zeros(const Shape& shape, DType dtype, Device device = {});
  /// A copy of host values, on `device`.
  template <class T>
  static Tensor from(const std::vector<T>& values, const Shape& shape, Device device = {});

  bool defined() const { return storage_ != nullptr; }
  const Shape& shape() const { return shape_; }
  const Shape& strides() const { return strides_; }
  int rank() const { return shape_.rank(); }
  int64_t dim(int axis) const { return shape_[axis]; }
  int64_t stride(int axis) const { return strides_[axis]; }
  int64_t numel() const { return shape_.numel(); }
  DType dtype() const { return dtype_; }
  Device device() const { return storage_->device(); }
  size_t bytes() const { return static_cast<size_t>(numel()) * size_of(dtype_); }
  bool contiguous() const;
  /// True iff both are views of one storage.
  bool shares_storage(const Tensor& other) const { return storage_ == other.storage_; }

  /// Address of the first element. Error: T is not the element type.
  template <class T>
  T* data() const {
    check_dtype(dtype_of<T>());
    return reinterpret_cast<T*>(raw());
  }
  std::byte* raw() const { return storage_->data() + offset_ * static_cast<int64_t>(size_of(dtype_)); }

  /// Views. Errors: axes or ranges outside the shape; a reshape that would need a copy.
  Tensor reshape(const Shape& shape) const;  ///< same elements in row-major order, no copy
  Tensor slice(int axis, int64_t start, int64_t length) const;
  Tensor transpose(int a, int b) const;
  Tensor expand(const Shape& shape) const;  ///< broadcast: axes of size 1 get stride 0

  /// Host copy of the elements in row-major order; f32 and f64 are converted into each other as asked.
  template <class T>
  std::vector<T> to_vector() const;
  /// Overwrites the elements (this tensor contiguous) with host values, converting between f32 and f64.
  template <class T>
  void assign(const std::vector<T>& values) const;
  /// Overwrites this tensor's elements with those of `source` (same shape and type, both contiguous, any
  /// devices).
  void copy_from(const Tensor& source) const;
  /// Value of a one-element tensor.
  double item() const;
  /// A contiguous copy with memory of its own, on `device`, as `dtype` (f32 and f64 only differ by rounding).
  Tensor clone(Device device, DType dtype) const;
  Tensor clone() const { return clone(device(), dtype_); }

 private:
  void check_dtype(DType wanted) const;
  std::shared_ptr<Storage> storage_;
  DType dtype_ = DType::f32;
  int64_t offset_ = 0;
  Shape shape_, strides_;
};

/// "f32[64, 512, 128]"
std::string to_string(const Tensor& tensor);

/// A tensor as a matrix: all axes but the last collapsed into rows a fixed stride apart, last axis dense.
template <class T>
struct Rows {
  T* data;
  int64_t rows, cols, stride;
};
/// Error: the leading axes do not collapse or the last axis is strided.
template <class T>
Rows<T> rows_of(const Tensor& tensor, const char* what);
/// True iff rows_of works.
bool collapses_to_rows(const Tensor& tensor);

}  // namespace eigentrace
