#include "tasks/mad.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "tasks/sampling.h"
#include "tensor/error.h"

namespace eigentrace {

namespace {

enum Kind { kRecall, kNoisy, kFuzzy, kCopying, kCompression, kMemorization };
struct Baseline {
  const char* name;
  int64_t vocab, length, examples;
};
constexpr Baseline kBaselines[] = {{"in-context-recall", 16, 128, 12800},
                                   {"noisy-in-context-recall", 32, 128, 12800},
                                   {"fuzzy-in-context-recall", 16, 128, 12800},
                                   {"selective-copying", 16, 256, 12800},
                                   {"compression", 16, 32, 12800},
                                   {"memorization", 256, 32, 256}};

Kind kind_of(const std::string& task) {
  for (int k = 0; k < 6; ++k)
    if (task == kBaselines[k].name) return static_cast<Kind>(k);
  fail_usage(fmt::format("mad: task: expected one of {}, found '{}'", fmt::join(mad_tasks(), ", "), task));
}

void check(const MadConfig& c, Kind kind) {
  const auto need = [&](bool good, const std::string& message) {
    if (!good) fail_usage(fmt::format("mad: {}: {}", c.task, message));
  };
  const int64_t v = c.vocab_size, length = c.seq_len;
  need(v >= 4 && v <= 1 << 24, fmt::format("vocab_size: expected 4 to 2^24, found {}", v));
  need(length >= 4 && length <= 1 << 24, fmt::format("seq_len: expected 4 to 2^24, found {}", length));
  for (int64_t n : {c.num_train_examples, c.num_test_examples})
    need(n >= 0 && n <= UINT32_MAX, fmt::format("num_*_examples: expected 0 to 2^32 - 1, found {}", n));
  if (kind == kRecall || kind == kNoisy || kind == kMemorization)
    need(length % 2 == 0,
         fmt::format("seq_len: expected an even number, found {}; use {}", length, length + 1));
  if (kind == kNoisy) {
    need(c.frac_noise >= 0 && c.frac_noise <= 1,
         fmt::format("frac_noise: expected 0 to 1, found {}", c.frac_noise));
    need(c.noise_vocab_size >= 1 && v - c.noise_vocab_size >= 2,
         fmt::format("noise_vocab_size: expected 1 to vocab_size - 2 = {}, found {}", v - 2,
                     c.noise_vocab_size));
  }
  if (kind == kFuzzy) {
    const int64_t keys = (v - 1) / 2, k = c.k_motif_size, m = c.v_motif_size;
    need(
        k >= 1 && k <= keys && m >= 1 && m <= v - 1 - keys,
        fmt::format(
            "k_motif_size, v_motif_size: motifs have different tokens of {} keys and {} values, found motifs "
            "up to {} and {}; use a larger vocab_size",
            keys, v - 1 - keys, k, m));
    need(length > 2 * (k + m), fmt::format("seq_len: expected more than twice the longest pair, {}, found {}",
                                           2 * (k + m), length));
  }
  if (kind == kCopying)
    need(c.num_tokens_to_copy >= 1 && length >= 2 * c.num_tokens_to_copy + 1,
         fmt::format("seq_len: {} tokens to copy need at least {} positions, found {}", c.num_tokens_to_copy,
                     2 * c.num_tokens_to_copy + 1, length));
}

// A sequence, and where in it an answer stands that evaluation asks for.
struct Sequence {
  std::vector<int32_t> tokens;
  std::vector<bool> asked;
  void clear() { tokens.clear(), asked.clear(); }
  void add(int32_t token, bool is_asked) { tokens.push_back(token), asked.push_back(is_asked); }
};

class Mad final : public Task {
 public:
  explicit Mad(const MadConfig& config) : c_(mad_resolved(config)), kind_(kind_of(c_.task)) {
    check(c_, kind_);
    if (kind_ == kMemorization) {
      const int64_t keys = (c_.vocab_size - 1) / 2;
      Rng rng(c_.map_seed, kMapStream);
      std::vector<int32_t> shuffled_keys(keys), shuffled_values(keys);
      sample_distinct(rng, keys, shuffled_keys);
      sample_distinct(rng, c_.vocab_size - 1 - keys, shuffled_values);
      map_.resize(keys);
      for (int64_t i = 0; i < keys; ++i)
        map_[shuffled_keys[i]] = static_cast<int32_t>(keys) + shuffled_values[i];
    }
  }

  std::string name() const override { return MadConfig::kName; }
  int64_t size(Split split) const override {
    return split == Split::train ? c_.num_train_examples : c_.num_test_examples;
  }

