#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <string>

#include "tasks/config.h"
#include "tensor/error.h"

using namespace eigentrace;

namespace {

struct Example {
  std::vector<int32_t> tokens;
  std::map<int64_t, int32_t> labels;  // position → label
};

std::vector<Example> examples(const MadConfig& c, Split split, int64_t count) {
  const auto task = make_task(c);
  std::vector<int64_t> indices(count);
  for (int64_t i = 0; i < count; ++i) indices[i] = i;
  Batch batch;
  task->make(split, indices, batch);
  REQUIRE(batch.time == task->shape(split).time);
  std::vector<Example> out(count);
  for (int64_t b = 0; b < count; ++b) out[b].tokens.assign(batch.row(b).begin(), batch.row(b).end());
  for (int64_t i = 0; i < batch.label_count; ++i)
    out[batch.label_rows[i] / batch.time].labels[batch.label_rows[i] % batch.time] = batch.labels[i];
  return out;
}

MadConfig named(const char* task) {
  MadConfig c;
  c.task = task;
  return c;
}

}  // namespace

TEST_CASE("mad: in-context recall trains on every next token and asks for the values of keys seen before") {
  const MadConfig c = named("in-context-recall");
  for (const Example& e : examples(c, Split::train, 63)) {
    REQUIRE(e.tokens.size() == 127);
    REQUIRE(e.labels.size() == 127);
    for (int64_t t = 0; t < 126; ++t) REQUIRE(e.labels.at(t) == e.tokens[t + 1]);
  }
  double first_repeat = 0;
  for (const Example& e : examples(c, Split::test, 63)) {
    REQUIRE(e.tokens.size() == 127);
    std::map<int32_t, int32_t> value_of;
    for (int64_t t = 0; t < 127; t += 2) {
      const int32_t key = e.tokens[t];
      REQUIRE(key >= 0);
      REQUIRE(key < 8);
      const bool seen = value_of.count(key) == 1;
      REQUIRE(e.labels.count(t) == seen);
      if (t == 126) {
        REQUIRE(seen);  // the last key is one that was shown
        CHECK(e.labels.at(t) == value_of[key]);
        continue;
      }
      const int32_t value = e.tokens[t + 1];
      REQUIRE(value >= 8);
      REQUIRE(value < 16);
      if (seen) {
        REQUIRE(e.labels.at(t) == value);
        REQUIRE(value_of[key] == value);
      }
      value_of[key] = value;
      REQUIRE(e.labels.count(t + 1) == 0);
    }
    first_repeat += static_cast<double>(e.labels.size());
  }
  // 63 keys uniform over 8: 64 pairs less the 8 (1 − (7/8)^63) different keys ≈ 56.0 labels
  CHECK(std::abs(first_repeat / 63 - 56.0) < 0.1);
}

TEST_CASE("mad: noisy recall replaces pairs by noise, never all and never the last") {
  MadConfig c = named("noisy-in-context-recall");
  for (double frac : {0.2, 0.8, 1.0}) {
    c.frac_noise = frac;
    double noise = 0;
    const int examples_asked = 200;
    for (const Example& e : examples(c, Split::test, examples_asked)) {
      REQUIRE(e.tokens.size() == 127);
      std::map<int32_t, int32_t> value_of;
      int noisy = 0;
      for (int64_t t = 0; t < 127; t += 2) {
        const int32_t key = e.tokens[t];
        if (key >= 16) {
          REQUIRE(key < 32);
          REQUIRE(t < 126);
          REQUIRE(e.tokens[t + 1] >= 16);
          REQUIRE(e.labels.count(t) == 0);
          ++noisy;
          continue;
        }
        REQUIRE(key < 8);
        REQUIRE(e.labels.count(t) == value_of.count(key));
        if (t == 126) {
          CHECK(e.labels.at(t) == value_of.at(key));
        } else {
          REQUIRE(e.tokens[t + 1] >= 8);
          REQUIRE(e.tokens[t + 1] < 16);
          value_of[key] = e.tokens[t + 1];
        }
      }
      CHECK(noisy <= 62);
      noise += noisy;
    }
    // 63 pairs can be noise, one of them is exempt
    const double n = examples_asked * 62.0;
    CHECK(std::abs(noise / n - frac) <= 4.5 * std::sqrt(frac * (1 - frac) / n));
  }
}

