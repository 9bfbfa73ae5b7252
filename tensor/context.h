#pragma once
// Context: everything a kernel needs besides its operands. Passed, never global.
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "tensor/tensor.h"

namespace eigentrace {

/// How float32 matrix products are computed; all but fp32 exist on the GPU only and only when asked for.
/// tf32x3: operands split in two TF32 parts, three products, float32's accuracy. bf16: operands rounded to
/// bf16, and activations kept in it (activation_type). Sums are float32 always.
enum class Precision : unsigned char { fp32, tf32, tf32x3, bf16 };

const char* name_of(Precision precision);
/// Error (usage): no such precision.
Precision parse_precision(const std::string& name);
/// Error (usage): `device` has no such products.
void check_precision(Precision precision, Device device);

class Context {
 public:
  /// Step memory of `slab_bytes`; 0: on the CPU the machine's memory (only touched pages count).
  explicit Context(Device device = {}, size_t slab_bytes = 0);
  /// A dry run: the same code, but no kernel is launched and no memory is touched. `slab().peak()` then tells
  /// what a step needs before the first one is run; values read back from the device are zero.
  static Context dry_run(Device device);
  ~Context();
  Context(Context&&) noexcept;
  Context(const Context&) = delete;

  Device device() const { return device_; }
  bool dry() const { return dry_; }
  Precision precision = Precision::fp32;
  /// Of the products inside softmax attention; unset: `precision`.
  std::optional<Precision> attention_precision;
  /// The type of what a float32 model's ops hand to each other: bf16 where that is the precision. Parameters,
  /// gradients of them, statistics, decays, states inside a recurrence and losses stay as they are.
  DType activation_type(DType dtype) const {
    return precision == Precision::bf16 && dtype == DType::f32 ? DType::bf16 : dtype;
  }
  /// Fill step memory with NaN when it is handed out, so that a kernel which forgets to write is seen
  /// (tests).
  bool poison = false;

  /// Step memory, not initialised. It must not outlive the step.
  Tensor empty(const Shape& shape, DType dtype);
  Tensor empty_like(const Tensor& like) { return empty(like.shape(), like.dtype()); }
  Slab& slab() { return *slab_; }

  /// i64 [2] on the device: (seed, step), what dropout masks are a function of. See rng.h.
  const Tensor& step_state() const { return step_state_; }
  void set_step(uint64_t seed, uint64_t step);

  /// CUDA stream and matrix products (tensor/cuda_blas.h; opaque here, so that this header needs no CUDA);
  /// null on the CPU.
  void* stream() const { return stream_; }
  void* blas() const { return blas_; }

 private:
  Context(Device device, std::shared_ptr<Slab> slab, bool dry);
  Device device_;
  bool dry_ = false;
  std::shared_ptr<Slab> slab_;
  Tensor step_state_;
  void* stream_ = nullptr;
  void* blas_ = nullptr;
};

}  // namespace eigentrace
