#include <doctest/doctest.h>

#include "autograd/ops_attention.h"
#include "autograd/ops_shape.h"
#include "tensor/error.h"
#include "tests/op_checks.h"

using namespace eigentrace;
using namespace eigentrace::testing;

namespace {

/// The recurrence, step by step.
std::vector<double> naive_ssd(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_a,
                              const Tensor& w) {
  const int64_t B = q.dim(0), T = q.dim(1), G = q.dim(2), N = q.dim(3), H = v.dim(2), P = v.dim(3);
  const auto Q = q.to_vector<double>(), K = k.to_vector<double>(), V = v.to_vector<double>();
  const auto A = log_a.defined() ? log_a.to_vector<double>() : std::vector<double>{};
  const auto W = w.defined() ? w.to_vector<double>() : std::vector<double>{};
  std::vector<double> y(V.size());
  for (int64_t b = 0; b < B; ++b)
    for (int64_t h = 0; h < H; ++h) {
      std::vector<double> state(size_t(N * P));
      const int64_t g = h * G / H;
      for (int64_t i = 0; i < T; ++i) {
        const int64_t step = (b * T + i) * H + h;
        const double a = !log_a.defined() ? 1 : std::exp(A[size_t(log_a.rank() == 1 ? h : step)]);
        const double weight = w.defined() ? W[size_t(step)] : 1;
        for (int64_t n = 0; n < N; ++n)
          for (int64_t p = 0; p < P; ++p) {
            double& s = state[size_t(n * P + p)];
            s = a * s + weight * K[size_t(((b * T + i) * G + g) * N + n)] * V[size_t(step * P + p)];
            y[size_t(step * P + p)] += Q[size_t(((b * T + i) * G + g) * N + n)] * s;
          }
      }
    }
  return y;
}

struct Case {
  int64_t B, T, G, H, N, P;
};

enum class Decay { none, per_head, per_step };

Tensor decays(const Case& c, Decay kind, double low, double high) {
  if (kind == Decay::none) return {};
  return uniform_tensor(kind == Decay::per_head ? Shape{c.H} : Shape{c.B, c.T, c.H}, 7, low, high);
}

}  // namespace

TEST_CASE("ssd: agrees with the recurrence, for every kind of decay, group and weight") {
  for (const Case& c : {Case{1, 1, 1, 1, 1, 1},
                        {2, 63, 1, 3, 7, 33},
                        {1, 100, 2, 4, 33, 7},
                        {1, 129, 1, 2, 16, 32},
                        {1, 200, 1, 1, 64, 32},
                        {1, 130, 1, 1, 64, 64},
                        {1, 260, 1, 1, 128, 128},
                        {1, 140, 1, 1, 512, 64},
                        {1, 150, 1, 1, 16, 128},
                        {1, 257, 2, 2, 64, 128}})
    for (Decay kind : {Decay::none, Decay::per_head, Decay::per_step})
      for (double low : {-0.1, -50.0}) {
        if (kind == Decay::none && low < -1) continue;
        CAPTURE(c.T);
        CAPTURE(c.N);
        CAPTURE(low);
        const Tensor q = random_tensor({c.B, c.T, c.G, c.N}, 1), k = random_tensor({c.B, c.T, c.G, c.N}, 2),
                     v = random_tensor({c.B, c.T, c.H, c.P}, 3), log_a = decays(c, kind, low, 0),
                     w = kind == Decay::per_head ? Tensor() : uniform_tensor({c.B, c.T, c.H}, 4, 0, 2);
        Context ctx;
        ctx.poison = true;
        Tape tape(ctx);
        const auto var = [&](const Tensor& x) { return x.defined() ? tape.constant(x) : Var(); };
        const Var y = ssd(var(q), var(k), var(v), var(log_a), var(w));
        CHECK(relative_difference({y.value().to_vector<double>()}, {naive_ssd(q, k, v, log_a, w)}) < 1e-12);
      }
}

TEST_CASE("ssd: gradients, bits and memory") {
  for (const Case& c :
       {Case{1, 1, 1, 1, 1, 1}, {2, 63, 1, 2, 7, 3}, {1, 150, 2, 4, 3, 5}, {1, 300, 1, 1, 2, 70}}) {
    const Tensor q = random_tensor({c.B, c.T, c.G, c.N}, 1), k = random_tensor({c.B, c.T, c.G, c.N}, 2),
                 v = random_tensor({c.B, c.T, c.H, c.P}, 3), w = uniform_tensor({c.B, c.T, c.H}, 4, -1, 2);
    const OpTolerance tolerance{.gradient = 1e-6, .f32 = 2e-4};
    CAPTURE(c.T);
    check_op(
        [](Tape&, const std::vector<Var>& in) {
          return std::vector<Var>{ssd(in[0], in[1], in[2], Var(), Var())};
        },
        {q, k, v}, {"q", "k", "v"}, tolerance);
    const TestedFunction full = [](Tape&, const std::vector<Var>& in) {
      return std::vector<Var>{ssd(in[0], in[1], in[2], in[3], in[4])};
    };
    for (Decay kind : {Decay::per_head, Decay::per_step})
      check_op(full, {q, k, v, decays(c, kind, -0.3, 0), w}, {"q", "k", "v", "log_a", "w"}, tolerance);
  }
}