TEST_CASE("mad: fuzzy recall has motifs, left padding and a probe asked at the end") {
  const MadConfig c = named("fuzzy-in-context-recall");
  int answered = 0, padded = 0;
  for (const Example& e : examples(c, Split::test, 200)) {
    REQUIRE(e.tokens.size() == 128);
    // The last key (3 tokens) and the value behind it (1..3 tokens, the last not in the input).
    const int64_t first_label = std::prev(e.labels.end())->first;
    CHECK(first_label == 127);
    int64_t t = 0;
    while (e.tokens[t] == 15) ++t;
    padded += t > 0;
    for (int64_t i = t; i < 128; ++i) REQUIRE(e.tokens[i] < 15);
    // Read it again: keys have 3 tokens below 7, values follow until the next key.
    std::map<std::vector<int32_t>, std::vector<int32_t>> value_of;
    while (t < 128) {
      const std::vector<int32_t> key(e.tokens.begin() + t, e.tokens.begin() + t + 3);
      REQUIRE(std::set<int32_t>(key.begin(), key.end()).size() == 3);
      for (int32_t k : key) REQUIRE(k < 7);
      const bool seen = value_of.count(key) == 1;
      int64_t end = t + 3;
      while (end < 128 && e.tokens[end] >= 7) ++end;
      std::vector<int32_t> value(e.tokens.begin() + t + 3, e.tokens.begin() + end);
      REQUIRE(value.size() <= 3);
      if (end == 128) {  // the probe: its last token is only a label
        value.push_back(e.labels.at(127));
        answered += seen;
        if (seen) CHECK(value_of[key] == value);
        for (size_t k = 0; k < value.size(); ++k)
          CHECK(e.labels.at(t + 2 + static_cast<int64_t>(k)) == value[k]);
        break;
      }
      for (size_t k = 0; k < value.size(); ++k)
        REQUIRE(e.labels.count(t + 2 + static_cast<int64_t>(k)) == seen);
      if (seen) REQUIRE(value_of[key] == value);
      value_of[key] = value;
      t = end;
    }
  }
  CHECK(padded > 150);
  // The offset is uniform below L − 2p: with p = 4..6 it lies beyond the last place in a few examples of a
  // hundred.
  CHECK(answered > 180);
  CHECK(answered < 200);
  std::set<size_t> key_sizes;
  for (const Example& e : examples(c, Split::train, 50)) {
    REQUIRE(e.labels.size() == 128);  // padding included
    for (int64_t t = 0; t < 127; ++t) REQUIRE(e.labels.at(t) == e.tokens[t + 1]);
    for (size_t t = 0, run = 0; t < 128; ++t) {
      if (e.tokens[t] < 7) {
        ++run;
      } else {
        if (run > 0) key_sizes.insert(run);
        run = 0;
      }
    }
  }
  CHECK(key_sizes == std::set<size_t>{1, 2, 3});
}

TEST_CASE("mad: selective copying asks for the tokens in order, after blanks placed before uniform ones") {
  MadConfig c = named("selective-copying");
  c.seq_len = 63, c.num_tokens_to_copy = 5;
  double blanks_first = 0;
  for (const Example& e : examples(c, Split::train, 500)) {
    REQUIRE(e.tokens.size() == 63);
    REQUIRE(e.labels.size() == 5);
    std::vector<int32_t> kept;
    for (int64_t t = 0; t < 57; ++t) {
      if (kept.empty() && e.tokens[t] == 14) ++blanks_first;
      if (e.tokens[t] != 14) kept.push_back(e.tokens[t]);
    }
    REQUIRE(kept.size() == 5);
    REQUIRE(e.tokens[56] < 14);  // no blank after the last token
    REQUIRE(e.tokens[57] == 15);
    for (int64_t i = 0; i < 5; ++i) {
      REQUIRE(kept[i] < 14);
      REQUIRE(e.tokens[58 + i] == 14);
      REQUIRE(e.labels.at(58 + i) == kept[i]);
    }
  }
  CHECK(std::abs(blanks_first / 500 - 52.0 / 5) < 4.5 * std::sqrt(52 * 0.16 / 500));
}

