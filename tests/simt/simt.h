#pragma once
// Runs CUDA kernels on the CPU, for tests: every CUDA thread is a fiber, a block's fibers run in a random
// order between barriers, so that a missing barrier changes results instead of hiding. Stands behind the CUDA
// headers of this folder when EIGENTRACE_CUDA=EMULATE; see tests/README.md for what it can and cannot find.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

namespace simt {

/// What the running CUDA thread sees of itself.
struct ThreadState {
  uint3 thread_index{}, block_index{};
  dim3 block_dim, grid_dim;
  unsigned linear = 0;  ///< thread's number within the block
  unsigned char* dynamic_shared = nullptr;
};
extern thread_local ThreadState current;

/// Runs body for every thread of the grid, block by block. Dynamic shared memory starts as NaN in each block.
void launch(dim3 grid, dim3 block, size_t dynamic_shared, const std::function<void()>& body);
/// Order of fibers and blocks in later launches.
void set_seed(uint64_t seed);

void block_barrier();
/// Number of the block's live threads with `predicate`, to all of them.
int block_count(bool predicate);
void warp_barrier(unsigned mask);
/// 128 bytes a lane through which a warp's lanes see each other's values.
unsigned char* lane_slot(unsigned lane);
inline unsigned lane() { return current.linear % 32; }

/// The value lane `source` passed in the same call.
template <class T>
T exchange(unsigned mask, const T& value, unsigned source) {
  static_assert(sizeof(T) <= 128);
  std::memcpy(lane_slot(lane()), &value, sizeof(T));
  warp_barrier(mask);
  T result;
  std::memcpy(&result, lane_slot(source), sizeof(T));
  warp_barrier(mask);
  return result;
}

/// Fake device memory: readable only while a kernel or copy runs, as real device memory is not the host's.
void* device_malloc(size_t bytes);  ///< null: none left
bool device_free(void* data);
struct DeviceAccess {
  DeviceAccess();
  ~DeviceAccess();
};

}  // namespace simt
