#include <doctest/doctest.h>

#include "autograd/ops_linear.h"
#include "autograd/ops_loss.h"
#include "tensor/error.h"
#include "tests/op_checks.h"

using namespace eigentrace;
using namespace eigentrace::testing;

namespace {

/// Every `step`-th row labelled, then two rows of padding that point nowhere.
Labels some_labels(int64_t rows, int64_t classes, int64_t step) {
  std::vector<int32_t> where, labels;
  std::vector<float> weights;
  Rng rng(9);
  for (int64_t r = 0; r < rows; r += step) {
    where.push_back(int32_t(r)), weights.push_back(1);
    labels.push_back(int32_t(rng.below(uint32_t(classes))));
  }
  const double count = double(where.size());
  for (int i = 0; i < 2; ++i) where.push_back(0), labels.push_back(0), weights.push_back(0);
  const int64_t M = int64_t(where.size());
  return {Tensor::from(where, {M}), Tensor::from(labels, {M}), Tensor::from(weights, {M}),
          Tensor::from(std::vector<double>{count}, {1})};
}

}  // namespace

TEST_CASE("cross_entropy: gradients, and the values of the definition") {
  for (const auto& [rows, classes, step] : {std::array{1, 1, 1}, {63, 7, 3}, {100, 33, 1}}) {
    const Labels labels = some_labels(rows, classes, step);
    const TestedFunction f = [&](Tape&, const std::vector<Var>& in) {
      return std::vector<Var>{cross_entropy(in[0], labels).value};
    };
    const Tensor logits = random_tensor({rows, classes}, 1, 3);
    check_op(f, {logits}, {"logits"});
    Context ctx;
    Tape tape(ctx);
    const Loss loss = cross_entropy(tape.leaf(logits), labels);
    const std::vector<double> z = logits.to_vector<double>();
    const std::vector<int32_t> where = labels.rows.to_vector<int32_t>(),
                               label = labels.labels.to_vector<int32_t>();
    double sum = 0, correct = 0;
    for (size_t m = 0; m + 2 < where.size(); ++m) {
      const double* row = z.data() + where[m] * classes;
      double total = 0;
      for (int j = 0; j < classes; ++j) total += std::exp(row[j]);
      sum += std::log(total) - row[label[m]];
      const int best = int(std::max_element(row, row + classes) - row);
      CHECK(loss.argmax.to_vector<int32_t>()[m] == best);
      correct += best == label[m];
    }
    CHECK(loss.loss_sum.item() == doctest::Approx(sum).epsilon(1e-12));
    CHECK(loss.correct.item() == correct);
    CHECK(loss.value.value().item() == doctest::Approx(sum / double(where.size() - 2)).epsilon(1e-12));
    CHECK(loss.argmax.to_vector<int32_t>().back() == -1);
  }
}

TEST_CASE("cross_entropy: huge logits stay finite, ties go to the lowest class") {
  Context ctx;
  ctx.poison = true;
  Tape tape(ctx);
  const Labels labels = some_labels(1, 3, 1);
  Labels second = labels;
  second.labels = Tensor::from(std::vector<int32_t>{2, 0, 0}, {3});
  const Var z = tape.leaf(Tensor::from(std::vector<float>{1e30f, 1e30f, -1e30f}, {1, 3}));
  const Loss loss = cross_entropy(z, second);
  CHECK(loss.loss_sum.item() == doctest::Approx(2e30));
  CHECK(loss.argmax.to_vector<int32_t>()[0] == 0);
  tape.backward(loss.value);
  CHECK(tape.gradient_of(z).to_vector<double>() == std::vector<double>{0.5, 0.5, -1});
}

TEST_CASE("cross_entropy: rows and classes out of range are named") {
  Context ctx;
  Tape tape(ctx);
  const Var z = tape.leaf(random_tensor({4, 3}, 1));
  Labels labels = some_labels(4, 3, 1);
  labels.labels = Tensor::from(std::vector<int32_t>{0, 3, 0, 0, 0, 0}, {6});
  CHECK_THROWS_WITH_AS(cross_entropy(z, labels), doctest::Contains("a class below 3"), Error);
  labels = some_labels(4, 3, 1);
  labels.rows = Tensor::from(std::vector<int32_t>{0, 2, 2, 3, 0, 0}, {6});
  CHECK_THROWS_WITH_AS(cross_entropy(z, labels), doctest::Contains("ascending rows"), Error);
}

