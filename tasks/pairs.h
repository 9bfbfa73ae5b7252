#pragma once
// Pairs of documents made here, so that models that compare two texts (`dual`) can be trained without
// Retrieval's files: a document has one of k topics, a topic favours some letters; are the two of one topic?
// Knobs: topics, contrast.
//
//   row e          a q r a a   q z r a …  <eos>      favours a, q, r
//   row B/2 + e    m e   c m m e k …      <eos>      favours c, e, m
//   label of e     0
#include <memory>
#include <string>

#include "tasks/task.h"

namespace eigentrace {

struct PairsConfig {
  static constexpr const char* kName = "pairs";
  static constexpr const char* kAbout = "are two generated texts of one topic? two documents by characters";
  int64_t topics = 8;
  double contrast = 0.5;
  int64_t min_length = 64;
  int64_t l_max = 256;
  bool fixed_size = false;
  int64_t num_train_examples = 20'000;
  int64_t num_validation_examples = 1'000;
  int64_t num_test_examples = 1'000;
  uint64_t seed = 42;
};

template <class V>
void visit_fields(V& v, PairsConfig& c) {
  v("topics", c.topics, "k: different topics, at least 2; harder with more");
  v("contrast", c.contrast, "share of the characters drawn from the topic's letters: harder with less");
  v("min_length", c.min_length, "characters of the shortest document");
  v("l_max", c.l_max, "positions of the longest document, <eos> included");
  v("fixed_size", c.fixed_size, "pad to l_max always, else to the longest of the batch");
  v("num_train_examples", c.num_train_examples, "training examples");
  v("num_validation_examples", c.num_validation_examples, "validation examples");
  v("num_test_examples", c.num_test_examples, "test examples");
  v("seed", c.seed, "data seed, not the run's");
}

/// Errors (usage): sizes that do not fit.
std::unique_ptr<Task> make_task(const PairsConfig& config);

}  // namespace eigentrace
