#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <string>

#include "tasks/config.h"
#include "tasks/sampling.h"
#include "tensor/error.h"

using namespace eigentrace;

namespace {

MqarConfig published() {
  MqarConfig c;
  c.vocab_size = 8192, c.input_seq_length = 512, c.num_kv_pairs = 64;
  return c;
}

Batch batch_of(const Task& task, Split split, int64_t first, int64_t count) {
  std::vector<int64_t> indices(count);
  for (int64_t i = 0; i < count; ++i) indices[i] = first + i;
  Batch batch;
  task.make(split, indices, batch);
  return batch;
}

std::string error_of(const MqarConfig& c) {
  try {
    make_task(c);
  } catch (const UsageError& e) {
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("mqar: every example obeys the rules, at odd sizes too") {
  struct Sizes {
    int64_t vocab, time, pairs;
  };
  for (const Sizes s : {Sizes{8192, 512, 64}, {5, 4, 1}, {67, 66, 16}, {101, 100, 25}, {64, 62, 3}}) {
    CAPTURE(s.time);
    MqarConfig c;
    c.vocab_size = s.vocab, c.input_seq_length = s.time, c.num_kv_pairs = s.pairs;
    const auto task = make_task(c);
    const Batch batch = batch_of(*task, Split::train, 0, 63);
    REQUIRE(batch.label_count == 63 * s.pairs);
    REQUIRE(static_cast<int64_t>(batch.label_rows.size()) == batch.label_count);
    CHECK(std::is_sorted(batch.label_rows.begin(), batch.label_rows.end()));
    for (int64_t b = 0; b < 63; ++b) {
      const auto row = batch.row(b);
      CHECK(batch.lengths[b] == s.time);
      std::map<int32_t, int32_t> value_of;
      std::set<int32_t> values;
      for (int64_t j = 0; j < s.pairs; ++j) {
        const int32_t key = row[2 * j], value = row[2 * j + 1];
        REQUIRE(key >= 1);
        REQUIRE(key < s.vocab / 2);
        REQUIRE(value >= s.vocab / 2);
        REQUIRE(value < s.vocab);
        value_of[key] = value;
        values.insert(value);
      }
      REQUIRE(static_cast<int64_t>(value_of.size()) == s.pairs);
      REQUIRE(static_cast<int64_t>(values.size()) == s.pairs);
      std::set<int32_t> asked;
      for (int64_t i = b * s.pairs; i < (b + 1) * s.pairs; ++i) {
        const int64_t t = batch.label_rows[i] - b * s.time;
        REQUIRE(t >= 2 * s.pairs);
        REQUIRE(t < s.time);
        REQUIRE(t % 2 == 0);
        REQUIRE(value_of.count(row[t]) == 1);
        REQUIRE(batch.labels[i] == value_of[row[t]]);
        REQUIRE(batch.label_weights[i] == 1.0f);
        asked.insert(row[t]);
      }
      CHECK(static_cast<int64_t>(asked.size()) == s.pairs);
      for (int32_t id : row) REQUIRE((id >= 0 && id < s.vocab));
    }
  }
}

// Figures of the published generator over 100,000 examples (vocabulary 8192, length 512, 64 pairs, power
// 0.01). With n examples here, a mean may differ by 4.5 standard errors of both measurements together.
TEST_CASE("mqar: slots, distances and fillers match the published generator's statistics") {
  struct Slot {
    int pair;
    double mean, deviation;
  };
  const Slot slots[] = {{0, 32.44934, 45.97298},   {7, 42.66376, 49.297707},  {14, 50.09726, 50.614596},
                        {21, 55.96194, 51.21176},  {28, 61.17552, 51.650147}, {35, 65.65866, 51.746839},
                        {42, 69.99084, 51.833785}, {49, 73.82509, 51.646996}, {56, 77.01436, 51.238702},
                        {63, 80.86064, 51.036142}};
  const std::pair<int, double> probability[] = {{1, 0.99997},  {3, 0.99774},  {5, 0.98403}, {8, 0.93823},
                                                {15, 0.79616}, {31, 0.54928}, {47, 0.41722}};
  const int64_t examples = 4000, n = 64, time = 512;
  const auto task = make_task(published());
  std::vector<double> slot_sum(n, 0), asked(192, 0);
  double distance = 0, filler_keys = 0, filler_low = 0, filler_zero = 0, followed = 0, first_slot_0 = 0;
  for (int64_t begin = 0; begin < examples; begin += 100) {
    const Batch batch = batch_of(*task, Split::train, begin, 100);
    int64_t i = 0;
    for (int64_t b = 0; b < 100; ++b) {
      const auto row = batch.row(b);
      std::map<int32_t, int64_t> pair_of;
      for (int64_t j = 0; j < n; ++j) pair_of[row[2 * j]] = j;
      for (int64_t t = 2 * n; t < time; ++t) {
        if (i < batch.label_count && batch.label_rows[i] == b * time + t) {
          const int64_t j = pair_of.at(row[t]), slot = (t - 2 * n) / 2;
          slot_sum[j] += static_cast<double>(slot), asked[slot] += 1;
          distance += static_cast<double>(t - 2 * j);
          followed += row[t + 1] == batch.labels[i];
          first_slot_0 += j == 0 && slot == 0;
          ++i;
        } else {
          filler_keys += static_cast<double>(pair_of.count(row[t]));
          filler_low += row[t] < 4096, filler_zero += row[t] == 0;
        }
      }
    }
  }
  const double both = std::sqrt(1.0 / examples + 1.0 / 100'000);
  for (const Slot& s : slots) {
    CAPTURE(s.pair);
    CHECK(std::abs(slot_sum[s.pair] / examples - s.mean) < 4.5 * s.deviation * both);
  }
  CHECK(asked[0] == examples);
  for (const std::pair<int, double>& known : probability) {
    const int slot = known.first;
    const double p = known.second;
    CAPTURE(slot);
    CHECK(std::abs(asked[slot] / examples - p) < 4.5 * std::sqrt(p * (1 - p)) * both + 1e-12);
  }
  CHECK(std::abs(first_slot_0 / examples - 0.167297) < 4.5 * std::sqrt(0.167 * 0.833 / examples));
  CHECK(std::abs(distance / (examples * n) - 187.741885) < 4.5 * 102.34 / std::sqrt(examples * 8.0));
  CHECK(std::abs(filler_keys / examples - 2.5) < 4.5 * 1.5753 / std::sqrt(examples));
  CHECK(std::abs(filler_low / examples - 160) < 4.5 * std::sqrt(80.0 / examples));
  CHECK(std::abs(filler_zero / examples - 0.0390625) < 4.5 * std::sqrt(0.039 / examples));
  CHECK(followed / (examples * n) < 0.001);
}

// T = 12, n = 2 leaves four slots; the law of (slot of the first pair, slot of the second) is enumerated.
TEST_CASE("mqar: the slots follow the exact law of draws in pair order without replacement") {
  MqarConfig c;
  c.vocab_size = 4096, c.input_seq_length = 12, c.num_kv_pairs = 2;
  c.train_power_a = 0.01, c.test_power_a = 0.7;
  c.num_train_examples = c.num_test_examples = 20'000;
  const auto task = make_task(c);
  for (Split split : {Split::train, Split::test}) {
    const double a = split == Split::train ? 0.01 : 0.7;
    const int64_t examples = 20'000;
    double count[4][4] = {}, weight[4], total = 0;
    for (int g = 0; g < 4; ++g) total += weight[g] = a * std::pow(g + 1.0, a - 1);
    const Batch batch = batch_of(*task, split, 0, examples);
    for (int64_t b = 0; b < examples; ++b) {
      int slot[2];
      for (int64_t i = 2 * b; i < 2 * b + 2; ++i) {
        const int64_t t = batch.label_rows[i] - b * 12;
        slot[batch.row(b)[t] == batch.row(b)[0] ? 0 : 1] = static_cast<int>(t - 4) / 2;
      }
      count[slot[0]][slot[1]] += 1;
    }
    double chi_square = 0;
    for (int g = 0; g < 4; ++g)
      for (int h = 0; h < 4; ++h) {
        if (g == h) continue;
        const double expected = examples * weight[g] / total * weight[h] / (total - weight[g]);
        chi_square += (count[g][h] - expected) * (count[g][h] - expected) / expected;
      }
    CHECK(chi_square < 31.3);  // 11 degrees of freedom: exceeded once in a thousand
  }
}

TEST_CASE("mqar: examples depend on nothing but configuration, split and index") {
  const auto task = make_task(published());
  const Batch all = batch_of(*task, Split::train, 0, 100);
  const std::vector<int64_t> some = {63, 7, 7};
  Batch batch;
  task->make(Split::test, some, batch);  // a used batch must not shine through
  task->make(Split::train, some, batch);
  for (int64_t b = 0; b < 3; ++b) CHECK(std::ranges::equal(batch.row(b), all.row(some[b])));
  MqarConfig other = published();
  other.seed = 43;
  CHECK_FALSE(std::ranges::equal(batch_of(*make_task(other), Split::train, 7, 1).row(0), all.row(7)));
}

TEST_CASE("mqar: splits are disjoint by default, and published_split shares the keys alone") {
  MqarConfig c = published();
  const auto keys_equal = [](const Batch& x, const Batch& y, int64_t offset) {
    int64_t equal = 0;
    for (int64_t j = 0; j < 64; ++j) equal += x.row(0)[2 * j + offset] == y.row(0)[2 * j + offset];
    return equal;
  };
  auto task = make_task(c);
  CHECK(task->size(Split::validation) == 3000);
  CHECK(keys_equal(batch_of(*task, Split::train, 5, 1), batch_of(*task, Split::test, 5, 1), 0) < 4);
  CHECK(keys_equal(batch_of(*task, Split::train, 5, 1), batch_of(*task, Split::validation, 5, 1), 0) < 4);
  c.published_split = true;
  task = make_task(c);
  const Batch train = batch_of(*task, Split::train, 5, 1), test = batch_of(*task, Split::test, 5, 1);
  CHECK(keys_equal(train, test, 0) == 64);
  CHECK(keys_equal(train, test, 1) < 4);
  CHECK(train.label_rows != test.label_rows);
  CHECK(task->size(Split::validation) == 0);
  // With as many test as training examples the published generator repeats values and queries as well.
  c.num_test_examples = c.num_train_examples;
  task = make_task(c);
  const Batch same = batch_of(*task, Split::test, 5, 1), base = batch_of(*task, Split::train, 5, 1);
  CHECK(same.label_rows == base.label_rows);
  CHECK(same.labels == base.labels);
  CHECK(same.tokens != base.tokens);
}

TEST_CASE("mqar: without random_non_queries the positions between are 0") {
  MqarConfig c = published();
  c.random_non_queries = false;
  const Batch batch = batch_of(*make_task(c), Split::train, 0, 1);
  CHECK(std::count(batch.tokens.begin(), batch.tokens.end(), 0) == 320);
}

TEST_CASE("mqar: impossible sizes are usage errors that say the fix") {
  MqarConfig c = published();
  c.input_seq_length = 511;
  CHECK(error_of(c).find("use 512") != std::string::npos);
  c = published(), c.num_kv_pairs = 129;
  CHECK(error_of(c).find("at most 128 pairs") != std::string::npos);
  c = published(), c.vocab_size = 512;
  CHECK(error_of(c).find("at least 513") != std::string::npos);
  c = published(), c.num_kv_pairs = 0;
  CHECK(error_of(c).find("num_kv_pairs") != std::string::npos);
  c = published(), c.train_power_a = 0;
  CHECK(error_of(c).find("power") != std::string::npos);
  c = published(), c.num_train_examples = -1;
  CHECK(error_of(c).find("examples") != std::string::npos);
  const auto task = make_task(published());
  CHECK_THROWS_AS(batch_of(*task, Split::train, 100'000, 1), Error);
  CHECK_THROWS_AS(batch_of(*task, Split::train, -1, 1), Error);
}

TEST_CASE("sample_distinct: ordered samples are uniform and leave no trace") {
  std::map<std::vector<int32_t>, int> count;
  Rng rng(7);
  for (int i = 0; i < 12'000; ++i) {
    std::vector<int32_t> out(2);
    sample_distinct(rng, 4, out);
    ++count[out];
  }
  CHECK(count.size() == 12);
  for (const auto& [sample, n] : count) CHECK(std::abs(n - 1000) < 4.5 * std::sqrt(1000.0 * 11 / 12));
  std::vector<int32_t> all(63);
  sample_distinct(rng, 63, all);
  std::sort(all.begin(), all.end());
  for (int i = 0; i < 63; ++i) CHECK(all[i] == i);
  CHECK_THROWS_AS(sample_distinct(rng, 62, all), Error);
}
