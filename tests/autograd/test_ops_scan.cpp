#include "autograd/ops_scan.h"

#include <doctest/doctest.h>
#include <omp.h>

#include <algorithm>

#include "autograd/gradcheck.h"
#include "tensor/error.h"
#include "tensor/worse.h"
#include "tests/autograd/scan_oracles.h"

using namespace eigentrace;
using namespace eigentrace::test;

namespace {

using Function = std::function<Var(const std::vector<Var>&)>;

std::vector<Var> leaves(Tape& tape, const std::vector<Tensor>& inputs) {
  std::vector<Var> in(inputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) in[i] = tape.leaf(inputs[i]);
  return in;
}

/// Value of f at constants, on poisoned memory.
Values value_of(const Function& f, const std::vector<Tensor>& inputs) {
  Context ctx;
  ctx.poison = true;
  Tape tape(ctx, false);
  return f(leaves(tape, inputs)).value().to_vector<double>();
}

/// Value and gradients of f for the cotangent sin(0), sin(1), …; one list after the other.
Values everything(const Function& f, const std::vector<Tensor>& inputs) {
  Context ctx;
  ctx.poison = true;
  Tape tape(ctx);
  const std::vector<Var> in = leaves(tape, inputs);
  const Var y = f(in);
  Values all = y.value().to_vector<double>(), seed(all.size());
  for (size_t i = 0; i < seed.size(); ++i) seed[i] = std::sin(static_cast<double>(i));
  const Tensor cotangent = tensor(seed, y.shape(), y.dtype());
  tape.backward(std::span(&y, 1), std::span(&cotangent, 1));
  for (const Var& x : in)
    for (double g : tape.gradient_of(x).to_vector<double>()) all.push_back(g);
  return all;
}

double gradient_error(const Function& f, const std::vector<Tensor>& inputs, int64_t elements = 24,
                      double step = 1e-5) {
  Context ctx;
  ctx.poison = true;
  GradcheckOptions options;
  options.max_elements = elements;
  options.step = step;
  const std::vector<std::string> names = {"0", "1", "2", "3", "4", "5"};
  const TestedFunction tested = [&](Tape&, const std::vector<Var>& in) { return std::vector<Var>{f(in)}; };
  const double error = gradcheck(ctx, tested, inputs, names, options).max_error();
  CHECK(ctx.slab().in_use() == 0);
  return error;
}

/// Same bits with one thread and with three.
void check_threads(const Function& f, const std::vector<Tensor>& inputs) {
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  const Values one = everything(f, inputs);
  omp_set_num_threads(3);
  const Values three = everything(f, inputs);
  omp_set_num_threads(before);
  CHECK(one == three);
}

/// A dry run asks for the memory of the real one.
void check_dry_run(const Function& f, const std::vector<Tensor>& inputs) {
  const auto peak = [&](Context& ctx) {
    Tape tape(ctx);
    tape.backward(f(leaves(tape, inputs)));
    return ctx.slab().peak();
  };
  Context wet, dry = Context::dry_run({});
  CHECK(peak(wet) == peak(dry));
}

std::vector<Tensor> scan_inputs(int64_t B, int64_t T, int64_t N, DType dtype = DType::f64) {
  return {tensor(normal(B * T * 2 * N, 1), {B, T, 2 * N}, dtype),
          tensor(uniform(N, 2, -0.3, -0.001), {N}, dtype), tensor(uniform(N, 3, -3, 3), {N}, dtype)};
}
Function scan(bool reverse) {
  return [reverse](const std::vector<Var>& in) { return diagonal_scan(in[0], in[1], in[2], reverse); };
}
const Function selective = [](const std::vector<Var>& in) {
  return selective_scan(in[0], in[1], in[2], in[3], in[4], in[5]);
};
const Function convolution = [](const std::vector<Var>& in) { return fft_convolution(in[0], in[1], in[2]); };
Function kernel(int64_t length) {
  return [length](const std::vector<Var>& in) {
    return s4_kernel(in[0], in[1], in[2], in[3], in[4], in[5], length);
  };
}
std::vector<Tensor> convolution_inputs(int64_t B, int64_t T, int64_t D, int64_t L, DType dtype = DType::f64) {
  return {tensor(normal(B * T * D, 1), {B, T, D}, dtype), tensor(normal(D * L, 2), {D, L}, dtype),
          tensor(normal(D, 3), {D}, dtype)};
}

/// Largest change of y at steps ≤ t when the first input changes after t.
double leak(const Function& f, const std::vector<Tensor>& inputs, int64_t t) {
  const Values before = value_of(f, inputs);
  std::vector<Tensor> changed = inputs;
  changed[0] = inputs[0].clone();
  Values x = changed[0].to_vector<double>();
  const int64_t B = changed[0].dim(0), T = changed[0].dim(1), D = changed[0].dim(2);
  for (int64_t b = 0; b < B; ++b)
    for (int64_t i = (b * T + t + 1) * D; i < (b + 1) * T * D; ++i) x[static_cast<size_t>(i)] += 1;
  changed[0].assign(x);
  const Values after = value_of(f, changed);
  const size_t width = after.size() / static_cast<size_t>(B * T);
  double most = 0;
  for (size_t i = 0; i < after.size(); ++i)
    if (static_cast<int64_t>(i / width) % T <= t) most = worse(most, std::abs(after[i] - before[i]));
  CHECK(after != before);
  return most;
}

}  // namespace

