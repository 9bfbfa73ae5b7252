#pragma once
// The MAD suite (Poli et al., "Mechanistic Design and Scaling of Hybrid Architectures", arXiv 2403.17844):
// six small token manipulations. s is the whole sequence; in the three recalls the input is s without its
// last token, the training labels are the next tokens at every position, and evaluation labels only the
// values of keys seen before.
//
//   in-context-recall, V 16 (keys 0..7, values 8..15)
//     input         2 11  5  9  2 11  0 14  5
//     train label  11  5  9  2 11  0 14  5  9
//     test label    .  .  .  . 11  .  .  .  9
//   noisy-in-context-recall, V 32 (keys 0..7, values 8..15, noise 16..31): the same with noise in place of
//   pairs
//     input         2 11 30 17  5  9  2
//     test label    .  .  .  .  .  . 11
//   fuzzy-in-context-recall, V 16 (keys 0..6, values 7..14, padding 15): motifs of 1..3 tokens
//     input        15 15  3  1  6 12  8  0  4  2  9  3  1  6 12
//     test label    .  .  .  .  .  .  .  .  .  .  .  .  . 12  8
//   selective-copying, V 16 (blank 14, copy 15), 3 tokens
//     input        14  7 14 14  2  7 15 14 14 14
//     label         .  .  .  .  .  .  .  7  2  7
//   compression, V 16 (aggregation 15): every position is decoded from the last
//     input         3  8  8  0 15
//     label         3  8  8  0 15
//   memorization, V 16 (insert 15): one map of keys 0..6 to values 7..14, the same in every example
//     input         4 15  0 15  4 15
//     label         .  9  . 13  .  9
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tasks/task.h"

namespace eigentrace {

struct MadConfig {
  static constexpr const char* kName = "mad";
  static constexpr const char* kAbout =
      "MAD: in-context, noisy, fuzzy recall, selective copying, compression, memorization";
  std::string task = "in-context-recall";
  int64_t vocab_size = 0;
  int64_t seq_len = 0;
  int64_t num_train_examples = 0;
  int64_t num_test_examples = 1280;
  double frac_noise = 0.2;
  int64_t noise_vocab_size = 16;
  int64_t k_motif_size = 3;
  int64_t v_motif_size = 3;
  int64_t num_tokens_to_copy = 16;
  uint64_t map_seed = 12345;
  uint64_t seed = 12345;
  bool operator==(const MadConfig&) const = default;
};

template <class V>
void visit_fields(V& v, MadConfig& c) {
  v("task", c.task,
    "in-context-recall, noisy-in-context-recall, fuzzy-in-context-recall, selective-copying, compression, "
    "memorization");
  v("vocab_size", c.vocab_size, "V, special tokens included; 0: the task's baseline");
  v("seq_len", c.seq_len, "length; 0: the task's baseline");
  v("num_train_examples", c.num_train_examples, "0: the task's baseline");
  v("num_test_examples", c.num_test_examples, "evaluation examples, also of the validation split");
  v("frac_noise", c.frac_noise, "noisy recall: probability that a pair is noise",
    c.task == "noisy-in-context-recall", "the task has no noise");
  v("noise_vocab_size", c.noise_vocab_size, "noisy recall: how many of the last ids are noise",
    c.task == "noisy-in-context-recall", "the task has no noise");
  v("k_motif_size", c.k_motif_size, "fuzzy recall: longest key", c.task == "fuzzy-in-context-recall",
    "the task has no motifs");
  v("v_motif_size", c.v_motif_size, "fuzzy recall: longest value", c.task == "fuzzy-in-context-recall",
    "the task has no motifs");
  v("num_tokens_to_copy", c.num_tokens_to_copy, "selective copying: tokens", c.task == "selective-copying",
    "the task copies nothing");
  v("map_seed", c.map_seed, "memorization: seed of the map", c.task == "memorization", "the task has no map");
  v("seed", c.seed, "data seed, not the run's");
}

/// Errors (usage): an unknown task, sizes that do not fit it.
std::unique_ptr<Task> make_task(const MadConfig& config);

/// The names of the six tasks.
std::vector<std::string> mad_tasks();
/// The configuration with the task's baseline in place of zeros.
MadConfig mad_resolved(const MadConfig& config);
/// The settings whose mean makes the score of a task: the baseline first, then each difficulty change alone.
std::vector<MadConfig> mad_settings(const std::string& task);
/// MAD's accuracy of one batch: the mean, over the classes that occur among labels or predictions, of the
/// share of that class's labels predicted right (0 for a class that is only predicted). Errors: different
/// lengths, no label.
double mad_accuracy(std::span<const int32_t> labels, std::span<const int32_t> predictions);

}  // namespace eigentrace
