// Matrix products on the GPU (or its emulation) against float64 on the CPU, in every precision.
//
// Bounds are on |c − exact| / (|A| |B|), element by element. float32 and three TF32 parts: rounding of
// products and sums; TF32: 2⁻¹¹ an operand; bf16: 2⁻⁹ an operand.
#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <vector>

#include "tensor/error.h"
#include "tensor/kernels.h"
#include "tensor/kernels/linear_add.h"
#include "tensor/rng.h"
#include "tensor/worse.h"

using namespace eigentrace;

namespace {

bool gpu_here() {
  if (cuda_device_count() > 0) return true;
  MESSAGE("no GPU here: this case needs one");
  return false;
}

struct Mode {
  const char* name;
  DType dtype;
  Precision precision;
  double bound;
};
constexpr Mode modes[] = {{"f64", DType::f64, Precision::fp32, 1e-14},
                          {"fp32", DType::f32, Precision::fp32, 2e-6},
                          {"tf32", DType::f32, Precision::tf32, 1.1e-3},
                          {"tf32x3", DType::f32, Precision::tf32x3, 4e-6},
                          {"bf16", DType::f32, Precision::bf16, 8.5e-3}};

Context gpu_context(Precision precision) {
  Context ctx(parse_device("cuda"), size_t{256} << 20);
  ctx.poison = true;
  ctx.precision = precision;
  return ctx;
}

/// A matrix with its exact values: rows of `values` and, on the device, a view with gaps or a transposed one.
struct Operand {
  int64_t rows, cols;
  std::vector<double> values;
  Tensor device;

  Operand(uint64_t seed, int64_t m, int64_t n, DType dtype, int64_t stride = 0, bool transposed = false)
      : rows(m), cols(n) {
    const int64_t wide = transposed ? std::max(stride, m) : std::max(stride, n), high = transposed ? n : m;
    Rng rng(seed);
    std::vector<double> memory(static_cast<size_t>(high * wide), NAN);
    values.resize(static_cast<size_t>(m * n));
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j) {
        const double v = static_cast<float>(rng.normal());
        memory[static_cast<size_t>(transposed ? j * wide + i : i * wide + j)] = v;
        values[static_cast<size_t>(i * n + j)] = v;
      }
    device =
        Tensor::from(memory, {high, wide}).clone(parse_device("cuda"), dtype).slice(1, 0, transposed ? m : n);
    if (transposed) device = device.transpose(0, 1);
  }
  double at(int64_t i, int64_t j) const { return values[static_cast<size_t>(i * cols + j)]; }
};

/// Largest error of c over the sum of absolute products: element (i, j) = bias_j + Σ_k a(i, k) b(k, j).
template <class A, class B>
double error(const Tensor& c, int64_t K, A&& a, B&& b, const double* bias = nullptr) {
  synchronise(c.device());
  const std::vector<double> found = c.to_vector<double>();
  const int64_t M = c.numel() / c.dim(-1), N = c.dim(-1);
  double worst = 0;
  for (int64_t i = 0; i < M; ++i)
    for (int64_t j = 0; j < N; ++j) {
      double sum = bias ? bias[j] : 0, size = std::abs(sum) + 1e-30;
      for (int64_t k = 0; k < K; ++k) sum += a(i, k) * b(k, j), size += std::abs(a(i, k) * b(k, j));
      const double e = std::abs(found[static_cast<size_t>(i * N + j)] - sum) / size;
      worst = worse(worst, e);
    }
  return worst;
}

