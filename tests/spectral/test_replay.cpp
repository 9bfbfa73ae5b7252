// Replay against outputs computed by naive float64 forms that know nothing of Λ.
#include "spectral/replay.h"

#include <doctest/doctest.h>

#include <cmath>

#include "tensor/error.h"
#include "tests/spectral/systems.h"

using namespace eigentrace;

namespace {

constexpr double f64_limit = 1e-10, f32_limit = 1e-4;

/// Adds `amount` to every log λ of the system: all families keep it in a tensor of their own.
void shift(Tensor& tensor, double amount) {
  auto values = tensor.to_vector<double>();
  for (double& value : values) value += amount;
  tensor.assign(values);
}

}  // namespace

TEST_CASE("replay: every family's own output is reproduced in float64 and from float32 inputs") {
  for (const auto& build : all_systems())
    for (const int64_t steps : {1, 63, 100})
      for (const DType dtype : {DType::f64, DType::f32}) {
        const TestSystem test = build(steps, dtype, 7);
        const ReplayResult result = replay(test.system, test.y);
        CAPTURE(name_of(test.system.family));
        CAPTURE(steps);
        CAPTURE(name_of(dtype));
        CHECK_FALSE(result.layer.dead);
        CHECK(result.layer.relative_error < (dtype == DType::f64 ? f64_limit : f32_limit));
        CHECK(result.agrees(dtype == DType::f64 ? f64_limit : f32_limit));
      }
}

TEST_CASE("replay: a λ off by one millionth is rejected for every family") {
  for (const auto& build : all_systems()) {
    TestSystem test = build(63, DType::f64, 11);
    CAPTURE(name_of(test.system.family));
    std::visit(
        [](auto& lambda) {
          using T = std::decay_t<decltype(lambda)>;
          if constexpr (std::is_same_v<T, ScalarDecay>) shift(lambda.log_lambda, 1e-6);
          if constexpr (std::is_same_v<T, Diagonal>) shift(lambda.arg, 1e-6);
          if constexpr (std::is_same_v<T, Outer>) shift(lambda.a, 1e-6);
          if constexpr (std::is_same_v<T, Dplr>) shift(lambda.lambda.im, 1e-5);
          if constexpr (std::is_same_v<T, NormaliserRatio>) {
            // One millionth more at each step than at the one before.
            auto values = lambda.log_eta.template to_vector<double>();
            const int64_t steps = lambda.log_eta.dim(1), heads = lambda.log_eta.dim(2);
            for (size_t at = 0; at < values.size(); ++at)
              values[at] -= 1e-6 * double(int64_t(at) / heads % steps);
            lambda.log_eta.assign(values);
          }
        },
        test.system.lambda);
    const ReplayResult result = replay(test.system, test.y);
    CHECK(result.layer.relative_error > 1e-8);
    CHECK_FALSE(result.agrees(f64_limit));
  }
}

TEST_CASE("replay: the eigenvalues alone are at fault when only they are changed") {
  // Linear attention with its λ and 1/η given separately: the same system as NormaliserRatio.
  TestSystem test = linear_system(63, DType::f64, 3);
  const Tensor log_eta = std::get<NormaliserRatio>(test.system.lambda).log_eta;
  const auto eta = log_eta.to_vector<double>();
  const int64_t steps = log_eta.dim(1), heads = log_eta.dim(2);
  std::vector<double> log_lambda(eta.size(), 0.0), weight(eta.size());
  for (size_t at = 0; at < eta.size(); ++at) {
    weight[at] = std::exp(-eta[at]);
    if (int64_t(at) / heads % steps > 0) log_lambda[at] = eta[at - size_t(heads)] - eta[at];
  }
  std::get<Factored>(test.system.maps).weight = Tensor::from(weight, log_eta.shape());
  test.system.lambda = ScalarDecay{Tensor::from(log_lambda, log_eta.shape())};
  CHECK(replay(test.system, test.y).agrees(f64_limit));
  log_lambda[size_t(20 * heads)] += 1e-6;
  test.system.lambda = ScalarDecay{Tensor::from(log_lambda, log_eta.shape())};
  CHECK_FALSE(replay(test.system, test.y).agrees(f64_limit));
}

TEST_CASE("replay: both gauges give the same output") {
  for (const auto& build : {softmax_system, linear_system, norm_system}) {
    TestSystem test = build(63, DType::f64, 5);
    std::get<NormaliserRatio>(test.system.lambda).gauge = Gauge::readout_normalised;
    CHECK(replay(test.system, test.y).agrees(f64_limit));
  }
}

TEST_CASE("replay: normalisers that move over hundreds of orders of magnitude lose nothing") {
  // f = exp with offsets up to 6: η from 1 to e^400 and back, at successive steps.
  TestSystem test = norm_system_offset(100, DType::f64, 9, 6.0);
  const ReplayResult result = replay(test.system, test.y);
  CHECK_FALSE(result.layer.dead);
  CHECK(result.agrees(f64_limit));
}

TEST_CASE("replay: a branch that underflows is called dead, and only that") {
  TestSystem dead = norm_system_offset(63, DType::f64, 9, 9.0);
  ReplayResult result = replay(dead.system, dead.y);
  CHECK(result.layer.dead);
  CHECK(result.layer.relative_error == 0);
  CHECK(result.text() == "dead branch");
  CHECK(result.agrees(f64_limit));
  // y = 0 where the system says otherwise is an error, not a dead branch.
  TestSystem alive = linear_system(63, DType::f64, 9);
  alive.y = Tensor::zeros(alive.y.shape(), DType::f64);
  result = replay(alive.system, alive.y);
  CHECK_FALSE(result.layer.dead);
  CHECK_FALSE(result.agrees(f64_limit));
  // NaN in y is an error as well.
  auto values = linear_system(63, DType::f64, 9).y.to_vector<double>();
  values[5] = std::nan("");
  alive.y.assign(values);
  CHECK_FALSE(replay(alive.system, alive.y).agrees(1.0));
}

TEST_CASE("replay: an overflowed normaliser at one step leaves the others checked") {
  TestSystem test = norm_system(63, DType::f64, 13);
  const auto& ratio = std::get<NormaliserRatio>(test.system.lambda);
  auto log_eta = ratio.log_eta.to_vector<double>();
  auto y = test.y.to_vector<double>();
  const int64_t heads = test.system.heads(), width = test.system.u.dim(3), row = 20 * heads;
  for (int64_t h = 0; h < heads; ++h) log_eta[size_t(row + h)] = HUGE_VAL;
  for (int64_t p = 0; p < heads * width; ++p) y[size_t(row * width + p)] = 0;
  ratio.log_eta.assign(log_eta);
  test.y.assign(y);
  CHECK(replay(test.system, test.y).agrees(f64_limit));
}

TEST_CASE("replay: sizes that do not fit are named") {
  TestSystem test = linear_system(63, DType::f64, 3);
  CHECK_THROWS_WITH_AS(replay(test.system, Tensor::zeros({2, 62, 2, 3}, DType::f64)),
                       doctest::Contains("replay: y: expected as many elements as u"), Error);
  std::get<Factored>(test.system.maps).weight = Tensor::zeros({2, 63}, DType::f64);
  CHECK_THROWS_WITH_AS(replay(test.system, test.y), doctest::Contains("weight: expected f32 or f64 ["),
                       Error);
}