  TaskShape shape(Split split) const override {
    TaskShape s;
    s.time = kind_ == kRecall || kind_ == kNoisy ? c_.seq_len - 1 : c_.seq_len;
    s.vocabulary = s.classes = c_.vocab_size;
    s.per_position = true;
    const bool next_token = kind_ <= kFuzzy && split == Split::train;
    s.labels_per_example = next_token || kind_ == kFuzzy || kind_ == kCompression ? s.time
                           : kind_ == kCopying                                    ? c_.num_tokens_to_copy
                                                                                  : c_.seq_len / 2;
    return s;
  }

 protected:
  void example(Split split, int64_t index, int64_t b, Batch& out) const override {
    Rng rng = example_rng(c_.seed, split, index);
    const auto row = out.row(b);
    if (kind_ <= kFuzzy) {
      thread_local Sequence s;
      s.clear();
      if (kind_ == kFuzzy) {
        fuzzy(rng, split != Split::train, s);
      } else {
        recall(rng, s);
      }
      for (int64_t t = 0; t < out.time; ++t) {
        row[t] = s.tokens[t];
        if (split == Split::train || s.asked[t + 1]) out.label(b, t, s.tokens[t + 1]);
      }
    } else if (kind_ == kCopying) {
      copying(rng, b, out);
    } else if (kind_ == kCompression) {
      for (int64_t t = 0; t < out.time; ++t) {
        row[t] = t + 1 < out.time ? draw(rng, c_.vocab_size - 1) : static_cast<int32_t>(c_.vocab_size - 1);
        out.label(b, t, row[t]);
      }
    } else {
      for (int64_t t = 0; t < out.time; t += 2) {
        row[t] = draw(rng, static_cast<int64_t>(map_.size()));
        row[t + 1] = static_cast<int32_t>(c_.vocab_size - 1);
        out.label(b, t + 1, map_[row[t]]);
      }
    }
  }

 private:
  static constexpr uint64_t kMapStream = 0xE9ull << 56;

  static int32_t draw(Rng& rng, int64_t n) {
    return static_cast<int32_t>(rng.below(static_cast<uint32_t>(n)));
  }

  void recall(Rng& rng, Sequence& s) const {
    const int64_t plain = c_.vocab_size - (kind_ == kNoisy ? c_.noise_vocab_size : 0), keys = plain / 2;
    const int64_t pairs = c_.seq_len / 2;
    thread_local std::vector<int32_t> value_of, shown;
    value_of.assign(keys, -1), shown.clear();
    const int64_t exempt = kind_ == kNoisy ? draw(rng, pairs - 1) : 0;  // this pair is never noise
    for (int64_t pair = 0; pair < pairs; ++pair) {
      const bool last = pair + 1 == pairs;
      if (kind_ == kNoisy && !last && rng.uniform() < c_.frac_noise && pair != exempt) {
        for (int i = 0; i < 2; ++i)
          s.add(static_cast<int32_t>(plain) + draw(rng, c_.noise_vocab_size), false);
        continue;
      }
      const int32_t key = last ? shown[draw(rng, static_cast<int64_t>(shown.size()))] : draw(rng, keys);
      const bool seen = value_of[key] >= 0;
      if (!seen) {
        value_of[key] = static_cast<int32_t>(keys) + draw(rng, plain - keys);
        shown.push_back(key);
      }
      s.add(key, false);
      s.add(value_of[key], seen);
    }
  }

  using Motif = std::vector<int32_t>;

  Motif motif(Rng& rng, int64_t size, int64_t first, int64_t count) const {
    Motif m(size);
    sample_distinct(rng, count, m);
    for (int32_t& token : m) token += static_cast<int32_t>(first);
    return m;
  }

  void fuzzy(Rng& rng, bool evaluation, Sequence& s) const {
    const int64_t keys = (c_.vocab_size - 1) / 2, values = c_.vocab_size - 1 - keys, length = c_.seq_len;
    const auto key_motif = [&] {
      return motif(rng, evaluation ? c_.k_motif_size : 1 + draw(rng, c_.k_motif_size), 0, keys);
    };
    const auto value_motif = [&] { return motif(rng, 1 + draw(rng, c_.v_motif_size), keys, values); };
    std::map<Motif, std::pair<Motif, bool>> pairs;  // key → its value, and whether it has been shown
    const auto put = [&](const Motif& key, bool always_asked) {
      auto& [value, shown] = pairs.at(key);
      for (int32_t token : key) s.add(token, false);
      for (int32_t token : value) s.add(token, shown || always_asked);
      shown = true;
    };
    const Motif probe = key_motif();
    pairs[probe] = {value_motif(), false};
    const int64_t p = static_cast<int64_t>(probe.size() + pairs[probe].first.size());
    const int64_t offset = draw(rng, length - 2 * p);
    const int64_t longest = c_.k_motif_size + c_.v_motif_size;
    while (static_cast<int64_t>(s.tokens.size()) < length - p - longest) {
      if (static_cast<int64_t>(s.tokens.size()) >= offset && !pairs[probe].second) {
        put(probe, false);
        continue;
      }
      const Motif key = key_motif();
      if (pairs.find(key) == pairs.end()) pairs[key] = {value_motif(), false};
      put(key, false);
    }
    put(probe, true);
    const auto padding = static_cast<size_t>(length + 1) - s.tokens.size();
    s.tokens.insert(s.tokens.begin(), padding, static_cast<int32_t>(c_.vocab_size - 1));
    s.asked.insert(s.asked.begin(), padding, false);
  }