TEST_CASE("vocabulary_head: gradients with and without bias, over several blocks") {
  for (const auto& [rows, classes, step] : {std::array{1, 1, 1}, {63, 33, 3}, {150, 100, 1}}) {
    const Labels labels = some_labels(rows, classes, step);
    const TestedFunction f = [&](Tape&, const std::vector<Var>& in) {
      return std::vector<Var>{vocabulary_head(in[0], in[1], in[2], labels).value};
    };
    const TestedFunction without = [&](Tape&, const std::vector<Var>& in) {
      return std::vector<Var>{vocabulary_head(in[0], in[1], Var(), labels).value};
    };
    const Tensor x = random_tensor({rows, 7}, 1), w = random_tensor({classes, 7}, 2);
    // a loss of about 5 with gradients of about 1e-3: differences of it carry 5e-7 of rounding
    check_op(f, {x, w, random_tensor({classes}, 3)}, {"x", "weight", "bias"}, {.gradient = 1e-6});
    check_op(without, {x, w}, {"x", "weight"}, {.gradient = 1e-6});
  }
}

TEST_CASE("vocabulary_head: equals cross_entropy of linear, blocks and all") {
  const int64_t rows = 300, D = 5, V = 40000;  // 64 rows of logits a block in double
  const Labels labels = some_labels(rows, V, 2);
  const Tensor x = random_tensor({1, rows, D}, 1), w = random_tensor({V, D}, 2, 0.5),
               b = random_tensor({V}, 3);
  Context ctx;
  ctx.poison = true;
  const auto run = [&](bool head) {
    return run_op(
        ctx,
        [&](Tape&, const std::vector<Var>& in) {
          const Loss loss = head ? vocabulary_head(in[0], in[1], in[2], labels)
                                 : cross_entropy(linear(in[0], in[1], in[2]), labels);
          return std::vector<Var>{loss.value};
        },
        {x, w, b}, DType::f64);
  };
  CHECK(relative_difference(run(true), run(false)) < 1e-12);
  // the logits never exist as a whole
  ctx.slab().reset_peak();
  run(true);
  CHECK(ctx.slab().peak() < size_t(64 * V * 8 + 3 * V * (D + 1) * 8 + (1 << 20)));
}

TEST_CASE("vocabulary_head: without recording only the value is computed") {
  const Labels labels = some_labels(63, 33, 3);
  Context ctx;
  ctx.poison = true;
  const auto value = [&](bool recording) {
    Tape tape(ctx, recording);
    const Loss loss = vocabulary_head(tape.leaf(random_tensor({63, 7}, 1)),
                                      tape.leaf(random_tensor({33, 7}, 2)), Var(), labels);
    return std::vector<double>{loss.value.value().item(), loss.correct.item(), loss.loss_sum.item()};
  };
  const std::vector<double> recorded = value(true), evaluated = value(false);
  for (size_t i = 0; i < 3; ++i) CHECK(evaluated[i] == doctest::Approx(recorded[i]).epsilon(1e-14));
}

TEST_CASE("log_softmax: gradients and normalisation") {
  const TestedFunction f = [](Tape&, const std::vector<Var>& in) {
    return std::vector<Var>{log_softmax(in[0])};
  };
  for (int64_t n : {1, 7, 63, 100}) {
    const Tensor x = random_tensor({3, 5, n}, uint64_t(n), 2);
    check_op(f, {x}, {"x"});
    Context ctx;
    Tape tape(ctx);
    const std::vector<double> y = log_softmax(tape.leaf(x)).value().to_vector<double>();
    double sum = 0;
    for (int64_t j = 0; j < n; ++j) sum += std::exp(y[size_t(j)]);
    CHECK(sum == doctest::Approx(1).epsilon(1e-13));
  }
}
