// What the normalisations and the ops along a sequence do beyond their gradients (test_ops_cases.cpp).
#include <doctest/doctest.h>

#include <cmath>

#include "autograd/op_cases.h"
#include "autograd/ops_norm.h"
#include "autograd/ops_pointwise.h"
#include "autograd/ops_sequence.h"
#include "autograd/ops_shape.h"
#include "tensor/error.h"

using namespace eigentrace;

namespace {

Tensor constant(int64_t n, double value) {
  return Tensor::from(std::vector<double>(static_cast<size_t>(n), value), {n});
}

}  // namespace

TEST_CASE("batch_norm: running statistics move by a hundredth, with the biased variance") {
  Context ctx;
  Rng rng(1);
  const int64_t rows = 700, width = 7;
  const Tensor x = normal_tensor(rng, {7, 100, width}, {});
  const RunningStatistics running{constant(width, 0), constant(width, 1)};
  Tape tape(ctx, false);
  const Var y = batch_norm(tape.constant(x), tape.constant(constant(width, 1)),
                           tape.constant(constant(width, 0)), running, 0.99, 1e-5);
  const std::vector<double> values = x.to_vector<double>(), normed = y.value().to_vector<double>();
  for (int64_t i = 0; i < width; ++i) {
    double mean = 0, var = 0;
    for (int64_t r = 0; r < rows; ++r) mean += values[static_cast<size_t>(r * width + i)] / rows;
    for (int64_t r = 0; r < rows; ++r)
      var += std::pow(values[static_cast<size_t>(r * width + i)] - mean, 2) / rows;
    const size_t at = static_cast<size_t>(i);
    CHECK(running.mean.to_vector<double>()[at] == doctest::Approx(0.01 * mean).epsilon(1e-12));
    CHECK(running.var.to_vector<double>()[at] == doctest::Approx(0.99 + 0.01 * var).epsilon(1e-12));
    CHECK(normed[at] == doctest::Approx((values[at] - mean) / std::sqrt(var + 1e-5)).epsilon(1e-12));
  }
  const std::vector<double> before = running.mean.to_vector<double>();
  const Var z = batch_norm_evaluation(tape.constant(x), tape.constant(constant(width, 2)),
                                      tape.constant(constant(width, 3)), running, 1e-5);
  CHECK(running.mean.to_vector<double>() == before);
  CHECK(
      z.value().to_vector<double>()[0] ==
      doctest::Approx(2 * (values[0] - before[0]) / std::sqrt(running.var.to_vector<double>()[0] + 1e-5) + 3)
          .epsilon(1e-12));
}

TEST_CASE("batch_norm: a mean far from zero costs no digits of the variance") {
  Context ctx;
  Rng rng(2);
  std::vector<double> values(4000);
  for (double& v : values) v = 1000 + rng.normal();
  Tape tape(ctx, false);
  const Tensor x = Tensor::from(values, {4000, 1});
  const auto run = [&](DType dtype) {
    const auto on_tape = [&](const Tensor& t) { return tape.constant(t.clone({}, dtype)); };
    return batch_norm(on_tape(x), on_tape(constant(1, 1)), on_tape(constant(1, 0)), {}, 0.99, 1e-5)
        .value()
        .to_vector<double>();
  };
  const std::vector<double> single = run(DType::f32), exact = run(DType::f64);
  for (size_t i = 0; i < exact.size(); ++i) CHECK(std::abs(single[i] - exact[i]) < 3e-4);  // x itself: 3e-5
}

TEST_CASE("layer_norm: rows have mean 0 and variance 1") {
  Context ctx;
  Rng rng(3);
  Tape tape(ctx, false);
  const Tensor x = normal_tensor(rng, {63, 100}, {});
  const std::vector<double> y =
      layer_norm(tape.constant(x), tape.constant(constant(100, 1)), tape.constant(constant(100, 0)), 0)
          .value()
          .to_vector<double>();
  for (size_t row = 0; row < 63; ++row) {
    double mean = 0, square = 0;
    for (size_t i = 0; i < 100; ++i)
      mean += y[row * 100 + i] / 100, square += y[row * 100 + i] * y[row * 100 + i] / 100;
    CHECK(std::abs(mean) < 1e-14);
    CHECK(std::abs(square - 1) < 1e-13);
  }
}

TEST_CASE("residual_layer_norm: equals dropout, add and layer_norm") {
  Context ctx;
  ctx.set_step(9, 9);
  Rng rng(4);
  for (int64_t width : {7, 63, 128}) {
    const Tensor x = normal_tensor(rng, {3, 5, width}, {}), r = normal_tensor(rng, {3, 5, width}, {});
    const Tensor w = normal_tensor(rng, {width}, {}), b = normal_tensor(rng, {width}, {});
    Tape fused(ctx, false), plain(ctx, false);
    const ResidualNorm both = residual_layer_norm(fused.constant(x), fused.constant(r), 0.3,
                                                  fused.constant(w), fused.constant(b), 1e-5);
    const Var s = add(plain.constant(x), dropout(plain.constant(r), 0.3));
    const Var y = layer_norm(s, plain.constant(w), plain.constant(b), 1e-5);
    for (const auto& [found, expected] : {std::pair{both.sum, s}, {both.normed, y}}) {
      const std::vector<double> f = found.value().to_vector<double>(),
                                e = expected.value().to_vector<double>();
      for (size_t i = 0; i < e.size(); ++i) CHECK(std::abs(f[i] - e[i]) <= 1e-14 * (1 + std::abs(e[i])));
    }
  }
}

