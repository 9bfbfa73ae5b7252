#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <numeric>
#include <stdexcept>
#include <string>

#include "tasks/loader.h"
#include "tasks/mqar.h"
#include "tasks/sampling.h"
#include "tensor/error.h"

using namespace eigentrace;

namespace {

std::unique_ptr<Task> small_task(int64_t examples) {
  MqarConfig c;
  c.vocab_size = 100, c.input_seq_length = 16, c.num_kv_pairs = 3, c.num_train_examples = examples;
  return make_task(c);
}

// A task whose lengths vary and that fails at one example; it counts the batches asked for.
class Ragged final : public Task {
 public:
  explicit Ragged(int64_t bad = -1) : bad_(bad) {}
  std::string name() const override { return "ragged"; }
  int64_t size(Split split) const override { return split == Split::train ? 10 : 0; }
  TaskShape shape(Split) const override {
    TaskShape s;
    s.time = 10, s.vocabulary = 11, s.classes = 2, s.fixed_length = false, s.documents = 2;
    return s;
  }
  int64_t asked() const { return asked_; }

 protected:
  void fill(Split split, std::span<const int64_t> indices, const Padding& padding,
            Batch& out) const override {
    ++asked_;
    int64_t longest = 1;
    for (int64_t i : indices) {
      if (i == bad_) throw std::runtime_error("example " + std::to_string(i) + " is broken");
      longest = std::max(longest, i);
    }
    out.reset(shape(split), static_cast<int64_t>(indices.size()), longest, padding);
    for (size_t e = 0; e < indices.size(); ++e) {
      for (int64_t d : {int64_t{0}, out.batch / 2}) {
        out.lengths[e + d] = static_cast<int32_t>(indices[e]);
        for (int64_t t = 0; t < indices[e]; ++t) out.row(static_cast<int64_t>(e) + d)[t] = 10;
      }
      out.label_sequence(static_cast<int64_t>(e), 1);
    }
  }

 private:
  int64_t bad_;
  mutable std::atomic<int64_t> asked_ = 0;
};

/// Three examples of four positions whose labels lie in 0..9, but for one.
class Mislabelled final : public Task {
 public:
  Mislabelled(bool per_position, int32_t label) : per_position_(per_position), label_(label) {}
  std::string name() const override { return "mislabelled"; }
  int64_t size(Split) const override { return 3; }
  TaskShape shape(Split) const override {
    TaskShape s;
    s.time = 4, s.vocabulary = 11, s.classes = 10, s.per_position = per_position_;
    return s;
  }

 protected:
  void example(Split, int64_t index, int64_t b, Batch& out) const override {
    const int32_t label = index == 2 ? label_ : 9;
    per_position_ ? out.label(b, 3, label) : out.label_sequence(b, label);
  }

 private:
  bool per_position_;
  int32_t label_;
};

}  // namespace

TEST_CASE("task: a label out of range is an error that names it, its example and the range") {
  Batch batch;
  const std::vector<int64_t> all = {0, 2, 1}, good = {1, 0};
  const auto says = [&](const Mislabelled& task, const char* text) {
    CHECK_THROWS_WITH_AS(task.make(Split::train, all, batch), doctest::Contains(text), Error);
    CHECK_NOTHROW(task.make(Split::train, good, batch, {.examples = 4}));
  };
  says({false, 12345},
       "task mislabelled: label 12345 of train example 2 is out of range 0…9; check the data");
  says({false, 10}, "label 10 of train example 2 is out of range 0…9");
  says({true, -1}, "label -1 of train example 2, position 3, is out of range 0…9");
  CHECK_NOTHROW(Mislabelled(true, 0).make(Split::train, all, batch));
}

TEST_CASE("loader: every epoch shows each example once, in an order of its own") {
  const auto task = small_task(100);
  Loader loader(*task, Split::train, {.batch_size = 7, .seed = 3, .epochs = 2});
  CHECK(loader.steps_per_epoch() == 15);
  for (uint64_t epoch = 0; epoch < 2; ++epoch) {
    const std::vector<int64_t> order = permutation(3, epoch, 100);
    std::vector<int64_t> sorted = order;
    std::sort(sorted.begin(), sorted.end());
    for (int64_t i = 0; i < 100; ++i) REQUIRE(sorted[i] == i);
    for (int64_t step = 0, at = 0; step < 15; ++step) {
      const Batch* batch = loader.next();
      REQUIRE(batch != nullptr);
      CHECK(batch->epoch == static_cast<int64_t>(epoch));
      CHECK(batch->step == step);
      CHECK(batch->examples == (step < 14 ? 7 : 2));
      Batch expected;
      task->make(Split::train, {order.data() + at, static_cast<size_t>(batch->examples)}, expected);
      CHECK(batch->tokens == expected.tokens);
      CHECK(batch->labels == expected.labels);
      at += batch->examples;
    }
  }
  CHECK(loader.next() == nullptr);
  CHECK(loader.next() == nullptr);
  CHECK(permutation(3, 0, 100) != permutation(3, 1, 100));
  CHECK(permutation(3, 0, 100) != permutation(4, 0, 100));
}

