#include "tensor/slab.h"

#include <doctest/doctest.h>

#include <cmath>

#include "tensor/context.h"
#include "tensor/error.h"
#include "tensor/rng.h"

using namespace eigentrace;

TEST_CASE("slab: first fit, 256-byte pieces, neighbours merge when released") {
  Slab slab({}, 4096);
  std::byte* a = static_cast<std::byte*>(slab.allocate(1));
  std::byte* b = static_cast<std::byte*>(slab.allocate(300));
  std::byte* c = static_cast<std::byte*>(slab.allocate(256));
  CHECK(b - a == 256);
  CHECK(c - b == 512);
  CHECK(slab.in_use() == 1024);
  slab.release(a);
  slab.release(b);
  CHECK(slab.allocate(768) == a);  // the two holes are one
  slab.release(a);
  CHECK(slab.allocate(256) == a);
  CHECK(slab.allocate(600) == c + 256);  // does not fit the hole between
  CHECK(slab.peak() == 1024 + 768);
}

TEST_CASE("slab: the same requests give the same addresses, and nothing overlaps") {
  const auto run = [](Slab& slab) {
    Rng rng(3);
    std::vector<std::pair<std::byte*, size_t>> live;
    std::vector<ptrdiff_t> offsets;
    std::byte* base = static_cast<std::byte*>(slab.allocate(1));
    for (int step = 0; step < 500; ++step) {
      if (!live.empty() && rng.below(2) == 0) {
        const size_t victim = rng.below(static_cast<uint32_t>(live.size()));
        slab.release(live[victim].first);
        live.erase(live.begin() + static_cast<ptrdiff_t>(victim));
        continue;
      }
      const size_t bytes = rng.below(5000);
      std::byte* data = static_cast<std::byte*>(slab.allocate(bytes));
      for (const auto& [other, size] : live) REQUIRE((data + bytes <= other || other + size <= data));
      live.emplace_back(data, bytes);
      offsets.push_back(data - base);
    }
    return offsets;
  };
  Slab first({}, 1 << 22), second({}, 1 << 22);
  CHECK(run(first) == run(second));
}

TEST_CASE("slab: out of memory names the op, the size and what is in use") {
  Slab slab({}, 1 << 20);
  slab.set_label("layers.0 glu");
  CHECK_THROWS_WITH_AS(slab.allocate(2 << 20), doctest::Contains("layers.0 glu asked for 2.0 MiB"), Error);
}

TEST_CASE("context: poisoned step memory is NaN in both floating types, −1 in integers") {
  Context ctx;
  ctx.poison = true;
  for (double x : ctx.empty({63}, DType::f32).to_vector<double>()) CHECK(std::isnan(x));
  for (double x : ctx.empty({63}, DType::f64).to_vector<double>()) CHECK(std::isnan(x));
  for (int32_t x : ctx.empty({63}, DType::i32).to_vector<int32_t>()) CHECK(x == -1);
}
