#include <doctest/doctest.h>

#include "autograd/ops_attention.h"
#include "autograd/ops_shape.h"
#include "tensor/dropout_stream.h"
#include "tensor/error.h"
#include "tests/op_checks.h"

using namespace eigentrace;
using namespace eigentrace::testing;

namespace {

struct Naive {
  std::vector<double> y, lse;
};

/// The definition, row by row; dropout's mask included.
Naive naive_attention(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, double scale,
                      double dropout) {
  const int64_t B = q.dim(0), T = q.dim(1), H = q.dim(2), N = q.dim(3), P = v.dim(3);
  const auto Q = q.to_vector<double>(), K = k.to_vector<double>(), V = v.to_vector<double>();
  const DropoutStream mask = dropout_stream(ctx, dropout, 0);
  Naive out{std::vector<double>(V.size()), std::vector<double>(size_t(B * T * H))};
  for (int64_t b = 0; b < B; ++b)
    for (int64_t h = 0; h < H; ++h)
      for (int64_t i = 0; i < T; ++i) {
        std::vector<double> s(size_t(i + 1));
        double largest = -INFINITY, sum = 0;
        for (int64_t j = 0; j <= i; ++j) {
          for (int64_t n = 0; n < N; ++n)
            s[size_t(j)] +=
                scale * Q[size_t(((b * T + i) * H + h) * N + n)] * K[size_t(((b * T + j) * H + h) * N + n)];
          largest = std::max(largest, s[size_t(j)]);
        }
        for (double x : s) sum += std::exp(x - largest);
        out.lse[size_t((b * T + i) * H + h)] = largest + std::log(sum);
        for (int64_t j = 0; j <= i; ++j) {
          double p = std::exp(s[size_t(j)] - largest) / sum;
          if (dropout > 0) {
            const Philox4 w = mask.words(mask.weight_block(b * H + h, i, j, mask.weight_blocks(T)));
            const int half = mask.weight_half(i, j);
            p *= mask.keeps(w.x[half / 2], half % 2) ? mask.keep_scale : 0;
          }
          for (int64_t c = 0; c < P; ++c)
            out.y[size_t(((b * T + i) * H + h) * P + c)] += p * V[size_t(((b * T + j) * H + h) * P + c)];
        }
      }
  return out;
}

double worst_difference(const std::vector<double>& a, const std::vector<double>& b) {
  return relative_difference({a}, {b});
}

}  // namespace

TEST_CASE("softmax_attention: agrees with the definition, T below, at and beyond the blocks") {
  for (const auto& [T, N, P] : {std::array{1, 1, 1}, {63, 7, 33}, {100, 33, 7}, {128, 16, 8}, {1100, 5, 3}})
    for (double dropout : {0.0, 0.3}) {
      CAPTURE(T);
      Context ctx;
      ctx.poison = true;
      ctx.set_step(5, 2);
      const Tensor q = random_tensor({2, T, 3, N}, 1, 2), k = random_tensor({2, T, 3, N}, 2, 2),
                   v = random_tensor({2, T, 3, P}, 3);
      Tape tape(ctx);
      const Attended out =
          softmax_attention(tape.constant(q), tape.constant(k), tape.constant(v), 0.4, dropout);
      const Naive expected = naive_attention(ctx, q, k, v, 0.4, dropout);
      CHECK(worst_difference(out.y.value().to_vector<double>(), expected.y) < 1e-12);
      CHECK(worst_difference(out.lse.to_vector<double>(), expected.lse) < 1e-12);
    }
}

TEST_CASE("softmax_attention: gradients, bits and memory; q, k and v parts of one projection") {
  for (const auto& [B, T, H, N, P] :
       {std::array{1, 1, 1, 1, 1}, {2, 63, 1, 7, 33}, {3, 100, 3, 3, 2}, {1, 130, 2, 4, 4}}) {
    CAPTURE(T);
    for (double dropout : {0.0, 0.25}) {
      const TestedFunction f = [=](Tape&, const std::vector<Var>& in) {
        const std::vector<Var> parts = split(in[0], {H * N, H * N, H * P});
        return std::vector<Var>{softmax_attention(reshape(parts[0], {B, T, H, N}),
                                                  reshape(parts[1], {B, T, H, N}),
                                                  reshape(parts[2], {B, T, H, P}), 0.6, dropout)
                                    .y};
      };
      check_op(f, {random_tensor({B, T, H * (2 * N + P)}, 1)}, {"qkv"}, {.gradient = 1e-6, .f32 = 1e-4});
    }
  }
}