TEST_CASE("loader: a loader resumed anywhere gives what the first would have given") {
  const auto task = small_task(63);
  const LoaderOptions options{.batch_size = 10, .seed = 1};
  for (int64_t steps : {0, 1, 6, 7, 16}) {
    Loader first(*task, Split::train, options);
    for (int64_t s = 0; s < steps; ++s) first.next();
    Loader second(*task, Split::train, options, first.position());
    for (int s = 0; s < 9; ++s) {
      const Batch *a = first.next(), *b = second.next();
      CHECK(a->tokens == b->tokens);
      CHECK(a->epoch == b->epoch);
      CHECK(a->step == b->step);
    }
  }
}

TEST_CASE("loader: the last batch can be padded with rows that carry no label") {
  const auto task = small_task(12);
  Loader loader(*task, Split::train, {.batch_size = 5, .shuffle = false, .epochs = 1, .pad_last = true});
  loader.next(), loader.next();
  const Batch* batch = loader.next();
  REQUIRE(batch != nullptr);
  CHECK(batch->examples == 2);
  CHECK(batch->batch == 5);
  CHECK(batch->label_count == 6);
  REQUIRE(batch->label_rows.size() == 15);
  for (int i = 0; i < 15; ++i) CHECK(batch->label_weights[i] == (i < 6 ? 1.0f : 0.0f));
  CHECK(std::is_sorted(batch->label_rows.begin(), batch->label_rows.end()));
  CHECK(batch->label_rows.back() == 5 * 16 - 1);
  CHECK(batch->lengths == std::vector<int32_t>{16, 16, 1, 1, 1});
  CHECK(loader.next() == nullptr);
}

TEST_CASE(
    "loader: varying lengths are padded to the longest, rounded up, and pairs of documents stay apart") {
  const Ragged task;
  Loader loader(task, Split::train,
                {.batch_size = 4, .shuffle = false, .epochs = 1, .pad_last = true, .time_multiple = 4});
  const Batch* batch = loader.next();
  CHECK(batch->time == 4);
  CHECK(batch->valid_time == 3);
  CHECK(batch->lengths == std::vector<int32_t>{0, 1, 2, 3, 0, 1, 2, 3});
  batch = loader.next();
  CHECK(batch->time == 8);
  CHECK(batch->valid_time == 7);
  batch = loader.next();
  CHECK(batch->time == 10);  // rounding up ends at the longest example there is
  CHECK(batch->valid_time == 9);
  CHECK(batch->batch == 8);
  CHECK(batch->lengths == std::vector<int32_t>{8, 9, 1, 1, 8, 9, 1, 1});
  CHECK(batch->label_count == 2);
  CHECK(batch->label_rows == std::vector<int32_t>{0, 1, 7, 7});
}

TEST_CASE("loader: sorted_order is a stable sort of the rows by token") {
  const auto task = small_task(63);
  Loader loader(*task, Split::train, {.batch_size = 9});
  for (int s = 0; s < 8; ++s) {
    const Batch& batch = *loader.next();
    std::vector<int32_t> expected(batch.tokens.size());
    std::iota(expected.begin(), expected.end(), 0);
    std::stable_sort(expected.begin(), expected.end(),
                     [&](int32_t a, int32_t b) { return batch.tokens[a] < batch.tokens[b]; });
    CHECK(batch.sorted_order == expected);
  }
  Batch wrong;
  wrong.tokens = {3, 100};
  CHECK_THROWS_AS(sort_tokens(wrong, 100), Error);
}

TEST_CASE("loader: an error in the thread reaches the consumer after the batches before it") {
  const Ragged task(6);
  Loader loader(task, Split::train, {.batch_size = 2, .shuffle = false});
  for (int s = 0; s < 3; ++s) CHECK(loader.next() != nullptr);
  CHECK_THROWS_WITH(loader.next(), "example 6 is broken");
  CHECK_THROWS_WITH(loader.next(), "example 6 is broken");
}

TEST_CASE("loader: it stops at once, however far it has run ahead") {
  for (int i = 0; i < 50; ++i) {
    const Ragged task;
    const int taken = i % 4, buffers = 2 + i % 3;
    {
      Loader loader(task, Split::train, {.batch_size = 3, .buffers = buffers});
      for (int s = 0; s < taken; ++s) CHECK(loader.next() != nullptr);
    }
    CHECK(task.asked() >= taken);
    CHECK(task.asked() < taken + buffers);
  }
}

TEST_CASE("loader: what cannot be loaded is an error that says so") {
  const auto task = small_task(10);
  CHECK_THROWS_AS(Loader(*task, Split::train, {.batch_size = 0}), UsageError);
  CHECK_THROWS_AS(Loader(*task, Split::train, {.batch_size = 5}, {0, 2}), Error);
  const Ragged ragged;
  CHECK_THROWS_AS(Loader(ragged, Split::test, {.batch_size = 5}), UsageError);
}