/// Everything of a linear layer, with x's rows `gap` longer than needed, and dy's as many or gap_of_dy.
void check_linear(const Mode& mode, int64_t rows, int64_t in, int64_t out, int64_t gap, bool turned,
                  int64_t gap_of_dy = -1) {
  CAPTURE(mode.name);
  CAPTURE(rows);
  CAPTURE(in);
  CAPTURE(out);
  CAPTURE(gap);
  CAPTURE(turned);
  Context ctx = gpu_context(mode.precision);
  const Operand x(1, rows, in, mode.dtype, in + gap), w(2, out, in, mode.dtype, 0, turned),
      b(3, 1, out, mode.dtype), dy(4, rows, out, mode.dtype, out + (gap_of_dy < 0 ? gap : gap_of_dy));
  const Tensor bias = b.device.reshape({out});
  for (const bool with_bias : {false, true}) {
    Tensor y = kernels::empty_rows(ctx, {rows, out}, mode.dtype);
    kernels::linear(ctx, x.device, w.device, with_bias ? bias : Tensor(), y);
    CHECK(error(
              y, in, [&](auto i, auto k) { return x.at(i, k); }, [&](auto k, auto j) { return w.at(j, k); },
              with_bias ? b.values.data() : nullptr) < mode.bound);
  }
  Tensor dx = kernels::empty_rows(ctx, {rows, in}, mode.dtype);
  kernels::linear_backward_input(ctx, dy.device, w.device, dx);
  CHECK(error(
            dx, out, [&](auto i, auto k) { return dy.at(i, k); },
            [&](auto k, auto j) { return w.at(k, j); }) < mode.bound);
  const Operand sent(5, rows, in, mode.dtype, in + gap);
  for (const bool in_place : {false, true}) {
    Tensor sum = in_place ? sent.device.clone() : kernels::empty_rows(ctx, {rows, in}, mode.dtype);
    kernels::linear_backward_input_add(ctx, dy.device, w.device, in_place ? sum : sent.device, sum);
    synchronise(ctx.device());
    const std::vector<double> found = sum.to_vector<double>();
    double worst = 0;
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < in; ++j) {
        double exact = sent.at(i, j), size = std::abs(exact);
        for (int64_t k = 0; k < out; ++k)
          exact += dy.at(i, k) * w.at(k, j), size += std::abs(dy.at(i, k) * w.at(k, j));
        const double e = std::abs(found[static_cast<size_t>(i * in + j)] - exact) / size;
        worst = worse(worst, e);
      }
    CHECK(worst < mode.bound);
  }
  for (const bool with_bias : {false, true}) {
    Tensor dw = turned ? ctx.empty({in, out}, mode.dtype).transpose(0, 1) : ctx.empty({out, in}, mode.dtype);
    Tensor db = with_bias ? ctx.empty({out}, mode.dtype) : Tensor();
    kernels::linear_backward_weight(ctx, dy.device, x.device, dw, db);
    CHECK(error(
              dw, rows, [&](auto i, auto k) { return dy.at(k, i); },
              [&](auto k, auto j) { return x.at(k, j); }) < mode.bound);
    const double exact = mode.dtype == DType::f64 ? 1e-14 : 2e-6;  // no product, so in full precision
    const auto one = [](auto, auto) { return 1.0; };
    const auto column = [&](auto k, auto j) { return dy.at(k, j); };
    if (with_bias) CHECK(error(db.reshape({1, out}), rows, one, column) < exact);
    Tensor alone = ctx.empty({out}, mode.dtype);
    kernels::linear_backward_bias(ctx, dy.device, alone);
    CHECK(error(alone.reshape({1, out}), rows, one, column) < exact);
  }
}

/// The same of a layer too large for sums of single products here: float32 beside float64, whose products
/// take another way. Bound: sixteen roundings of 2⁻²⁴ a term of the sum.
void check_large_linear(int64_t rows, int64_t in, int64_t out, bool turned) {
  CAPTURE(rows);
  CAPTURE(in);
  CAPTURE(out);
  const Operand x(1, rows, in, DType::f32), w(2, out, in, DType::f32, 0, turned), b(3, 1, out, DType::f32),
      dy(4, rows, out, DType::f32, (out + 7) / 8 * 8), sent(5, rows, in, DType::f32, in + 4);
  const std::vector<int64_t> terms{in, in, out, out, out, rows, rows};
  std::vector<std::vector<double>> exact;
  for (const DType dtype : {DType::f64, DType::f32}) {
    Context ctx = gpu_context(Precision::fp32);
    const auto as = [&](const Operand& o) {
      return dtype == DType::f32 ? o.device : o.device.clone(ctx.device(), dtype);
    };
    std::vector<Tensor> made;
    for (const bool with_bias : {false, true}) {
      made.push_back(kernels::empty_rows(ctx, {rows, out}, dtype));
      kernels::linear(ctx, as(x), as(w), with_bias ? as(b).reshape({out}) : Tensor(), made.back());
    }
    for (int i = 0; i < 3; ++i) made.push_back(i == 2 ? as(sent).clone() : ctx.empty({rows, in}, dtype));
    kernels::linear_backward_input(ctx, as(dy), as(w), made[2]);
    kernels::linear_backward_input_add(ctx, as(dy), as(w), as(sent), made[3]);
    kernels::linear_backward_input_add(ctx, as(dy), as(w), made[4], made[4]);
    made.push_back(turned ? ctx.empty({in, out}, dtype).transpose(0, 1) : ctx.empty({out, in}, dtype));
    made.push_back(ctx.empty({out}, dtype));
    kernels::linear_backward_weight(ctx, as(dy), as(x), made[5], made[6]);
    synchronise(ctx.device());
    for (size_t i = 0; i < made.size(); ++i) {
      const std::vector<double> found = made[i].to_vector<double>();
      if (dtype == DType::f64) {
        exact.push_back(found);
        continue;
      }
      double worst = 0;
      for (size_t j = 0; j < found.size(); ++j) {
        const double e = std::abs(found[j] - exact[i][j]);
        worst = worse(worst, e);
      }
      CAPTURE(i);
      CHECK(worst < 1e-6 * static_cast<double>(terms[i]));
    }
  }
}

}  // namespace