TEST_CASE("softmax_attention: few long sequences give the gradients of many short ones") {
  // one item takes the two-pass road, nine copies of it the one-pass road
  const int64_t T = 1100, N = 3;
  Context ctx;
  ctx.poison = true;
  const TestedFunction f = [](Tape&, const std::vector<Var>& in) {
    return std::vector<Var>{softmax_attention(in[0], in[1], in[2], 0.5, 0).y};
  };
  const std::vector<Tensor> one = {random_tensor({1, T, 1, N}, 1), random_tensor({1, T, 1, N}, 2),
                                   random_tensor({1, T, 1, N}, 3)};
  const Tensor cotangent = random_tensor({1, T, 1, N}, 4);
  const auto repeat = [](const Tensor& x, int64_t times) {
    std::vector<double> all, values = x.to_vector<double>();
    for (int64_t i = 0; i < times; ++i) all.insert(all.end(), values.begin(), values.end());
    return Tensor::from(all, {times, x.dim(1), x.dim(2), x.dim(3)});
  };
  std::vector<std::vector<double>> gradients[2];
  for (int64_t times : {1, 9}) {
    Tape tape(ctx);
    std::vector<Var> leaves;
    for (const Tensor& x : one) leaves.push_back(tape.leaf(repeat(x, times)));
    const std::vector<Var> y = f(tape, leaves);
    const Tensor dy = repeat(cotangent, times);
    tape.backward(y, std::span(&dy, 1));
    for (const Var& leaf : leaves) {
      std::vector<double> g = tape.gradient_of(leaf).to_vector<double>();
      g.resize(size_t(T * N));
      gradients[times == 9].push_back(g);
    }
  }
  CHECK(relative_difference(gradients[0], gradients[1]) < 1e-13);
}

TEST_CASE("softmax_attention: later inputs, even 1e4 times larger, change no earlier bit") {
  const int64_t T = 150, N = 7;
  for (int64_t t : {0, 1, 62, 63, 64, 100, 148}) {
    std::vector<Tensor> x;
    for (uint64_t seed : {1, 2, 3}) x.push_back(random_tensor({2, T, 2, N}, seed).clone({}, DType::f32));
    Context ctx;
    std::vector<std::vector<float>> before, after;
    const auto run = [&](std::vector<std::vector<float>>& into) {
      Tape tape(ctx);
      const Attended out =
          softmax_attention(tape.constant(x[0]), tape.constant(x[1]), tape.constant(x[2]), 0.5, 0.1);
      into = {out.y.value().slice(1, 0, t + 1).clone().to_vector<float>(),
              out.lse.slice(1, 0, t + 1).clone().to_vector<float>()};
    };
    run(before);
    for (const Tensor& tensor : x)
      for (int64_t b = 0; b < 2; ++b)
        for (int64_t i = (t + 1) * 2 * N; i < T * 2 * N; ++i)
          tensor.data<float>()[b * T * 2 * N + i] *= -1e4f;
    run(after);
    CHECK(before == after);
  }
}

TEST_CASE("softmax_attention: shapes that do not fit are named") {
  Context ctx;
  Tape tape(ctx);
  const Var q = tape.leaf(random_tensor({1, 4, 1, 3}, 1)), k = tape.leaf(random_tensor({1, 4, 1, 2}, 1));
  CHECK_THROWS_WITH_AS(softmax_attention(q, k, q, 1, 0), doctest::Contains("q, k [B, T, H, N]"), Error);
  CHECK_THROWS_AS(softmax_attention(q, q, q, 1, 1.0), Error);
}