TEST_CASE("diagonal_scan: equals the recurrence step by step, in both directions, at any size") {
  const int64_t sizes[][3] = {{1, 1, 1},    {2, 2, 3},    {3, 7, 9},   {1, 63, 33},
                              {2, 100, 70}, {1, 1100, 5}, {17, 600, 2}};
  for (const auto& size : sizes)
    for (bool reverse : {false, true}) {
      const int64_t B = size[0], T = size[1], N = size[2];
      CAPTURE(T);
      const std::vector<Tensor> in = scan_inputs(B, T, N);
      const Values y = naive_diagonal_scan(in[0].to_vector<double>(), in[1].to_vector<double>(),
                                           in[2].to_vector<double>(), reverse, B, T);
      CHECK(distance(value_of(scan(reverse), in), y) < 1e-12);
      CHECK(distance(value_of(scan(reverse), scan_inputs(B, T, N, DType::f32)), y) < 4e-6);
    }
}

TEST_CASE("diagonal_scan: gradients agree with finite differences") {
  for (int64_t T : {1, 2, 7, 63, 100, 600})
    for (bool reverse : {false, true}) {
      CAPTURE(T);
      CHECK(gradient_error(scan(reverse), scan_inputs(2, T, 3)) < 1e-7);
    }
}

TEST_CASE("diagonal_scan: a slow state over a long time loses no accuracy in float32") {
  const int64_t T = 4096;
  std::vector<Tensor> in = {tensor(normal(2 * T, 1), {1, T, 2}), tensor({-1e-3}, {1}), tensor({2.0}, {1})};
  const Values y = value_of(scan(false), in);
  for (Tensor& t : in) t = t.clone(Device{}, DType::f32);
  CHECK(distance(value_of(scan(false), in), y) < 2e-5);
}

TEST_CASE("diagonal_scan: reads rows of a wider tensor, writes into a wider gradient") {
  const Function f = [](const std::vector<Var>& in) {
    return diagonal_scan(split(in[0], {5, 6, 2})[1], in[1], in[2]);
  };
  std::vector<Tensor> in = scan_inputs(2, 9, 3);
  in[0] = tensor(normal(2 * 9 * 13, 4), {2, 9, 13});
  CHECK(gradient_error(f, in, 400) < 1e-7);
}

TEST_CASE("diagonal_scan: causal to the bit, the same bits for any number of threads, dry run") {
  CHECK(leak(scan(false), scan_inputs(2, 1100, 5), 700) == 0);
  CHECK(leak(scan(true), scan_inputs(2, 100, 5), 50) > 0);
  check_threads(scan(false), scan_inputs(3, 1100, 70, DType::f32));
  check_dry_run(scan(false), scan_inputs(3, 1100, 70, DType::f32));
  Context ctx;
  Tape tape(ctx);
  CHECK_THROWS_WITH_AS(diagonal_scan(tape.constant(Tensor::zeros({1, 2, 4}, DType::f64)),
                                     tape.constant(Tensor::zeros({3}, DType::f64)),
                                     tape.constant(Tensor::zeros({2}, DType::f64))),
                       "diagonal_scan: log_abs: expected [2] dense, found f64[3]", Error);
}