TEST_CASE(
    "cuda products: linear and its gradients in every precision, odd sizes, rows with gaps, either layout") {
  if (!gpu_here()) return;
  for (const Mode& mode : modes) {
    check_linear(mode, 1, 1, 1, 0, false);
    check_linear(mode, 63, 7, 100, 1, false);
    check_linear(mode, 130, 63, 5, 3, true);
    check_linear(mode, 100, 132, 136, 4, false);
    check_linear(mode, 300, 36, 129, 0, true);
  }
}

TEST_CASE("cuda products: sums over many rows, in pieces of which the last is short") {
  if (!gpu_here()) return;
  for (const Mode& mode : modes) {
    check_linear(mode, 1000, 12, 33, 0, false);
    check_linear(mode, 2100, 8, 4, 4, true);
  }
}

TEST_CASE("cuda products: weight gradients of several tiles and pieces, whole and cut off") {
  if (!gpu_here()) return;
  for (const bool turned : {false, true}) {
    check_linear(modes[2], 660, 130, 260, 6, turned);
    check_linear(modes[2], 300, 256, 128, 0, turned);
  }
}

TEST_CASE("cuda products: the input's gradient of a layer large enough for a copy of its weight") {
  if (!gpu_here()) return;
  const int64_t rows = 33000, out = 64, in = 512;  // more than 2³⁰ multiplications
  const Operand dy(1, rows, out, DType::f32), w(2, out, in, DType::f32, in + 4);
  std::vector<std::vector<double>> found;
  for (const Precision precision : {Precision::fp32, Precision::tf32}) {
    Context ctx = gpu_context(precision);
    Tensor dx = ctx.empty({rows, in}, DType::f32);
    kernels::linear_backward_input(ctx, dy.device, w.device, dx);
    synchronise(ctx.device());
    found.push_back(dx.to_vector<double>());
  }
  double difference = 0, size = 0;
  for (size_t i = 0; i < found[0].size(); ++i)
    difference += std::pow(found[1][i] - found[0][i], 2), size += std::pow(found[0][i], 2);
  CHECK(std::sqrt(difference / size) < 1e-3);
  CHECK(size > 0.5 * static_cast<double>(rows * in * out));
}

TEST_CASE("cuda products: a width of 385, whose rows are padded") {
  if (!gpu_here()) return;
  const Mode& tf32 = modes[2];
  Context ctx = gpu_context(tf32.precision);
  const Tensor padded = kernels::empty_rows(ctx, {3, 5, 385}, DType::f32);
  CHECK(padded.stride(1) == 392);
  CHECK(padded.stride(0) == 5 * 392);
  CHECK(kernels::empty_rows(ctx, {3, 644}, DType::f32).stride(0) == 644);
  CHECK(kernels::empty_rows(ctx, {3, 644}, DType::bf16).stride(0) == 648);
  CHECK(kernels::empty_rows(ctx, {5, 384}, DType::f32).contiguous());
  CHECK(kernels::empty_rows(ctx, {5, 9}, DType::f32).contiguous());
  check_linear(tf32, 130, 36, 385, 7, false);
}

TEST_CASE("cuda products: one to three columns more than whole pieces, in aligned rows") {
  if (!gpu_here()) return;
  check_linear(modes[2], 130, 36, 385, 4, false);
  check_linear(modes[2], 70, 132, 258, 0, false);
  check_linear(modes[2], 65, 260, 131, 8, false);
}

TEST_CASE("cuda products: float32 columns and rows beside whole tiles, one to four") {
  if (!gpu_here()) return;
  check_large_linear(2100, 4100, 129, true);
  check_large_linear(2100, 4100, 130, false);
  check_large_linear(20004, 516, 131, false);  // pieces that are no whole number of the warps' turns
  check_large_linear(20004, 516, 132, true);
}

TEST_CASE("cuda products: a last wave of float32 tiles, almost empty, is made apart") {
  if (!gpu_here()) return;
  check_large_linear(1152, 256, 128, false);  // of the emulation's four multiprocessors; forward
  check_large_linear(1152, 128, 256, true);   // the input's gradient
  check_large_linear(8576, 256, 512, false);  // of 132
  check_large_linear(8576, 512, 256, false);
  check_large_linear(17408, 264, 512, true);  // two waves, and four tiles in each of two rows more
}

