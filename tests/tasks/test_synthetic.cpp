#include <doctest/doctest.h>

#include <set>

#include "tasks/config.h"
#include "tensor/error.h"

using namespace eigentrace;

namespace {

Batch hundred(const Task& task, Split split = Split::train) {
  std::vector<int64_t> indices(100);
  for (int64_t i = 0; i < 100; ++i) indices[i] = i;
  Batch batch;
  task.make(split, indices, batch);
  return batch;
}

// The label at position t of sequence b; -1 if it has none.
int32_t label(const Batch& batch, int64_t b, int64_t t) {
  for (int64_t i = 0; i < batch.label_count; ++i)
    if (batch.label_rows[i] == b * batch.time + t) return batch.labels[i];
  return -1;
}

}  // namespace

TEST_CASE("synthetic: labels are what the tasks promise") {
  CopyConfig copy;
  copy.length = 7;
  Batch batch = hundred(*make_task(copy));
  CHECK(batch.time == 15);
  for (int64_t b = 0; b < 100; b += 33) {
    CHECK(batch.row(b)[7] == 9);
    for (int64_t t = 0; t < 15; ++t) CHECK(label(batch, b, t) == (t < 8 ? -1 : batch.row(b)[t - 8]));
    for (int64_t t = 8; t < 15; ++t) CHECK(batch.row(b)[t] == 8);
  }
  DelayConfig delay;
  delay.delay = 5, delay.length = 63;
  batch = hundred(*make_task(delay));
  for (int64_t b = 0; b < 100; b += 33)
    for (int64_t t = 0; t < 63; ++t) CHECK(label(batch, b, t) == (t < 5 ? -1 : batch.row(b)[t - 5]));
  ParityConfig parity;
  parity.length = 63;
  batch = hundred(*make_task(parity));
  for (int64_t b = 0; b < 100; b += 33)
    for (int64_t t = 0, ones = 0; t < 63; ++t) {
      ones += batch.row(b)[t];
      CHECK(label(batch, b, t) == ones % 2);
    }
  ModularConfig modular;
  modular.modulus = 7, modular.length = 100;
  batch = hundred(*make_task(modular));
  for (int64_t b = 0; b < 100; b += 33)
    for (int64_t t = 0, sum = 0; t < 100; ++t) {
      sum += batch.row(b)[t];
      CHECK(label(batch, b, t) == sum % 7);
    }
  InductionConfig induction;
  induction.length = 63;
  batch = hundred(*make_task(induction));
  std::set<int64_t> places;
  for (int64_t b = 0; b < 100; ++b) {
    int64_t at = 0;
    while (batch.row(b)[at] != 16) ++at;
    REQUIRE(at < 61);
    places.insert(at);
    CHECK(batch.row(b)[62] == 16);
    CHECK(batch.labels[b] == batch.row(b)[at + 1]);
    CHECK(batch.label_rows[b] == b * 63 + 62);
  }
  CHECK(places.size() > 40);
}

TEST_CASE("synthetic: splits differ, sizes at their limits work, impossible ones are usage errors") {
  ParityConfig parity;
  const auto task = make_task(parity);
  CHECK(hundred(*task, Split::train).tokens != hundred(*task, Split::test).tokens);
  CHECK(hundred(*task, Split::validation).tokens != hundred(*task, Split::test).tokens);
  parity.length = 1;
  CHECK(hundred(*make_task(parity)).label_count == 100);
  parity.length = 0;
  CHECK_THROWS_AS(make_task(parity), UsageError);
  DelayConfig delay;
  delay.delay = delay.length - 1;
  CHECK(hundred(*make_task(delay)).label_count == 100);
  delay.delay = delay.length;
  CHECK_THROWS_AS(make_task(delay), UsageError);
  ModularConfig modular;
  modular.modulus = 1;
  CHECK_THROWS_AS(make_task(modular), UsageError);
  InductionConfig induction;
  induction.length = 3;
  CHECK_NOTHROW(hundred(*make_task(induction)));
  induction.length = 2;
  CHECK_THROWS_AS(make_task(induction), UsageError);
  CopyConfig copy;
  copy.symbols = 0;
  CHECK_THROWS_AS(make_task(copy), UsageError);
}