TEST_CASE("s5_discretise: equals the maps, differentiates, and clipped states get no gradient") {
  const int64_t N = 9;
  std::vector<Tensor> in = {tensor(uniform(N, 1, -1, -0.05), {N}), tensor(normal(N, 2, 5), {N}),
                            tensor(uniform(N, 3, -5, -1), {N, 1})};
  Values re = in[0].to_vector<double>(), im = in[1].to_vector<double>(), log_step = in[2].to_vector<double>();
  re[4] = 0.3;
  in[0].assign(re);
  for (bool bilinear : {false, true})
    for (bool clip : {false, true}) {
      const Function radius = [=](const std::vector<Var>& v) {
        return s5_discretise(v[0], v[1], v[2], bilinear, clip).log_abs;
      };
      Context ctx;
      Tape tape(ctx, false);
      const Discretised d =
          s5_discretise(tape.constant(in[0]), tape.constant(in[1]), tape.constant(in[2]), bilinear, clip);
      for (size_t n = 0; n < static_cast<size_t>(N); ++n) {
        const double step = std::exp(log_step[n]);
        const Z lambda(clip ? std::min(re[n], -1e-4) : re[n], im[n]), z = lambda * step;
        const Z discrete = bilinear ? (1.0 + z / 2.0) / (1.0 - z / 2.0) : std::exp(z);
        const Z factor = bilinear ? step / (1.0 - z / 2.0) : (discrete - 1.0) / lambda;
        const Z ours = std::polar(std::exp(d.log_abs.value().to_vector<double>()[n]),
                                  d.arg.value().to_vector<double>()[n]);
        CHECK(std::abs(ours - discrete) < 1e-13);
        CHECK(std::abs(
                  Z(d.factor.re.value().to_vector<double>()[n], d.factor.im.value().to_vector<double>()[n]) -
                  factor) < 1e-13);
      }
      const TestedFunction all = [=](Tape&, const std::vector<Var>& v) {
        const Discretised out = s5_discretise(v[0], v[1], v[2], bilinear, clip);
        return std::vector<Var>{out.log_abs, out.arg, out.factor.re, out.factor.im};
      };
      ctx.poison = true;
      CHECK(gradcheck(ctx, all, in, {"re", "im", "step"}).max_error() < 1e-7);
      CHECK((everything(radius, in)[static_cast<size_t>(N) + 4] == 0) == clip);
    }
}

TEST_CASE("complex_parts: cuts pairs and puts their gradients back") {
  const TestedFunction f = [](Tape&, const std::vector<Var>& in) {
    const Complex z = complex_parts(in[0]);
    return std::vector<Var>{unary(Unary::exp, z.re), unary(Unary::silu, z.im)};
  };
  Context ctx;
  ctx.poison = true;
  CHECK(gradcheck(ctx, f, {tensor(normal(3 * 5 * 2, 1), {3, 5, 2})}, {"x"}).max_error() < 1e-8);
}

TEST_CASE("selective_scan: equals the recurrence step by step, at any size") {
  const int64_t sizes[][4] = {{1, 1, 1, 1},    {2, 2, 3, 2},    {1, 7, 17, 5},
                              {2, 63, 33, 16}, {2, 100, 70, 3}, {1, 200, 9, 1}};
  for (const auto& size : sizes) {
    const int64_t B = size[0], T = size[1], E = size[2], S = size[3];
    CAPTURE(T);
    const SelectiveOperands in(B, T, E, S);
    CHECK(distance(value_of(selective, in.tensors()), in.naive()) < 1e-12);
    CHECK(distance(value_of(selective, in.tensors(DType::f32)), in.naive()) < 4e-6);
  }
}

TEST_CASE("selective_scan: gradients agree with finite differences") {
  for (int64_t T : {1, 2, 7, 63, 100, 130}) {
    CAPTURE(T);
    CHECK(gradient_error(selective, SelectiveOperands(2, T, 3, 2).tensors()) < 1e-7);
  }
  CHECK(gradient_error(selective, SelectiveOperands(1, 5, 70, 3).tensors()) < 1e-7);
  const std::vector<Tensor> wide = SelectiveOperands(2, 67, 90, 4).tensors(DType::f64);
  std::vector<Tensor> narrow = wide;
  for (Tensor& t : narrow) t = t.clone(Device{}, DType::f32);
  CHECK(distance(everything(selective, narrow), everything(selective, wide)) < 1e-5);
}

TEST_CASE("selective_scan: causal to the bit, the same bits for any number of threads, dry run") {
  CHECK(leak(selective, SelectiveOperands(2, 100, 5, 3).tensors(), 70) == 0);
  check_threads(selective, SelectiveOperands(3, 100, 150, 4).tensors(DType::f32));
  check_dry_run(selective, SelectiveOperands(3, 100, 150, 4).tensors(DType::f32));
}

