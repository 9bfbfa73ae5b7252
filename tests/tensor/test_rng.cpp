#include "tensor/rng.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

using namespace eigentrace;

TEST_CASE("rng: philox gives the published known answers") {  // Philox4x32-10, kat_vectors of Random123
  const auto check = [](Philox4 found, std::vector<uint32_t> expected) {
    CHECK(std::equal(expected.begin(), expected.end(), found.x));
  };
  check(philox(0, 0, 0), {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  check(philox(~uint64_t{0}, ~uint64_t{0}, ~uint64_t{0}), {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  check(philox(0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88),
        {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("rng: a stream is a function of seed and stream, and two streams differ") {
  Rng a(7, 3), b(7, 3), other_stream(7, 4), other_seed(8, 3);
  int equal_stream = 0, equal_seed = 0;
  for (int i = 0; i < 100; ++i) {
    const uint32_t word = a.u32();
    CHECK(word == b.u32());
    equal_stream += word == other_stream.u32();
    equal_seed += word == other_seed.u32();
  }
  CHECK(equal_stream < 2);
  CHECK(equal_seed < 2);
}

TEST_CASE("rng: below(n) is uniform, normal() has mean 0 and variance 1") {
  Rng rng(1);
  std::vector<int> counts(7);
  for (int i = 0; i < 70000; ++i) ++counts[rng.below(7)];
  for (int count : counts) CHECK(std::abs(count - 10000) < 5 * 93);  // 5 standard deviations
  double sum = 0, squares = 0;
  const int n = 100000;
  for (int i = 0; i < n; ++i) {
    const double x = rng.normal();
    sum += x, squares += x * x;
  }
  CHECK(std::abs(sum / n) < 5 / std::sqrt(n));
  CHECK(std::abs(squares / n - 1) < 5 * std::sqrt(2.0 / n));
}
