#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <vector>

#include "tests/simt/async_copy.h"
#include "tests/simt/simt.h"

#ifndef __x86_64__
#error "the emulator switches stacks in x86-64 code"
#endif

// void simt_switch(void** save, void* to): the callee-saved registers and the stack of one fiber for
// another's.
asm(R"(
.text
.globl simt_switch
.type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch, .-simt_switch
)");
extern "C" void simt_switch(void** save, void* to);

namespace simt {

thread_local ThreadState current;

namespace {

constexpr size_t stack_bytes = 64 << 10;
constexpr unsigned most_threads = 1024;
uint64_t seed = 1;

enum class State : unsigned char { ready, at_block_barrier, at_warp_barrier, done };

/// One cp.async that has not taken effect; group: how many its thread had committed before.
struct AsyncCopy {
  void* to;
  const void* from;
  size_t bytes, room, group;
  void land() const {
    std::memset(to, 0, room);
    if (bytes > 0) std::memcpy(to, from, bytes);
  }
};

struct Fiber {
  std::vector<AsyncCopy> copies;
  size_t committed = 0;
  void* stack_pointer = nullptr;
  State state = State::done;
  unsigned mask = 0;
  ThreadState self;
};

/// The fibers of one host thread: it runs one block at a time.
struct Block {
  std::vector<Fiber> fibers{most_threads};
  std::vector<unsigned char> slots = std::vector<unsigned char>(most_threads * 128);
  std::vector<uint64_t> dynamic_shared = std::vector<uint64_t>((228 << 10) / 8 + 2);
  unsigned char* stacks = nullptr;
  const std::function<void()>* body = nullptr;
  unsigned threads = 0, alive = 0, waiting = 0, running = 0;
  int counted = 0, last_count = 0;
  void* scheduler = nullptr;
  uint64_t random = 0;

