#pragma once
// Small tasks that ask one thing of a memory each, so that the eigenvalues' account of it can be tested.
// Every one has a knob of difficulty; examples below show inputs over labels.
#include <memory>
#include <string>

#include "tasks/task.h"

namespace eigentrace {

/// Sizes every synthetic task has.
struct SyntheticSizes {
  int64_t num_train_examples = 100'000;
  int64_t num_validation_examples = 3'000;
  int64_t num_test_examples = 3'000;
  uint64_t seed = 42;
};

template <class V>
void visit_fields(V& v, SyntheticSizes& c) {
  v("num_train_examples", c.num_train_examples, "training examples");
  v("num_validation_examples", c.num_validation_examples, "validation examples");
  v("num_test_examples", c.num_test_examples, "test examples");
  v("seed", c.seed, "data seed, not the run's");
}

// copy: repeat n symbols after a mark (8 symbols: 0..7, blank 8, mark 9).  Knob: length.
//   input   3  1  7  9  8  8  8
//   label   .  .  .  .  3  1  7
struct CopyConfig : SyntheticSizes {
  static constexpr const char* kName = "copy";
  static constexpr const char* kAbout = "repeat a list of symbols once its end is marked; harder with length";
  int64_t length = 16;
  int64_t symbols = 8;
};
template <class V>
void visit_fields(V& v, CopyConfig& c) {
  v("length", c.length, "n, symbols to repeat: the difficulty; T = 2n + 1");
  v("symbols", c.symbols, "different symbols; the vocabulary has two more");
  visit_fields(v, static_cast<SyntheticSizes&>(c));
}

// delay: say the symbol of k steps ago, at every step.  Knob: delay.
//   input   3  1  7  4  0        delay 2
//   label   .  .  3  1  7
struct DelayConfig : SyntheticSizes {
  static constexpr const char* kName = "delay";
  static constexpr const char* kAbout = "say the symbol of k steps ago at every step; harder with delay";
  int64_t delay = 16;
  int64_t length = 128;
  int64_t symbols = 8;
};
template <class V>
void visit_fields(V& v, DelayConfig& c) {
  v("delay", c.delay, "k, steps to remember: the difficulty; below length");
  v("length", c.length, "T");
  v("symbols", c.symbols, "different symbols");
  visit_fields(v, static_cast<SyntheticSizes&>(c));
}

// parity: is the number of ones so far odd?  Knob: length.
//   input   0  1  1  0  1
//   label   0  1  0  0  1
struct ParityConfig : SyntheticSizes {
  static constexpr const char* kName = "parity";
  static constexpr const char* kAbout = "parity of the ones so far, at every step; harder with length";
  int64_t length = 64;
};
template <class V>
void visit_fields(V& v, ParityConfig& c) {
  v("length", c.length, "T: the difficulty");
  visit_fields(v, static_cast<SyntheticSizes&>(c));
}

// modular: the sum so far, modulo m.  Knobs: modulus, length.
//   input   2  4  1  3  0        modulus 5
//   label   2  1  2  0  0
struct ModularConfig : SyntheticSizes {
  static constexpr const char* kName = "modular";
  static constexpr const char* kAbout = "sum so far modulo m, at every step; harder with modulus and length";
  int64_t modulus = 5;
  int64_t length = 64;
};
template <class V>
void visit_fields(V& v, ModularConfig& c) {
  v("modulus", c.modulus, "m: the difficulty; symbols 0..m-1");
  v("length", c.length, "T");
  visit_fields(v, static_cast<SyntheticSizes&>(c));
}

// induction: what followed the mark when it was seen before? (8 symbols: 0..7, mark 8)  Knob: length.
//   input   3  1  8  5  2  0  8
//   label   .  .  .  .  .  .  5
struct InductionConfig : SyntheticSizes {
  static constexpr const char* kName = "induction";
  static constexpr const char* kAbout = "induction heads: repeat what followed the mark; harder with length";
  int64_t length = 256;
  int64_t symbols = 16;
};
template <class V>
void visit_fields(V& v, InductionConfig& c) {
  v("length", c.length, "T: the difficulty; the mark stands somewhere and at the end");
  v("symbols", c.symbols, "different symbols; the vocabulary has the mark besides");
  visit_fields(v, static_cast<SyntheticSizes&>(c));
}

/// Errors (usage): sizes that do not fit.
std::unique_ptr<Task> make_task(const CopyConfig& config);
std::unique_ptr<Task> make_task(const DelayConfig& config);
std::unique_ptr<Task> make_task(const ParityConfig& config);
std::unique_ptr<Task> make_task(const ModularConfig& config);
std::unique_ptr<Task> make_task(const InductionConfig& config);

}  // namespace eigentrace