TEST_CASE("ssd: parts of one projection, decay without weight and weight without decay") {
  const int64_t B = 2, T = 70, N = 3, P = 5, H = 2;
  const TestedFunction f = [=](Tape&, const std::vector<Var>& in) {
    const std::vector<Var> x = split(in[0], {N, H, N, H * P, H});
    const Var q = reshape(x[0], {B, T, 1, N}), k = reshape(x[2], {B, T, 1, N}),
              v = reshape(x[3], {B, T, H, P});
    return std::vector<Var>{ssd(q, k, v, Var(), x[1]), ssd(q, k, v, x[4], Var())};
  };
  check_op(f, {uniform_tensor({B, T, 2 * N + H * P + 2 * H}, 1, -1, 0)}, {"projection"},
           {.gradient = 1e-6, .f32 = 2e-4});
}

TEST_CASE("ssd: gradients with decays of −50 and 0") {
  for (double log_a : {-50.0, 0.0}) {
    const Case c{1, 140, 1, 1, 3, 2};
    std::vector<double> values(size_t(c.T), log_a);
    values[70] = -0.5;
    const Tensor q = random_tensor({1, c.T, 1, 3}, 1), k = random_tensor({1, c.T, 1, 3}, 2),
                 v = random_tensor({1, c.T, 1, 2}, 3), a = Tensor::from(values, {1, c.T, 1});
    check_op(
        [](Tape&, const std::vector<Var>& in) {
          return std::vector<Var>{ssd(in[0], in[1], in[2], in[3], Var())};
        },
        {q, k, v, a}, {"q", "k", "v", "log_a"}, {.gradient = 1e-6, .f32 = 2e-4});
  }
}

TEST_CASE("ssd: a strong decay has a tiny gradient, right to its last digits, in float32 too") {
  // y_1 = a v_0 + v_1 with q = k = 1: d(dy_1 y_1)/dlog_a_1 = dy_1 a v_0
  Context ctx;
  Tape tape(ctx);
  const Var one = tape.leaf(Tensor::from(std::vector<float>{1, 1}, {1, 2, 1, 1}));
  const Var v = tape.leaf(Tensor::from(std::vector<float>{3, 1e6f}, {1, 2, 1, 1}));
  const Var a = tape.leaf(Tensor::from(std::vector<float>{-1, -50}, {1, 2, 1}));
  const std::vector<Var> y{ssd(one, one, v, a, Var())};
  const std::vector<Tensor> dy{Tensor::from(std::vector<float>{0, 2}, {1, 2, 1, 1})};
  tape.backward(y, dy);
  const std::vector<double> da = tape.gradient_of(a).to_vector<double>();
  CHECK(da[0] == 0);
  CHECK(da[1] == doctest::Approx(6 * std::exp(-50)).epsilon(1e-5));
}

TEST_CASE("ssd: later inputs, even 1e4 times larger, change no earlier bit") {
  const Case c{2, 300, 1, 2, 7, 9};
  for (int64_t t : {0, 62, 63, 64, 65, 200, 298}) {
    const std::vector<Tensor> x = {random_tensor({2, c.T, 1, c.N}, 1).clone({}, DType::f32),
                                   random_tensor({2, c.T, 1, c.N}, 2).clone({}, DType::f32),
                                   random_tensor({2, c.T, 2, c.P}, 3).clone({}, DType::f32),
                                   decays(c, Decay::per_step, -1, 0).clone({}, DType::f32),
                                   uniform_tensor({2, c.T, 2}, 4, 0, 2).clone({}, DType::f32)};
    Context ctx;
    const auto run = [&] {
      Tape tape(ctx);
      const auto var = [&](size_t i) { return tape.constant(x[i]); };
      return ssd(var(0), var(1), var(2), var(3), var(4))
          .value()
          .slice(1, 0, t + 1)
          .clone()
          .to_vector<float>();
    };
    const std::vector<float> before = run();
    for (const Tensor& tensor : x) {
      const int64_t row = tensor.numel() / 2 / c.T;
      const float factor = tensor.rank() == 3 ? 1e4f : -1e4f;
      for (int64_t b = 0; b < 2; ++b)
        for (int64_t i = (t + 1) * row; i < c.T * row; ++i) tensor.data<float>()[b * c.T * row + i] *= factor;
    }
    CHECK(before == run());
  }
}

TEST_CASE("ssd: shapes that do not fit are named") {
  Context ctx;
  Tape tape(ctx);
  const Var q = tape.leaf(random_tensor({1, 4, 2, 3}, 1)), v = tape.leaf(random_tensor({1, 4, 3, 2}, 1));
  CHECK_THROWS_WITH_AS(ssd(q, q, v, Var(), Var()), doctest::Contains("G a divisor of H"), Error);
}
