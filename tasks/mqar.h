#pragma once
// Multi-query associative recall (Arora et al., "Zoology", arXiv 2312.04927): first n pairs key, value, then
// each key once more as a query, whose label is its value. Queries stand at even offsets, what is between is
// noise.
//
//   V = 16, T = 16, n = 3: keys 1..7, values 8..15
//   input   3 12   6  9   1 15    6 11   3  0  14  4   1  7   8  2
//   label   .  .   .  .   .  .    9  .  12  .   .  .  15  .   .  .
#include <memory>
#include <string>

#include "tasks/task.h"

namespace eigentrace {

struct MqarConfig {
  static constexpr const char* kName = "mqar";
  static constexpr const char* kAbout =
      "multi-query associative recall: pairs first, then every key asked once";
  int64_t vocab_size = 8192;
  int64_t input_seq_length = 64;
  int64_t num_kv_pairs = 8;
  double train_power_a = 0.01;
  double test_power_a = 0.01;
  int64_t num_train_examples = 100'000;
  int64_t num_validation_examples = 3'000;
  int64_t num_test_examples = 3'000;
  bool random_non_queries = true;
  bool published_split = false;
  uint64_t seed = 42;
};

template <class V>
void visit_fields(V& v, MqarConfig& c) {
  v("vocab_size", c.vocab_size, "V: keys are 1..V/2-1, values V/2..V-1; more than input_seq_length");
  v("input_seq_length", c.input_seq_length, "T: even, at least 4 num_kv_pairs");
  v("num_kv_pairs", c.num_kv_pairs, "n: pairs, and queries, of an example");
  v("train_power_a", c.train_power_a, "a of the slot law a (g+1)^(a-1) in training");
  v("test_power_a", c.test_power_a, "a in validation and test");
  v("num_train_examples", c.num_train_examples, "training examples");
  v("num_validation_examples", c.num_validation_examples, "validation examples", !c.published_split,
    "published_split has no validation split");
  v("num_test_examples", c.num_test_examples, "test examples");
  v("random_non_queries", c.random_non_queries, "uniform tokens where no query stands (false: token 0)");
  v("published_split", c.published_split, "test example k has the keys of training example k, as published");
  v("seed", c.seed, "data seed, not the run's");
}

/// Errors (usage): sizes for which the task cannot be made.
std::unique_ptr<Task> make_task(const MqarConfig& config);

}  // namespace eigentrace