TEST_CASE("s4_kernel: equals the generating function at the roots of unity, even and odd lengths") {
  for (int64_t L : {1, 2, 7, 8, 63, 100}) {
    CAPTURE(L);
    for (const auto& [N, D] : {std::pair<int64_t, int64_t>{1, 1}, {5, 3}, {16, 9}}) {
      S4Operands in(N, D);
      in.re[0] = 0.2;  // beyond the clip
      const Values k = in.naive(L);
      CHECK(distance(value_of(kernel(L), in.tensors()), k) < 1e-12);
      CHECK(distance(value_of(kernel(L), in.tensors(DType::f32)), k) < 2e-5);
    }
  }
}

TEST_CASE("s4_kernel: gradients agree with finite differences; none where clipped") {
  for (int64_t L : {1, 2, 7, 63, 100}) {
    CAPTURE(L);
    S4Operands in(5, 3);
    in.re[4] = 0.2;
    CHECK(gradient_error(kernel(L), in.tensors(), 40, 1e-6) < 1e-7);
    CHECK(everything(kernel(L), in.tensors())[static_cast<size_t>(3 * L + 4)] == 0);
  }
  check_threads(kernel(60), S4Operands(7, 20).tensors(DType::f32));
  check_dry_run(kernel(60), S4Operands(7, 20).tensors(DType::f32));
}

TEST_CASE(
    "fft_convolution: equals the sum, any length, odd batches, kernels shorter and longer than the input") {
  const int64_t sizes[][4] = {{1, 1, 1, 1},      {2, 2, 3, 2},  {3, 7, 9, 7},  {1, 63, 33, 63},
                              {5, 100, 20, 100}, {2, 50, 3, 7}, {2, 20, 3, 50}};
  for (const auto& size : sizes) {
    const int64_t B = size[0], T = size[1], D = size[2], L = size[3];
    CAPTURE(T);
    const std::vector<Tensor> in = convolution_inputs(B, T, D, L);
    const Values y = naive_convolution(in[0].to_vector<double>(), in[1].to_vector<double>(),
                                       in[2].to_vector<double>(), B, T, D, L);
    CHECK(distance(value_of(convolution, in), y) < 1e-12);
  }
}

TEST_CASE("fft_convolution: float32 within 8 eps log2(2T) |K|_1 max|u|, and so is its causality") {
  for (int64_t T : {63, 100, 512}) {
    const int64_t B = 3, D = 5;
    std::vector<Tensor> in = convolution_inputs(B, T, D, T, DType::f32);
    in[2] = Tensor::zeros({D}, DType::f32);
    const Values u = in[0].to_vector<double>(), k = in[1].to_vector<double>();
    const Values exact = naive_convolution(u, k, Values(static_cast<size_t>(D), 0.0), B, T, D, T);
    const Values ours = value_of(convolution, in);
    const double most =
        *std::max_element(u.begin(), u.end(), [](double a, double b) { return std::abs(a) < std::abs(b); });
    double tightest = INFINITY;
    for (int64_t c = 0; c < D; ++c) {
      double sum = 0;
      for (int64_t t = 0; t < T; ++t) sum += std::abs(k[static_cast<size_t>(c * T + t)]);
      const double bound = 8 * 0x1p-23 * std::log2(2.0 * static_cast<double>(T)) * sum * std::abs(most);
      tightest = std::min(tightest, bound);
      double error = 0;
      for (size_t i = static_cast<size_t>(c); i < exact.size(); i += static_cast<size_t>(D))
        error = worse(error, std::abs(ours[i] - exact[i]));
      CHECK(error < bound);
    }
    CHECK(leak(convolution, in, T / 2) < 2 * tightest);
  }
}

TEST_CASE("fft_convolution: gradients agree with finite differences") {
  for (int64_t T : {1, 2, 7, 63, 100}) {
    CAPTURE(T);
    CHECK(gradient_error(convolution, convolution_inputs(3, T, 3, T)) < 1e-7);
  }
  CHECK(gradient_error(convolution, convolution_inputs(2, 20, 3, 7)) < 1e-7);
  CHECK(gradient_error(convolution, convolution_inputs(2, 7, 3, 20)) < 1e-7);
  CHECK(gradient_error(convolution, convolution_inputs(21, 5, 2, 5)) < 1e-7);
  const std::vector<Tensor> in = convolution_inputs(2, 7, 3, 7);
  const Function bare = [](const std::vector<Var>& v) { return fft_convolution(v[0], v[1], Var()); };
  CHECK(gradient_error(bare, {in[0], in[1]}) < 1e-7);
}

TEST_CASE("fft_convolution: the same bits for any number of threads, dry run") {
  check_threads(convolution, convolution_inputs(19, 63, 40, 63, DType::f32));
  check_dry_run(convolution, convolution_inputs(19, 63, 40, 63, DType::f32));
}
