#include "tasks/pairs.h"

#include <fmt/format.h>

#include "tasks/sampling.h"
#include "tasks/sequence_task.h"
#include "tensor/error.h"

namespace eigentrace {

namespace {

constexpr int64_t kLetters = 26, kFavoured = 6;
constexpr int32_t kFirstLetter = 3, kBlank = kFirstLetter + 26;
constexpr uint64_t kTopicStream = 0xEAull << 56;

class Pairs final : public SequenceTask {
 public:
  explicit Pairs(const PairsConfig& config) : c_(config) {
    const auto need = [](bool good, const std::string& message) {
      if (!good) fail_usage("pairs: " + message);
    };
    need(c_.topics >= 2 && c_.topics <= 10'000,
         fmt::format("topics: expected 2 to 10000, found {}", c_.topics));
    need(c_.contrast > 0 && c_.contrast <= 1,
         fmt::format("contrast: expected more than 0, at most 1, found {}", c_.contrast));
    need(c_.min_length >= 1 && c_.l_max > c_.min_length && c_.l_max <= 1 << 24,
         fmt::format("min_length, l_max: expected 1 or more and more than that, found {} and {}",
                     c_.min_length, c_.l_max));
    for (int64_t n : {c_.num_train_examples, c_.num_validation_examples, c_.num_test_examples})
      need(n >= 0 && n <= UINT32_MAX, fmt::format("num_*_examples: expected 0 to 2^32 - 1, found {}", n));
    favoured_.resize(c_.topics * kFavoured);
    Rng rng(c_.seed, kTopicStream);
    for (int64_t k = 0; k < c_.topics; ++k)
      sample_distinct(rng, kLetters, {favoured_.data() + k * kFavoured, kFavoured});
  }

  std::string name() const override { return PairsConfig::kName; }
  int64_t size(Split split) const override {
    return split == Split::train        ? c_.num_train_examples
           : split == Split::validation ? c_.num_validation_examples
                                        : c_.num_test_examples;
  }
  std::vector<std::string> symbols() const override {
    std::vector<std::string> names = {"<pad>", "<unk>", "<eos>"};
    for (char letter = 'a'; letter <= 'z'; ++letter) names.emplace_back(1, letter);
    names.emplace_back(" ");
    return names;
  }

  TaskShape shape(Split) const override {
    TaskShape s;
    s.time = c_.l_max;
    s.vocabulary = kBlank + 1;
    s.classes = 2;
    s.fixed_length = c_.fixed_size;
    s.documents = 2;
    return s;
  }

  std::string show(Split split, int64_t index) const override {
    const std::vector<std::string> names = symbols();
    std::string text = fmt::format("pairs {} example {}\n", split_name(split), index);
    Batch one;
    make(split, std::span(&index, 1), one);
    for (int64_t d = 0; d < 2; ++d) {
      text += d == 0 ? "first:  " : "second: ";
      for (int64_t t = 0; t + 1 < one.lengths[d]; ++t) text += names[one.row(d)[t]];
      text += '\n';
    }
    return text + fmt::format("label {} ({})\n", one.labels[0], one.labels[0] ? "one topic" : "two topics");
  }

 protected:
  int32_t sequence(Split split, int64_t index, int64_t document, std::vector<int32_t>& out) const override {
    Rng topics = example_rng(c_.seed, split, index, 0);
    const auto draw = [](Rng& rng, int64_t n) {
      return static_cast<int64_t>(rng.below(static_cast<uint32_t>(n)));
    };
    const auto label = static_cast<int32_t>(topics.below(2));
    int64_t topic = draw(topics, c_.topics);
    // Two topics: the other is uniform among the rest.
    const int64_t other = (topic + 1 + draw(topics, c_.topics - 1)) % c_.topics;
    if (document == 1 && label == 0) topic = other;
    Rng text = example_rng(c_.seed, split, index, 1 + static_cast<int>(document));
    const int64_t length = c_.min_length + draw(text, c_.l_max - c_.min_length);
    for (int64_t i = 0; i < length; ++i) {
      const bool of_topic = text.uniform() < c_.contrast;
      out.push_back(of_topic ? kFirstLetter + favoured_[topic * kFavoured + draw(text, kFavoured)]
                             : kFirstLetter + static_cast<int32_t>(draw(text, kLetters + 1)));
    }
    out.push_back(kEnd);
    return label;
  }

 private:
  PairsConfig c_;
  std::vector<int32_t> favoured_;  // [topics, kFavoured]
};

}  // namespace

std::unique_ptr<Task> make_task(const PairsConfig& config) { return std::make_unique<Pairs>(config); }

}  // namespace eigentrace