TEST_CASE("pool: steps beyond the valid ones change no bit") {
  Context ctx;
  Rng rng(5);
  const Tensor x = normal_tensor(rng, {3, 10, 7}, {}), longer = normal_tensor(rng, {3, 63, 7}, {});
  Tensor head = longer.slice(1, 0, 10);
  kernels::copy(ctx, x, head);
  const Tensor valid = Tensor::from(std::vector<int32_t>{10}, {1});
  Tape tape(ctx, false);
  for (Pooling how : {Pooling::mean, Pooling::max, Pooling::sum, Pooling::first, Pooling::last})
    CHECK(pool(tape.constant(longer), how, {}, valid).value().to_vector<double>() ==
          pool(tape.constant(x), how, {}, {}).value().to_vector<double>());
}

TEST_CASE("causal_conv1d: later inputs change no earlier bit") {
  Context ctx;
  Rng rng(6);
  Tensor x = normal_tensor(rng, {1, 63, 7}, {});
  const Tensor w = normal_tensor(rng, {7, 1, 4}, {}), b = normal_tensor(rng, {7}, {});
  Tape tape(ctx, false);
  const auto run = [&] {
    return causal_conv1d(tape.constant(x), tape.constant(w), tape.constant(b), true)
        .value()
        .slice(1, 0, 40)
        .to_vector<double>();
  };
  const std::vector<double> before = run();
  Tensor tail = x.slice(1, 40, 23);
  kernels::fill(ctx, tail, 1e4);
  CHECK(run() == before);
}

TEST_CASE(
    "causal_conv1d: with elu + 1 in a range of channels it is the two ops after each other, bit by bit") {
  Context ctx;
  Rng rng(8);
  const Tensor x = normal_tensor(rng, {2, 63, 100}, {}), w = normal_tensor(rng, {100, 1, 4}, {}),
               b = normal_tensor(rng, {100}, {});
  Tape tape(ctx, false);
  const auto run = [&](const std::vector<int64_t>& widths, size_t part) {
    return causal_conv1d_elu(tape.constant(x), tape.constant(w), tape.constant(b), true, widths, part).parts;
  };
  const std::vector<Var> mapped = run({9, 61, 30}, 1),
                         plain =
                             split(causal_conv1d(tape.constant(x), tape.constant(w), tape.constant(b), true),
                                   {9, 61, 30});
  for (const size_t part : {0, 2})
    CHECK(mapped[part].value().to_vector<double>() == plain[part].value().to_vector<double>());
  CHECK(mapped[1].value().to_vector<double>() ==
        unary(Unary::elu_plus_one, plain[1]).value().to_vector<double>());
  CHECK_THROWS_WITH_AS(run({9, 92}, 1), doctest::Contains("channels begin ≤ end of 100"), Error);
  CHECK_THROWS_WITH_AS(run({9, 90}, 1), doctest::Contains("widths must add up"), Error);
  CHECK_THROWS_WITH_AS(run({100}, 1), doctest::Contains("one of 1 parts"), Error);
}

TEST_CASE("sequence ops: what does not fit is named") {
  Context ctx;
  Tape tape(ctx, false);
  Rng rng(7);
  const Tokens tokens{Tensor::from(std::vector<int32_t>{0, 5, 2}, {1, 3}),
                      Tensor::from(std::vector<int32_t>{0, 2, 1}, {3})};
  const Var table = tape.constant(normal_tensor(rng, {5, 7}, {}));
  CHECK_THROWS_WITH_AS(embedding(table, tokens, {}, {}), doctest::Contains("token 5 at position 1"), Error);
  const Var wide = tape.constant(normal_tensor(rng, {6, 7}, {}));
  CHECK_THROWS_WITH_AS(embedding(wide, tokens, tape.constant(normal_tensor(rng, {2, 7}, {})), {}),
                       doctest::Contains("max_pos_embed"), Error);
  const Var x = tape.constant(normal_tensor(rng, {2, 3, 7}, {}));
  CHECK_THROWS_AS(layer_norm(x, tape.constant(constant(6, 1)), tape.constant(constant(7, 1)), 1e-5), Error);
  CHECK_THROWS_AS(
      batch_norm_evaluation(x, tape.constant(constant(7, 1)), tape.constant(constant(7, 1)), {}, 1e-5),
      Error);
  CHECK_THROWS_AS(
      causal_conv1d(x, tape.constant(normal_tensor(rng, {6, 1, 4}, {})), tape.constant(constant(6, 1)), true),
      Error);
  CHECK_THROWS_AS(pool(wide, Pooling::mean, {}, {}), Error);
}
