#include "tasks/mqar.h"

#include <fmt/format.h>

#include <cmath>

#include "tasks/sampling.h"
#include "tensor/error.h"

namespace eigentrace {

namespace {

void check(const MqarConfig& c) {
  const auto need = [](bool good, const std::string& message) {
    if (!good) fail_usage("mqar: " + message);
  };
  need(c.num_kv_pairs >= 1, fmt::format("num_kv_pairs: expected at least 1, found {}", c.num_kv_pairs));
  need(c.input_seq_length % 2 == 0, fmt::format("input_seq_length: expected an even number, found {}; use {}",
                                                c.input_seq_length, c.input_seq_length + 1));
  need(c.input_seq_length / 4 >= c.num_kv_pairs,
       fmt::format(
           "input_seq_length: expected at least 4 num_kv_pairs (a pair takes two positions, its query two "
           "more), found {} for {} pairs; use at most {} pairs or a longer sequence",
           c.input_seq_length, c.num_kv_pairs, c.input_seq_length / 4));
  need(
      c.vocab_size > c.input_seq_length && c.vocab_size <= INT32_MAX,
      fmt::format("vocab_size: expected more than input_seq_length {} (and less than 2^31), found {}; use at "
                  "least {}",
                  c.input_seq_length, c.vocab_size, c.input_seq_length + 1));
  for (double a : {c.train_power_a, c.test_power_a})
    need(std::isfinite(a) && a > 0,
         fmt::format("train_power_a, test_power_a: expected a positive number, found {}; the study has 0.01",
                     a));
  for (int64_t n : {c.num_train_examples, c.num_validation_examples, c.num_test_examples})
    need(n >= 0 && n <= UINT32_MAX, fmt::format("num_*_examples: expected 0 to 2^32 - 1, found {}", n));
}

class Mqar final : public Task {
 public:
  explicit Mqar(const MqarConfig& config) : c_(config) {
    check(c_);
    const int64_t slots = (c_.input_seq_length - 2 * c_.num_kv_pairs) / 2;
    for (int64_t g = 0; g < slots; ++g) {
      // The constant factor a of a (g+1)^(a-1) does not change the law.
      train_inverse_weights_.push_back(std::pow(static_cast<double>(g + 1), 1.0 - c_.train_power_a));
      test_inverse_weights_.push_back(std::pow(static_cast<double>(g + 1), 1.0 - c_.test_power_a));
    }
  }

  std::string name() const override { return MqarConfig::kName; }

  int64_t size(Split split) const override {
    if (split == Split::train) return c_.num_train_examples;
    if (split == Split::test) return c_.num_test_examples;
    return c_.published_split ? 0 : c_.num_validation_examples;
  }

  TaskShape shape(Split) const override {
    TaskShape s;
    s.time = c_.input_seq_length;
    s.vocabulary = s.classes = c_.vocab_size;
    s.per_position = true;
    s.labels_per_example = c_.num_kv_pairs;
    return s;
  }

 protected:
  void example(Split split, int64_t index, int64_t b, Batch& out) const override {
    const int64_t n = c_.num_kv_pairs, time = c_.input_seq_length, half = c_.vocab_size / 2;
    const bool overlap = c_.published_split && split == Split::test;
    // The published generator draws all keys, then all values, then all slots from one stream that starts
    // alike in both splits: keys agree always, values and slots only if the splits have equally many
    // examples.
    const Split key_split = overlap ? Split::train : split;
    const Split pair_split = overlap && c_.num_train_examples == c_.num_test_examples ? Split::train : split;
    Rng key_rng = example_rng(c_.seed, key_split, index, 0);
    Rng pair_rng = example_rng(c_.seed, pair_split, index, 1);
    Rng filler_rng = example_rng(c_.seed, split, index, 2);

    thread_local std::vector<int32_t> keys, values, slots, pair_of_slot;
    keys.resize(n), values.resize(n), slots.resize(n);
    sample_distinct(key_rng, half - 1, keys);
    sample_distinct(pair_rng, c_.vocab_size - half, values);
    sample_weighted(pair_rng, split == Split::train ? train_inverse_weights_ : test_inverse_weights_, slots);

    const std::span<int32_t> row = out.row(b);
    pair_of_slot.assign((time - 2 * n) / 2, -1);
    for (int64_t j = 0; j < n; ++j) {
      row[2 * j] = keys[j] += 1;
      row[2 * j + 1] = values[j] += static_cast<int32_t>(half);
      pair_of_slot[slots[j]] = static_cast<int32_t>(j);
    }
    const auto filler = [&] {
      return c_.random_non_queries
                 ? static_cast<int32_t>(filler_rng.below(static_cast<uint32_t>(c_.vocab_size)))
                 : 0;
    };
    for (int64_t t = 2 * n; t < time; t += 2) {
      const int32_t j = pair_of_slot[(t - 2 * n) / 2];
      if (j >= 0) out.label(b, t, values[j]);
      row[t] = j >= 0 ? keys[j] : filler();
      row[t + 1] = filler();
    }
  }

 private:
  MqarConfig c_;
  std::vector<double> train_inverse_weights_, test_inverse_weights_;
};

}  // namespace

std::unique_ptr<Task> make_task(const MqarConfig& config) { return std::make_unique<Mqar>(config); }

}  // namespace eigentrace