  Block() {
    void* memory = mmap(nullptr, stack_bytes * most_threads, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    stacks = static_cast<unsigned char*>(memory);
  }
  ~Block() { munmap(stacks, stack_bytes * most_threads); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  uint64_t next_random() {  // SplitMix64
    uint64_t z = (random += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  void release_block() {
    waiting = 0, last_count = counted, counted = 0;
    for (unsigned i = 0; i < threads; ++i)
      if (fibers[i].state == State::at_block_barrier) fibers[i].state = State::ready;
  }
  /// Everyone in `mask` of the warp waits with that mask, or has returned.
  bool warp_complete(unsigned warp, unsigned mask) const {
    for (unsigned lane = 0; lane < 32 && warp * 32 + lane < threads; ++lane) {
      const Fiber& fiber = fibers[warp * 32 + lane];
      if (mask >> lane & 1 && fiber.state != State::done &&
          !(fiber.state == State::at_warp_barrier && fiber.mask == mask))
        return false;
    }
    return true;
  }
  void release_warp(unsigned warp, unsigned mask) {
    for (unsigned lane = 0; lane < 32 && warp * 32 + lane < threads; ++lane) {
      Fiber& fiber = fibers[warp * 32 + lane];
      if (fiber.state == State::at_warp_barrier && fiber.mask == mask) fiber.state = State::ready;
    }
  }
  void yield() {
    Fiber& me = fibers[running];
    if (me.state == State::ready) return;
    simt_switch(&me.stack_pointer, scheduler);
  }
  [[noreturn]] void deadlock() const {
    unsigned at_block = 0, at_warp = 0;
    for (unsigned i = 0; i < threads; ++i) {
      at_block += fibers[i].state == State::at_block_barrier;
      at_warp += fibers[i].state == State::at_warp_barrier;
    }
    std::fprintf(stderr, "simt: deadlock: of %u live threads %u wait for the block, %u for their warp\n",
                 alive, at_block, at_warp);
    std::abort();
  }
  void run();
};

Block& this_block() {
  static thread_local Block block;
  return block;
}

void fiber_main() {
  Block& block = this_block();
  (*block.body)();
  Fiber& me = block.fibers[block.running];
  me.state = State::done;
  --block.alive;
  simt_switch(&me.stack_pointer, block.scheduler);
  std::abort();
}

void Block::run() {
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[i];
    auto* top = reinterpret_cast<uint64_t*>(stacks + (i + 1) * stack_bytes) - 2;  // 16-byte aligned
    top[0] = 0;
    *--top = 0;                                       // where a caller's address would be
    *--top = reinterpret_cast<uint64_t>(fiber_main);  // simt_switch returns there
    for (int r = 0; r < 6; ++r) *--top = 0;
    fiber.stack_pointer = top;
    fiber.state = State::ready;
    fiber.copies.clear(), fiber.committed = 0;
  }
  alive = threads, waiting = 0, counted = 0;
  std::vector<unsigned> order(threads);
  std::iota(order.begin(), order.end(), 0u);
  while (alive > 0) {
    for (unsigned i = threads; i > 1; --i) std::swap(order[i - 1], order[next_random() % i]);
    bool progress = false;
    for (const unsigned i : order) {
      Fiber& fiber = fibers[i];
      if (fiber.state != State::ready) continue;
      progress = true;
      running = i;
      current = fiber.self;
      simt_switch(&scheduler, fiber.stack_pointer);
      if (fiber.state == State::done) {
        if (alive > 0 && waiting == alive) release_block();
        const unsigned warp = i / 32;
        for (unsigned lane = 0; lane < 32 && warp * 32 + lane < threads; ++lane) {
          const Fiber& other = fibers[warp * 32 + lane];
          if (other.state == State::at_warp_barrier && warp_complete(warp, other.mask))
            release_warp(warp, other.mask);
        }
      }
    }
    if (!progress) deadlock();
  }
}

}  // namespace

void set_seed(uint64_t value) { seed = value; }

void launch(dim3 grid, dim3 block, size_t dynamic_shared, const std::function<void()>& body) {
  const unsigned threads = block.x * block.y * block.z;
  const int64_t blocks = int64_t{1} * grid.x * grid.y * grid.z;
  if (threads == 0 || threads > most_threads || blocks == 0 || dynamic_shared > (227u << 10)) {
    std::fprintf(stderr, "simt: impossible launch: %u threads, %lld blocks, %zu bytes of shared memory\n",
                 threads, static_cast<long long>(blocks), dynamic_shared);
    std::abort();
  }
  const DeviceAccess access;
  const uint64_t launch_seed = seed++;
#pragma omp parallel for schedule(dynamic, 1) if (blocks > 1)
  for (int64_t item = 0; item < blocks; ++item) {
    const int64_t at = launch_seed % 2 ? item : blocks - 1 - item;
    Block& host = this_block();
    host.body = &body;
    host.threads = threads;
    host.random = launch_seed * 0x100000001B3ull + static_cast<uint64_t>(at);
    std::memset(host.dynamic_shared.data(), 0xFF, dynamic_shared);
    ThreadState state;
    state.block_dim = block, state.grid_dim = grid;
    state.block_index = {static_cast<unsigned>(at % grid.x), static_cast<unsigned>(at / grid.x % grid.y),
                         static_cast<unsigned>(at / grid.x / grid.y)};
    state.dynamic_shared = reinterpret_cast<unsigned char*>(
        (reinterpret_cast<uintptr_t>(host.dynamic_shared.data()) + 15) / 16 * 16);
    for (unsigned i = 0; i < threads; ++i) {
      state.linear = i;
      state.thread_index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
      host.fibers[i].self = state;
    }
    host.run();
  }
}

void block_barrier() { block_count(false); }

int block_count(bool predicate) {
  Block& block = this_block();
  Fiber& me = block.fibers[block.running];
  me.state = State::at_block_barrier;
  block.counted += predicate;
  if (++block.waiting == block.alive) block.release_block();
  block.yield();
  return block.last_count;
}

void warp_barrier(unsigned mask) {
  Block& block = this_block();
  Fiber& me = block.fibers[block.running];
  const unsigned warp = block.running / 32;
  if (!(mask >> (block.running % 32) & 1)) {
    std::fprintf(stderr, "simt: a lane calls a warp function whose mask leaves it out\n");
    std::abort();
  }
  me.state = State::at_warp_barrier;
  me.mask = mask;
  if (block.warp_complete(warp, mask)) block.release_warp(warp, mask);
  block.yield();
}

void copy_async(void* to, const void* from, size_t bytes, size_t room) {
  Block& block = this_block();
  Fiber& me = block.fibers[block.running];
  const AsyncCopy copy{to, from, bytes, room, me.committed};
  if (block.next_random() % 2 == 0)
    copy.land();
  else
    me.copies.push_back(copy);
}
void copy_commit() {
  Block& block = this_block();
  ++block.fibers[block.running].committed;
}
void copy_wait(size_t pending) {
  Block& block = this_block();
  Fiber& me = block.fibers[block.running];
  std::erase_if(me.copies, [&](const AsyncCopy& copy) {
    const bool due = copy.group + pending < me.committed;
    if (due) copy.land();
    return due;
  });
}

unsigned char* lane_slot(unsigned lane) {
  Block& block = this_block();
  return block.slots.data() + (block.running / 32 * 32 + lane) * 128;
}

}  // namespace simt
