#include "tensor/readback.h"

#include "tensor/cuda_check.h"
#include "tensor/error.h"
#include "tensor/launch.h"

namespace eigentrace {

struct Readback::Lane {
  Device device;
  const std::byte* source = nullptr;  // on the CPU: of the last fetch
#ifdef EIGENTRACE_WITH_CUDA
  std::byte* pinned = nullptr;
  size_t capacity = 0;
  cudaStream_t stream = nullptr;
  cudaEvent_t made = nullptr, arrived = nullptr;

  explicit Lane(Device where) : device(where) {
    if (!device.is_cuda()) return;
    ET_CUDA(cudaSetDevice(device.index));
    ET_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    ET_CUDA(cudaEventCreateWithFlags(&made, cudaEventDisableTiming));
    // Who waits sleeps: the processor is the training's.
    ET_CUDA(cudaEventCreateWithFlags(&arrived, cudaEventDisableTiming | cudaEventBlockingSync));
  }
  ~Lane() {
    if (!device.is_cuda()) return;
    cudaStreamSynchronize(stream);
    cudaFreeHost(pinned);
    cudaEventDestroy(made);
    cudaEventDestroy(arrived);
    cudaStreamDestroy(stream);
  }
#else
  explicit Lane(Device where) : device(where) {
    if (device.is_cuda()) fail("Readback: built without CUDA, found " + to_string(device));
  }
#endif
};

Readback::Readback(Device device) : lane_(std::make_unique<Lane>(device)) {}
Readback::~Readback() = default;

void Readback::reserve(size_t bytes) {
#ifdef EIGENTRACE_WITH_CUDA
  if (!lane_->device.is_cuda() || bytes <= lane_->capacity) return;
  ET_CUDA(cudaStreamSynchronize(lane_->stream));
  ET_CUDA(cudaFreeHost(lane_->pinned));
  lane_->pinned = nullptr, lane_->capacity = 0;
  ET_CUDA(cudaMallocHost(&lane_->pinned, bytes));
  lane_->capacity = bytes;
#else
  (void)bytes;
#endif
}

void Readback::fetch(Context& ctx, const std::byte* source, size_t bytes) {
  lane_->source = source;
  reserve(bytes);
#ifdef EIGENTRACE_WITH_CUDA
  if (!lane_->device.is_cuda()) return;
  ET_CUDA(cudaEventRecord(lane_->made, stream_of(ctx)));
  ET_CUDA(cudaStreamWaitEvent(lane_->stream, lane_->made, 0));
  ET_CUDA(cudaMemcpyAsync(lane_->pinned, source, bytes, cudaMemcpyDeviceToHost, lane_->stream));
  ET_CUDA(cudaEventRecord(lane_->arrived, lane_->stream));
#else
  (void)ctx;
#endif
}

void Readback::hold(Context& ctx) {
#ifdef EIGENTRACE_WITH_CUDA
  if (lane_->device.is_cuda()) ET_CUDA(cudaStreamWaitEvent(stream_of(ctx), lane_->arrived, 0));
#else
  (void)ctx;
#endif
}

const std::byte* Readback::wait() const {
#ifdef EIGENTRACE_WITH_CUDA
  if (lane_->device.is_cuda()) {
    ET_CUDA(cudaEventSynchronize(lane_->arrived));
    return lane_->pinned;
  }
#endif
  return lane_->source;
}

}  // namespace eigentrace