  void copying(Rng& rng, int64_t b, Batch& out) const {
    const int64_t m = c_.num_tokens_to_copy, blanks = c_.seq_len - 2 * m - 1;
    const int32_t blank = static_cast<int32_t>(c_.vocab_size - 2),
                  copy = static_cast<int32_t>(c_.vocab_size - 1);
    thread_local std::vector<int32_t> before, tokens;
    before.assign(m, 0), tokens.resize(m);
    for (int32_t& token : tokens) token = draw(rng, c_.vocab_size - 2);
    for (int64_t i = 0; i < blanks; ++i) ++before[draw(rng, m)];
    const auto row = out.row(b);
    int64_t t = 0;
    for (int64_t i = 0; i < m; ++i) {
      for (int32_t k = 0; k < before[i]; ++k) row[t++] = blank;
      row[t++] = tokens[i];
    }
    row[t++] = copy;
    for (int64_t i = 0; i < m; ++i, ++t) {
      row[t] = blank;
      out.label(b, t, tokens[i]);
    }
  }

  MadConfig c_;
  Kind kind_;
  std::vector<int32_t> map_;
};

}  // namespace

std::unique_ptr<Task> make_task(const MadConfig& config) { return std::make_unique<Mad>(config); }

std::vector<std::string> mad_tasks() {
  std::vector<std::string> names;
  for (const Baseline& b : kBaselines) names.push_back(b.name);
  return names;
}

MadConfig mad_resolved(const MadConfig& config) {
  MadConfig c = config;
  const Baseline& base = kBaselines[kind_of(c.task)];
  if (c.vocab_size == 0) c.vocab_size = base.vocab;
  if (c.seq_len == 0) c.seq_len = base.length;
  if (c.num_train_examples == 0) c.num_train_examples = base.examples;
  return c;
}

std::vector<MadConfig> mad_settings(const std::string& task) {
  MadConfig base;
  base.task = task;
  base = mad_resolved(base);
  const Kind kind = kind_of(task);
  std::vector<MadConfig> settings = {base};
  const auto vary = [&](auto member, auto... harder) {
    for (const auto value : {harder...}) {
      settings.push_back(base);
      settings.back().*member = value;
    }
  };
  if (kind == kMemorization) {
    vary(&MadConfig::vocab_size, 512, 1024, 2048, 4096, 8192);
    return settings;
  }
  if (kind == kNoisy) {
    vary(&MadConfig::vocab_size, 48, 80, 144);
  } else {
    vary(&MadConfig::vocab_size, 32, 64, 128);
  }
  if (kind == kCopying) {
    vary(&MadConfig::seq_len, 512, 1024);
  } else if (kind == kCompression) {
    vary(&MadConfig::seq_len, 64, 128, 256);
  } else {
    vary(&MadConfig::seq_len, 256, 512, 1024);
  }
  vary(&MadConfig::num_train_examples, 6400, 3200, 1600, 800);
  if (kind == kNoisy) vary(&MadConfig::frac_noise, 0.4, 0.6, 0.8);
  if (kind == kCopying) vary(&MadConfig::num_tokens_to_copy, 32, 64, 96);
  return settings;
}

double mad_accuracy(std::span<const int32_t> labels, std::span<const int32_t> predictions) {
  if (labels.size() != predictions.size() || labels.empty())
    fail(fmt::format("mad_accuracy: predictions: expected one for each of {} labels (at least one), found {}",
                     labels.size(), predictions.size()));
  struct Count {
    int64_t labels = 0, right = 0;
  };
  std::map<int32_t, Count> classes;
  for (size_t i = 0; i < labels.size(); ++i) {
    ++classes[labels[i]].labels;
    classes[labels[i]].right += labels[i] == predictions[i];
    classes[predictions[i]];
  }
  double sum = 0;
  for (const auto& [y, count] : classes)
    if (count.labels > 0) sum += static_cast<double>(count.right) / static_cast<double>(count.labels);
  return sum / static_cast<double>(classes.size());
}

}  // namespace eigentrace