TEST_CASE("mad: compression asks for every input, memorization for the value of one fixed map") {
  for (const Example& e : examples(named("compression"), Split::test, 20)) {
    REQUIRE(e.tokens.size() == 32);
    REQUIRE(e.labels.size() == 32);
    for (int64_t t = 0; t < 32; ++t) {
      REQUIRE(e.labels.at(t) == e.tokens[t]);
      REQUIRE((e.tokens[t] == 15) == (t == 31));
    }
  }
  MadConfig c = named("memorization");
  std::map<int32_t, int32_t> value_of;
  std::set<int32_t> values;
  for (Split split : {Split::train, Split::test}) {
    for (const Example& e : examples(c, split, 256)) {
      REQUIRE(e.labels.size() == 16);
      for (int64_t t = 0; t < 32; t += 2) {
        REQUIRE(e.tokens[t] < 127);
        REQUIRE(e.tokens[t + 1] == 255);
        const int32_t value = e.labels.at(t + 1);
        REQUIRE(value >= 127);
        REQUIRE(value < 255);
        REQUIRE(value_of.emplace(e.tokens[t], value).first->second == value);
        values.insert(value);
      }
    }
  }
  CHECK(value_of.size() == 127);
  CHECK(values.size() == 127);
}

TEST_CASE("mad: settings are the baseline and each change alone") {
  size_t total = 0;
  for (const std::string& task : mad_tasks()) {
    const std::vector<MadConfig> settings = mad_settings(task);
    total += settings.size();
    for (const MadConfig& c : settings) {
      CHECK_NOTHROW(make_task(c));
      int changed = 0;
      changed += c.vocab_size != settings[0].vocab_size, changed += c.seq_len != settings[0].seq_len;
      changed += c.num_train_examples != settings[0].num_train_examples;
      changed += c.frac_noise != settings[0].frac_noise;
      changed += c.num_tokens_to_copy != settings[0].num_tokens_to_copy;
      CHECK(changed == (&c == &settings[0] ? 0 : 1));
    }
  }
  CHECK(total == 11 + 14 + 11 + 13 + 11 + 6);
  CHECK(mad_settings("compression")[0].seq_len == 32);
}

TEST_CASE("mad: accuracy is the mean over classes among labels and predictions") {
  CHECK(mad_accuracy(std::vector<int32_t>{1, 1, 1, 2}, std::vector<int32_t>{1, 1, 1, 2}) == 1.0);
  // class 1: 2 of 3, class 2: 0 of 1, class 5: only predicted
  CHECK(mad_accuracy(std::vector<int32_t>{1, 1, 1, 2}, std::vector<int32_t>{1, 1, 5, 1}) ==
        doctest::Approx(2.0 / 9));
  CHECK_THROWS_AS(mad_accuracy(std::vector<int32_t>{1}, std::vector<int32_t>{}), Error);
}

TEST_CASE("mad: impossible sizes are usage errors") {
  const auto bad = [](const char* task, auto member, auto value) {
    MadConfig c = named(task);
    c.*member = value;
    CHECK_THROWS_AS(make_task(c), UsageError);
  };
  bad("recall", &MadConfig::seq_len, 128);
  bad("in-context-recall", &MadConfig::seq_len, 127);
  bad("in-context-recall", &MadConfig::vocab_size, 3);
  bad("noisy-in-context-recall", &MadConfig::noise_vocab_size, 31);
  bad("noisy-in-context-recall", &MadConfig::frac_noise, 1.5);
  bad("fuzzy-in-context-recall", &MadConfig::k_motif_size, 8);
  bad("fuzzy-in-context-recall", &MadConfig::seq_len, 12);
  bad("selective-copying", &MadConfig::num_tokens_to_copy, 128);
  bad("compression", &MadConfig::seq_len, 2);
  bad("memorization", &MadConfig::num_test_examples, -1);
}
