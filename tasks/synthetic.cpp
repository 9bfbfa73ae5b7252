#include "tasks/synthetic.h"

#include <fmt/format.h>

#include "tasks/sampling.h"
#include "tensor/error.h"

namespace eigentrace {

namespace {

// What the five have in common: sizes, labels at positions, symbols drawn uniformly.
class Synthetic : public Task {
 public:
  Synthetic(const char* name, const SyntheticSizes& sizes, int64_t time, int64_t vocabulary, int64_t classes,
            int64_t labels)
      : name_(name), sizes_(sizes) {
    shape_.time = time;
    shape_.vocabulary = vocabulary;
    shape_.classes = classes;
    shape_.per_position = true;
    shape_.labels_per_example = labels;
    for (int64_t n : {sizes.num_train_examples, sizes.num_validation_examples, sizes.num_test_examples})
      if (n < 0 || n > UINT32_MAX)
        fail_usage(fmt::format("{}: num_*_examples: expected 0 to 2^32 - 1, found {}", name, n));
  }
  std::string name() const override { return name_; }
  int64_t size(Split split) const override {
    return split == Split::train        ? sizes_.num_train_examples
           : split == Split::validation ? sizes_.num_validation_examples
                                        : sizes_.num_test_examples;
  }
  TaskShape shape(Split) const override { return shape_; }

 protected:
  Rng rng(Split split, int64_t index) const { return example_rng(sizes_.seed, split, index); }
  static int32_t draw(Rng& rng, int64_t n) {
    return static_cast<int32_t>(rng.below(static_cast<uint32_t>(n)));
  }

 private:
  const char* name_;
  SyntheticSizes sizes_;
  TaskShape shape_;
};

// Returns `value` if it lies in low..high.
int64_t within(const char* task, const char* key, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high)
    fail_usage(fmt::format("{}: {}: expected {} to {}, found {}", task, key, low, high, value));
  return value;
}
constexpr int64_t kMost = 1 << 24;

class Copy final : public Synthetic {
 public:
  explicit Copy(const CopyConfig& c)
      : Synthetic(c.kName, c, 2 * within(c.kName, "length", c.length, 1, kMost) + 1,
                  within(c.kName, "symbols", c.symbols, 1, kMost) + 2, c.symbols + 2, c.length),
        c_(c) {}

 protected:
  void example(Split split, int64_t index, int64_t b, Batch& out) const override {
    Rng random = rng(split, index);
    const auto row = out.row(b);
    const int64_t n = c_.length;
    for (int64_t i = 0; i < n; ++i) row[i] = draw(random, c_.symbols);
    row[n] = static_cast<int32_t>(c_.symbols + 1);
    for (int64_t i = 0; i < n; ++i) {
      row[n + 1 + i] = static_cast<int32_t>(c_.symbols);
      out.label(b, n + 1 + i, row[i]);
    }
  }

 private:
  CopyConfig c_;
};

class Delay final : public Synthetic {
 public:
  explicit Delay(const DelayConfig& c)
      : Synthetic(c.kName, c, within(c.kName, "length", c.length, 1, kMost),
                  within(c.kName, "symbols", c.symbols, 1, kMost), c.symbols,
                  c.length - within(c.kName, "delay", c.delay, 0, c.length - 1)),
        c_(c) {}

 protected:
  void example(Split split, int64_t index, int64_t b, Batch& out) const override {
    Rng random = rng(split, index);
    const auto row = out.row(b);
    for (int64_t t = 0; t < c_.length; ++t) {
      row[t] = draw(random, c_.symbols);
      if (t >= c_.delay) out.label(b, t, row[t - c_.delay]);
    }
  }

 private:
  DelayConfig c_;
};

// Running sum modulo m: parity is m = 2.
class Modular final : public Synthetic {
 public:
  Modular(const char* name, const SyntheticSizes& sizes, int64_t modulus, int64_t length)
      : Synthetic(name, sizes, within(name, "length", length, 1, kMost),
                  within(name, "modulus", modulus, 2, kMost), modulus, length),
        modulus_(modulus) {}

 protected:
  void example(Split split, int64_t index, int64_t b, Batch& out) const override {
    Rng random = rng(split, index);
    int64_t sum = 0;
    for (int64_t t = 0; t < out.time; ++t) {
      const int32_t x = draw(random, modulus_);
      out.row(b)[t] = x;
      sum = (sum + x) % modulus_;
      out.label(b, t, static_cast<int32_t>(sum));
    }
  }

 private:
  int64_t modulus_;
};

class Induction final : public Synthetic {
 public:
  explicit Induction(const InductionConfig& c)
      : Synthetic(c.kName, c, within(c.kName, "length", c.length, 3, kMost),
                  within(c.kName, "symbols", c.symbols, 1, kMost) + 1, c.symbols + 1, 1),
        c_(c) {}

 protected:
  void example(Split split, int64_t index, int64_t b, Batch& out) const override {
    Rng random = rng(split, index);
    const auto row = out.row(b);
    const int64_t last = c_.length - 1;
    for (int64_t t = 0; t < last; ++t) row[t] = draw(random, c_.symbols);
    const int64_t at = draw(random, last - 1);  // a symbol follows it before the end
    row[at] = row[last] = static_cast<int32_t>(c_.symbols);
    out.label(b, last, row[at + 1]);
  }

 private:
  InductionConfig c_;
};

}  // namespace

std::unique_ptr<Task> make_task(const CopyConfig& config) { return std::make_unique<Copy>(config); }
std::unique_ptr<Task> make_task(const DelayConfig& config) { return std::make_unique<Delay>(config); }
std::unique_ptr<Task> make_task(const ParityConfig& config) {
  return std::make_unique<Modular>(ParityConfig::kName, config, 2, config.length);
}
std::unique_ptr<Task> make_task(const ModularConfig& config) {
  return std::make_unique<Modular>(ModularConfig::kName, config, config.modulus, config.length);
}
std::unique_ptr<Task> make_task(const InductionConfig& config) { return std::make_unique<Induction>(config); }

}  // namespace eigentrace
