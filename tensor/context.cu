#include "tensor/context.h"

#include <unistd.h>

#include <cstring>
#include <utility>
#include <vector>

#include "tensor/cuda_blas.h"
#include "tensor/cuda_check.h"
#include "tensor/error.h"

namespace eigentrace {
namespace {

size_t default_slab_bytes(Device device) {
#ifdef EIGENTRACE_WITH_CUDA
  if (device.is_cuda()) {
    size_t free = 0, total = 0;
    ET_CUDA(cudaSetDevice(device.index));
    ET_CUDA(cudaMemGetInfo(&free, &total));
    return free / 8 * 7;
  }
#endif
  (void)device;
  return static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

}  // namespace

const char* name_of(Precision precision) {
  switch (precision) {
    case Precision::fp32:
      return "fp32";
    case Precision::tf32:
      return "tf32";
    case Precision::tf32x3:
      return "tf32x3";
    case Precision::bf16:
      return "bf16";
  }
  return "?";
}

Precision parse_precision(const std::string& name) {
  for (const Precision p : {Precision::fp32, Precision::tf32, Precision::tf32x3, Precision::bf16})
    if (name == name_of(p)) return p;
  fail_usage("precision: fp32, tf32, tf32x3 or bf16 expected, found '" + name + "'");
}

void check_precision(Precision precision, Device device) {
  if (precision != Precision::fp32 && !device.is_cuda())
    fail_usage(std::string("precision: ") + name_of(precision) + " exists on a GPU only; use fp32 on " +
               to_string(device));
}

Context::Context(Device device, std::shared_ptr<Slab> slab, bool dry)
    : device_(device),
      dry_(dry),
      slab_(std::move(slab)),
      step_state_(Tensor::zeros({2}, DType::i64, device)) {
#ifdef EIGENTRACE_WITH_CUDA
  if (device.is_cuda() && !dry) {
    ET_CUDA(cudaSetDevice(device.index));
    cudaStream_t stream;
    ET_CUDA(cudaStreamCreate(&stream));
    stream_ = stream;
    blas_ = make_cuda_blas(stream, device.index);
  }
#endif
}

Context::Context(Device device, size_t slab_bytes)
    : Context(device, std::make_shared<Slab>(device, slab_bytes ? slab_bytes : default_slab_bytes(device)),
              false) {}

Context Context::dry_run(Device device) {
  return Context(device, std::make_shared<Slab>(device, size_t{1} << 50, true), true);
}

Context::Context(Context&& other) noexcept
    : precision(other.precision),
      attention_precision(other.attention_precision),
      poison(other.poison),
      device_(other.device_),
      dry_(other.dry_),
      slab_(std::move(other.slab_)),
      step_state_(std::move(other.step_state_)),
      stream_(std::exchange(other.stream_, nullptr)),
      blas_(std::exchange(other.blas_, nullptr)) {}

Context::~Context() {
#ifdef EIGENTRACE_WITH_CUDA
  if (blas_) destroy_cuda_blas(blas_);
  if (stream_) cudaStreamDestroy(static_cast<cudaStream_t>(stream_));
#endif
}

Tensor Context::empty(const Shape& shape, DType dtype) {
  const size_t bytes = static_cast<size_t>(shape.numel()) * size_of(dtype);
  Tensor tensor(std::make_shared<Storage>(slab_, bytes), dtype, shape);
  if (poison && !dry_) {
#ifdef EIGENTRACE_WITH_CUDA
    if (device_.is_cuda()) {
      ET_CUDA(cudaMemsetAsync(tensor.raw(), 0xFF, bytes, static_cast<cudaStream_t>(stream_)));
      return tensor;
    }
#endif
    std::memset(tensor.raw(), 0xFF, bytes);  // all bits set is a NaN in f32 and f64, −1 in integers
  }
  return tensor;
}

void Context::set_step(uint64_t seed, uint64_t step) {
  step_state_.assign(std::vector<int64_t>{static_cast<int64_t>(seed), static_cast<int64_t>(step)});
}

}  // namespace eigentrace
