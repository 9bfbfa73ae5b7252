#include <doctest/doctest.h>

#include "autograd/ops_attention.h"
#include "autograd/ops_shape.h"
#include "tensor/error.h"
#include "tests/op_checks.h"

using namespace eigentrace;
using namespace eigentrace::testing;

namespace {

constexpr NormFunction norm_functions[] = {NormFunction::exp, NormFunction::elu, NormFunction::softplus,
                                           NormFunction::sigmoid};

double norm_value(NormFunction f, double x) {
  switch (f) {
    case NormFunction::exp:
      return std::exp(x);
    case NormFunction::elu:
      return x > 0 ? x : std::expm1(x);
    case NormFunction::softplus:
      return std::log1p(std::exp(x));
    case NormFunction::sigmoid:
      return 1 / (1 + std::exp(-x));
  }
  return 0;
}

}  // namespace

TEST_CASE("attention_normaliser: log of the running sum, and its gradients") {
  const TestedFunction f = [](Tape&, const std::vector<Var>& in) {
    return std::vector<Var>{attention_normaliser(in[0], in[1])};
  };
  for (const auto& [B, T, H, N] : {std::array{1, 1, 1, 1}, {2, 63, 3, 7}, {1, 100, 1, 33}}) {
    const Tensor q = uniform_tensor({B, T, H, N}, 1, 0.1, 2), k = uniform_tensor({B, T, H, N}, 2, 0.1, 2);
    check_op(f, {q, k}, {"q", "k"}, {.gradient = 1e-6});
    Context ctx;
    Tape tape(ctx);
    const auto log_eta = attention_normaliser(tape.constant(q), tape.constant(k)).value().to_vector<double>();
    const auto Q = q.to_vector<double>(), K = k.to_vector<double>();
    double eta = 0;  // the last step of the last sequence
    for (int64_t j = 0; j < T; ++j)
      for (int64_t n = 0; n < N; ++n)
        eta += Q[Q.size() - size_t(N - n)] * K[size_t((((B - 1) * T + j) * H + H - 1) * N + n)];
    CHECK(log_eta.back() == doctest::Approx(std::log(eta)).epsilon(1e-12));
  }
}

TEST_CASE("divide_by_eta: gradients, strided operands") {
  const int64_t B = 2, T = 33, H = 3, P = 7;
  const TestedFunction f = [=](Tape&, const std::vector<Var>& in) {
    const std::vector<Var> parts = split(in[0], {H * P, H});
    return std::vector<Var>{divide_by_eta(reshape(parts[0], {B, T, H, P}), parts[1])};
  };
  check_op(f, {random_tensor({B, T, H * P + H}, 1)}, {"y and log_eta"});
}

TEST_CASE("norm_scale: values and gradients of the four functions") {
  const int64_t B = 2, T = 21, H = 3, P = 7;
  const Tensor y = random_tensor({B, T, H, P}, 1), n = random_tensor({B, T, H}, 2), o = random_tensor({H}, 3);
  for (NormFunction f : norm_functions) {
    CAPTURE(static_cast<int>(f));
    check_op(
        [f](Tape&, const std::vector<Var>& in) {
          return std::vector<Var>{norm_scale(in[0], f, in[1], in[2], 0.3).y};
        },
        {y, n, o}, {"y", "n", "offset"});
    check_op(
        [f](Tape&, const std::vector<Var>& in) {
          return std::vector<Var>{norm_scale(in[0], f, in[1], Var(), 1).y};
        },
        {y, n}, {"y", "n"});
    Context ctx;
    Tape tape(ctx);
    const NormScaled out = norm_scale(tape.constant(y), f, tape.constant(n), tape.constant(o), 0.3);
    const double log_eta = norm_value(f, n.to_vector<double>()[4] + o.to_vector<double>()[1]);
    CHECK(out.log_eta.to_vector<double>()[4] == doctest::Approx(log_eta).epsilon(1e-13));
    CHECK(out.y.value().to_vector<double>()[4 * P] ==
          doctest::Approx(0.3 * std::exp(-log_eta) * y.to_vector<double>()[4 * P]).epsilon(1e-13));
  }
}

TEST_CASE("norm_scale: no infinity and no NaN at n + o = ±100 nor at offsets of 4 to 9, in either type") {
  for (DType dtype : {DType::f32, DType::f64})
    for (NormFunction f : norm_functions)
      for (double o : {-100.0, -9.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 88.0, 89.0, 100.0, 1000.0}) {
        Context ctx;
        ctx.poison = true;
        const TestedFunction op = [&](Tape&, const std::vector<Var>& in) {
          const NormScaled out = norm_scale(in[0], f, in[1], in[2], 1);
          for (double x : out.log_eta.to_vector<double>()) CHECK(std::isfinite(x));
          return std::vector<Var>{out.y};
        };
        const auto results =
            run_op(ctx, op,
                   {random_tensor({1, 3, 1, 5}, 1), Tensor::from(std::vector<double>{0, 0, 0}, {1, 3, 1}),
                    Tensor::from(std::vector<double>{o}, {1})},
                   dtype);
        CAPTURE(o);
        for (const auto& values : results)
          for (double x : values) CHECK(std::isfinite(x));
        if (f == NormFunction::exp && o >= 7) CHECK(results[0] == std::vector<double>(15, 0.0));
      }
}

TEST_CASE("norm_scale: the gradient through exp(−eˣ) is −exp(x − eˣ) where eˣ is large") {
  Context ctx;
  Tape tape(ctx);
  const Var y = tape.leaf(Tensor::from(std::vector<float>{1}, {1, 1, 1, 1}));
  const Var n = tape.leaf(Tensor::from(std::vector<float>{4.25f}, {1, 1, 1}));
  tape.backward(norm_scale(y, NormFunction::exp, n, Var(), 1).y);
  CHECK(tape.gradient_of(n).item() == doctest::Approx(-std::exp(4.25 - std::exp(4.25))).epsilon(1e-5));
}
