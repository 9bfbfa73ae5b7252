#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <numeric>
#include <vector>

#include "tests/simt/async_copy.h"
#include "tests/simt/simt.h"
#include "tests/simt/wgmma.h"

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

enum class State : unsigned char { ready, at_block_barrier, at_warp_barrier, at_named, at_count, done };

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

/// Copies that land together, and what a barrier counts then: an arrival or bytes.
struct Landing {
  std::vector<AsyncCopy> copies;
  uint32_t barrier;
  int arrivals;
  int64_t bytes;
};
/// A barrier in shared memory: its phase ends when nobody and nothing is missing.
struct Count {
  int arrivals = 0, missing = 0;
  int64_t bytes = 0;
  uint64_t phase = 0;
};
struct Named {
  int arrived = 0;
  uint64_t phase = 0;
};

struct Fiber {
  std::vector<AsyncCopy> copies;
  size_t committed = 0;
  std::vector<std::vector<Product>> products{1};  // the last group is not committed
  uint64_t phase = 0;                             // that it waits for the end of
  uint32_t barrier = 0;
  void* stack_pointer = nullptr;
  State state = State::done;
  unsigned mask = 0;
  ThreadState self;
};

/// The fibers of one host thread: it runs one block at a time.
struct Block {
  std::vector<Fiber> fibers{most_threads};
  std::vector<unsigned char> slots = std::vector<unsigned char>(most_threads * 128);
  std::vector<uint64_t> dynamic_shared = std::vector<uint64_t>((229 << 10) / 8);
  unsigned char* stacks = nullptr;
  const std::function<void()>* body = nullptr;
  unsigned threads = 0, alive = 0, waiting = 0, running = 0;
  int counted = 0, last_count = 0;
  std::vector<Landing> landings;
  std::map<uint32_t, Count> counts;
  Named named[16];
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
  /// Warps that stand still as long as others can go on: one, a warpgroup, or all but these.
  uint32_t choose_late() {
    const unsigned warps = (threads + 31) / 32;
    const uint64_t r = next_random(), warp = r / 8 % warps;
    const uint32_t some = r & 1 ? 1u << warp : 0xFu << warp / 4 * 4;
    return r & 6 ? r & 2 ? some : ~some : 0;
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
  void count(uint32_t barrier, int arrivals, int64_t bytes) {
    Count& c = counts.at(barrier);
    c.missing -= arrivals, c.bytes -= bytes;
    if (c.missing < 0) abort_with("more arrivals than a barrier counts");
    if (c.missing > 0 || c.bytes != 0) return;
    ++c.phase, c.missing = c.arrivals;
  }
  void land(size_t i) {
    const Landing landing = landings[i];
    landings.erase(landings.begin() + static_cast<ptrdiff_t>(i));
    for (const AsyncCopy& copy : landing.copies) copy.land();
    count(landing.barrier, landing.arrivals, landing.bytes);
  }
  bool may_go_on(const Fiber& fiber) const {
    if (fiber.state == State::at_named) return named[fiber.barrier].phase != fiber.phase;
    return fiber.state == State::at_count && counts.at(fiber.barrier).phase % 2 != fiber.phase;
  }
  [[noreturn]] static void abort_with(const char* what) {
    std::fprintf(stderr, "simt: %s\n", what);
    std::abort();
  }
  void yield() {
    Fiber& me = fibers[running];
    if (me.state == State::ready) return;
    simt_switch(&me.stack_pointer, scheduler);
  }
  [[noreturn]] void deadlock() const {
    unsigned at[8] = {};
    for (unsigned i = 0; i < threads; ++i) ++at[static_cast<unsigned>(fibers[i].state)];
    std::fprintf(stderr,
                 "simt: deadlock: of %u live threads %u wait for the block, %u for their warp, %u at named "
                 "barriers, %u at counting ones\n",
                 alive, at[1], at[2], at[3], at[4]);
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
    fiber.products.assign(1, {});
  }
  alive = threads, waiting = 0, counted = 0;
  landings.clear(), counts.clear();
  std::fill(std::begin(named), std::end(named), Named{});
  std::vector<unsigned> order(threads);
  std::iota(order.begin(), order.end(), 0u);
  uint32_t late = choose_late();
  const uint64_t rounds = uint64_t{8} << next_random() % 3 * 4;  // between choices: 8, 128, 2048
  bool progress = true;
  while (alive > 0) {
    for (unsigned i = threads; i > 1; --i) std::swap(order[i - 1], order[next_random() % i]);
    if (next_random() % rounds == 0) late = choose_late();
    const bool all = !progress;  // nobody else can go on
    progress = false;
    for (size_t i = landings.size(); i-- > 0;)
      if (next_random() % 4 == 0) land(i), progress = true;
    for (const unsigned i : order) {
      Fiber& fiber = fibers[i];
      if (!all && late >> i / 32 & 1) continue;
      if (may_go_on(fiber)) fiber.state = State::ready;
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
    if (all && !progress && landings.empty()) deadlock();
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
    std::memset(host.dynamic_shared.data(), 0xFF, dynamic_shared + 1024);
    ThreadState state;
    state.block_dim = block, state.grid_dim = grid;
    state.block_index = {static_cast<unsigned>(at % grid.x), static_cast<unsigned>(at / grid.x % grid.y),
                         static_cast<unsigned>(at / grid.x / grid.y)};
    state.dynamic_shared = reinterpret_cast<unsigned char*>(
        (reinterpret_cast<uintptr_t>(host.dynamic_shared.data()) + 1023) / 1024 * 1024);
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

void named_barrier(int id, int count, bool waits) {
  Block& block = this_block();
  if (id < 0 || id > 15 || count % 32 != 0) Block::abort_with("impossible named barrier");
  Named& barrier = block.named[id];
  Fiber& me = block.fibers[block.running];
  me.barrier = static_cast<uint32_t>(id), me.phase = barrier.phase;
  if (++barrier.arrived == count)
    barrier.arrived = 0, ++barrier.phase;
  else if (waits)
    me.state = State::at_named;
  block.yield();
}
void count_init(uint32_t barrier, int arrivals) { this_block().counts[barrier] = {arrivals, arrivals, 0, 0}; }
void count_arrive(uint32_t barrier, int64_t bytes) { this_block().count(barrier, 1, -bytes); }
void count_arrive_after_copies(uint32_t barrier) {
  Block& block = this_block();
  Fiber& me = block.fibers[block.running];
  block.landings.push_back({std::move(me.copies), barrier, 1, 0});
  me.copies.clear();
}
void count_wait(uint32_t barrier, int parity) {
  Block& block = this_block();
  Fiber& me = block.fibers[block.running];
  me.barrier = barrier, me.phase = static_cast<uint64_t>(parity);
  me.state = State::at_count;
  if (block.may_go_on(me)) me.state = State::ready;
  block.yield();
}
void bulk_copy(uint32_t to, const void* from, int bytes, uint32_t barrier) {
  Block& block = this_block();
  if (to % 16 || bytes % 16 || reinterpret_cast<uintptr_t>(from) % 16)
    Block::abort_with("a bulk copy that is not whole 16 bytes");
  const auto size = static_cast<size_t>(bytes);
  block.landings.push_back({{{current.dynamic_shared + to, from, size, size, 0}}, barrier, 0, bytes});
  count_arrive(barrier, bytes);
}

void product(const Product& p) {
  Block& block = this_block();
  block.fibers[block.running].products.back().push_back(p);
}
void product_commit() {
  Block& block = this_block();
  block.fibers[block.running].products.emplace_back();
}
void product_wait(int pending) {
  Block& block = this_block();
  auto& groups = block.fibers[block.running].products;
  while (groups.size() > static_cast<size_t>(pending) + 1) {
    for (const Product& p : groups.front()) run_product(p);
    groups.erase(groups.begin());
  }
  warp_barrier(0xFFFFFFFFu);
}

unsigned char* lane_slot(unsigned lane) {
  Block& block = this_block();
  return block.slots.data() + (block.running / 32 * 32 + lane) * 128;
}

}  // namespace simt
