#include "tensor/staging.h"

#include "tensor/cuda_check.h"
#include "tensor/error.h"
#include "tensor/launch.h"

namespace eigentrace {

#ifdef EIGENTRACE_WITH_CUDA

struct Staging::Slots {
  struct Slot {
    std::byte *pinned = nullptr, *device = nullptr;
    size_t capacity = 0;
    cudaEvent_t arrived = nullptr, consumed = nullptr;
  };
  Slot slots[2];
  int turn = 0;
  cudaStream_t stream = nullptr;

  explicit Slots(Device device) {
    ET_CUDA(cudaSetDevice(device.index));
    ET_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    for (Slot& slot : slots) {
      ET_CUDA(cudaEventCreateWithFlags(&slot.arrived, cudaEventDisableTiming));
      ET_CUDA(cudaEventCreateWithFlags(&slot.consumed, cudaEventDisableTiming));
    }
  }
  void release(Slot& slot) {
    cudaFreeHost(slot.pinned);
    cudaFree(slot.device);
    slot.pinned = slot.device = nullptr, slot.capacity = 0;
  }
  ~Slots() {
    cudaStreamSynchronize(stream);
    for (Slot& slot : slots) {
      cudaEventSynchronize(slot.consumed);
      release(slot);
      cudaEventDestroy(slot.arrived);
      cudaEventDestroy(slot.consumed);
    }
    cudaStreamDestroy(stream);
  }
};

std::byte* Staging::buffer(size_t bytes) {
  Slots::Slot& slot = slots_->slots[slots_->turn];
  ET_CUDA(cudaEventSynchronize(slot.arrived));
  if (slot.capacity < bytes) {
    ET_CUDA(cudaEventSynchronize(slot.consumed));
    slots_->release(slot);
    ET_CUDA(cudaMallocHost(&slot.pinned, bytes));
    ET_CUDA(cudaMalloc(&slot.device, bytes));
    slot.capacity = bytes;
  }
  return slot.pinned;
}

void Staging::send(Context& ctx, std::byte* destination, size_t bytes) {
  Slots::Slot& slot = slots_->slots[slots_->turn];
  slots_->turn ^= 1;
  ET_CUDA(cudaStreamWaitEvent(slots_->stream, slot.consumed, 0));
  ET_CUDA(cudaMemcpyAsync(slot.device, slot.pinned, bytes, cudaMemcpyHostToDevice, slots_->stream));
  ET_CUDA(cudaEventRecord(slot.arrived, slots_->stream));
  ET_CUDA(cudaStreamWaitEvent(stream_of(ctx), slot.arrived, 0));
  ET_CUDA(cudaMemcpyAsync(destination, slot.device, bytes, cudaMemcpyDeviceToDevice, stream_of(ctx)));
  ET_CUDA(cudaEventRecord(slot.consumed, stream_of(ctx)));
}

#else

struct Staging::Slots {
  explicit Slots(Device) {}
};
std::byte* Staging::buffer(size_t) { return nullptr; }
void Staging::send(Context&, std::byte*, size_t) {}

#endif

Staging::Staging(Device device) {
  if (!device.is_cuda()) fail("Staging: a GPU expected, found " + to_string(device));
  slots_ = std::make_unique<Slots>(device);
}
Staging::~Staging() = default;

}  // namespace eigentrace