TEST_CASE("cuda products: weight gradients of whole tiles, the last piece of the sum a short one") {
  if (!gpu_here()) return;
  check_linear(modes[2], 544, 256, 256, 0, false);
  check_linear(modes[2], 544, 512, 128, 4, true);
  check_linear(modes[2], 544, 128, 512, 0, false);  // whole tiles of the turned product
}

TEST_CASE("cuda products: weight gradients of whole tiles and a few rows more, one for each row of tiles") {
  if (!gpu_here()) return;
  check_linear(modes[2], 544, 256, 385, 0, false, 7);
  check_linear(modes[2], 544, 256, 387, 4, true, 1);
  check_linear(modes[2], 544, 512, 129, 0, false, 3);
  check_linear(modes[2], 544, 256, 388, 0, false);  // one row too many: outer_kernel's
}

TEST_CASE("cuda products: batched matrices, transposed and broadcast views") {
  if (!gpu_here()) return;
  for (const Mode& mode : modes)
    for (const int view : {0, 1, 2, 3}) {
      CAPTURE(mode.name);
      CAPTURE(view);
      Context ctx = gpu_context(mode.precision);
      const int64_t outer = 3, inner = 2, M = 33, K = 20, N = 17;
      const Operand a(1, outer * inner * M, K, mode.dtype), b(2, outer * inner * K, N, mode.dtype);
      Tensor left = a.device.reshape({outer, inner, M, K}), right = b.device.reshape({outer, inner, K, N});
      Tensor c = ctx.empty({outer, inner, M, N}, mode.dtype);
      if (view == 1) left = left.transpose(0, 1), right = right.transpose(0, 1), c = c.transpose(0, 1);
      if (view == 2) right = right.slice(1, 0, 1).expand({outer, inner, K, N});
      if (view == 3) c = ctx.empty({outer, inner, N, M}, mode.dtype).transpose(2, 3);
      kernels::matmul(ctx, left, right, c);
      if (view == 1) c = c.transpose(0, 1);
      for (int64_t i = 0; i < outer; ++i)
        for (int64_t j = 0; j < inner; ++j) {
          const int64_t m = i * inner + j, of_b = view == 2 ? i * inner : m;
          const Tensor one = c.slice(0, i, 1).slice(1, j, 1);
          CHECK(error(
                    one, K, [&](auto r, auto k) { return a.at(m * M + r, k); },
                    [&](auto k, auto s) { return b.at(of_b * K + k, s); }) < mode.bound);
        }
    }
}

TEST_CASE("cuda products: nothing to add or nothing to write") {
  if (!gpu_here()) return;
  for (const Mode& mode : modes) {
    CAPTURE(mode.name);
    Context ctx = gpu_context(mode.precision);
    const Device gpu = ctx.device();
    Tensor none = Tensor::zeros({0, 5}, mode.dtype, gpu), w = Tensor::zeros({3, 5}, mode.dtype, gpu);
    Tensor y = ctx.empty({0, 3}, mode.dtype), dw = ctx.empty({3, 5}, mode.dtype),
           db = ctx.empty({3}, mode.dtype);
    kernels::linear(ctx, none, w, Tensor(), y);
    kernels::linear_backward_weight(ctx, y, none, dw, db);
    Tensor c = ctx.empty({2, 3}, mode.dtype);
    kernels::matmul(ctx, Tensor::zeros({2, 0}, mode.dtype, gpu), Tensor::zeros({0, 3}, mode.dtype, gpu), c);
    synchronise(gpu);
    for (const Tensor& zero : {dw, db, c})
      for (double v : zero.to_vector<double>()) CHECK(v == 0);
  }
}

TEST_CASE("cuda products: two runs give the same bits") {
  if (!gpu_here()) return;
  for (const Mode& mode : modes) {
    CAPTURE(mode.name);
    Context ctx = gpu_context(mode.precision);
    const Operand x(1, 600, 40, mode.dtype), dy(2, 600, 36, mode.dtype);
    const auto gradients = [&] {
      Tensor dw = ctx.empty({36, 40}, mode.dtype), db = ctx.empty({36}, mode.dtype);
      kernels::linear_backward_weight(ctx, dy.device, x.device, dw, db);
      synchronise(ctx.device());
      return std::array{dw.to_vector<double>(), db.to_vector<double>()};
    };
    CHECK(gradients() == gradients());
  }
}
