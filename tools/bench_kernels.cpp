#include "tools/bench_kernels.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "autograd/ops_attention.h"
#include "autograd/ops_linear.h"
#include "autograd/ops_loss.h"
#include "tensor/blas.h"
#include "tensor/rng.h"

namespace eigentrace {
namespace {

Tensor random_values(Context& ctx, const Shape& shape, uint64_t seed) {
  Rng rng(seed);
  std::vector<float> values(static_cast<size_t>(shape.numel()));
  for (float& v : values) v = static_cast<float>(rng.normal());
  return Tensor::from(values, shape, ctx.device());
}

double total_bytes(const std::vector<Tensor>& tensors) {
  double bytes = 0;
  for (const Tensor& tensor : tensors) bytes += static_cast<double>(tensor.bytes());
  return bytes;
}

using Function = std::function<Var(Tape&, const std::vector<Var>&)>;

/// Forward alone, then forward and backward with a fixed cotangent. Bytes: inputs and output once forward,
/// three times with the gradients.
void add_lines(std::vector<BenchLine>& lines, Context& ctx, int repeats, const std::string& name,
               double flops, double backward_flops, const std::vector<Tensor>& inputs, const Function& f) {
  const auto run = [&](bool recording) {
    Tape tape(ctx, recording);
    std::vector<Var> leaves;
    for (const Tensor& input : inputs) leaves.push_back(tape.leaf(input));
    const std::vector<Var> y{f(tape, leaves)};
    if (!recording) return;
    const std::vector<Tensor> dy{y[0].value()};  // any cotangent will do
    tape.backward(y, dy);
  };
  const double bytes = total_bytes(inputs);
  lines.push_back({name + " forward", best_seconds(repeats, [&] { run(false); }), flops, bytes});
  lines.push_back({name + " forward + backward", best_seconds(repeats, [&] { run(true); }),
                   flops + backward_flops, 3 * bytes});
}

Labels every_eighth_row(Context& ctx, int64_t count, int64_t classes) {
  std::vector<int32_t> rows, labels;
  for (int64_t m = 0; m < count; ++m) {
    rows.push_back(static_cast<int32_t>(8 * m));
    labels.push_back(static_cast<int32_t>(m % classes));
  }
  const Device device = ctx.device();
  return {Tensor::from(rows, {count}, device), Tensor::from(labels, {count}, device),
          Tensor::from(std::vector<float>(rows.size(), 1), {count}, device),
          Tensor::from(std::vector<double>{static_cast<double>(count)}, {1}, device)};
}

/// Multiplications and additions of the ssd's products: pairs within a chunk of 128, states in and out.
double ssd_flops(double steps, double N, double P, double pair_products, double state_products) {
  return steps * (pair_products * 128 * (N + P) + state_products * 2 * N * P);
}

}  // namespace

double best_seconds(int repeats, const std::function<void()>& f) {
  using clock = std::chrono::steady_clock;
  f();
  double best = 1e300;
  for (int i = 0; i < repeats; ++i) {
    const clock::time_point start = clock::now();
    f();
    best = std::min(best, std::chrono::duration<double>(clock::now() - start).count());
  }
  return best;
}

BenchLine bench_gemm_ceiling(int repeats) {
  const int64_t n = 2048;
  std::vector<float> a(static_cast<size_t>(n * n), 0.5f), b(a), c(a);
  const double seconds = best_seconds(repeats, [&] {
    parallel_gemm<float>(n, n, n, 1, {a.data(), n}, {b.data(), n}, 0, {c.data(), n});
  });
  const double size = static_cast<double>(n);
  return {fmt::format("gemm 2048³ float32, {}", blas_core()), seconds, 2 * size * size * size,
          12 * size * size};
}

std::vector<BenchLine> bench_kernels(Context& ctx, int repeats) {
  std::vector<BenchLine> lines;
  const double rows = 32768, D = 128;
  {
    const double flops = 2 * rows * D * 384;
    add_lines(lines, ctx, repeats, "linear [32768,128]×[384,128]", flops, 2 * flops,
              {random_values(ctx, {32768, 128}, 1), random_values(ctx, {384, 128}, 2),
               random_values(ctx, {384}, 3)},
              [](Tape&, const std::vector<Var>& x) { return linear(x[0], x[1], x[2]); });
  }
  const Shape heads{64, 512, 1, 128};
  const std::vector<Tensor> qkv{random_values(ctx, heads, 1), random_values(ctx, heads, 2),
                                random_values(ctx, heads, 3)};
  {
    const double product = rows * 512 * D;  // the lower triangle of one product
    add_lines(
        lines, ctx, repeats, "softmax_attention B64 T512 N128 P128", 2 * product, 5 * product, qkv,
        [](Tape&, const std::vector<Var>& x) { return softmax_attention(x[0], x[1], x[2], 0.088, 0).y; });
    // backward: the states again and their gradient, three products of pairs, three of states
    add_lines(lines, ctx, repeats, "ssd B64 T512 N128 P128", ssd_flops(rows, D, D, 1, 2),
              ssd_flops(rows, D, D, 2.5, 5), qkv,
              [](Tape&, const std::vector<Var>& x) { return ssd(x[0], x[1], x[2], Var(), Var()); });
  }
  {
    const Labels labels = every_eighth_row(ctx, 4096, 8192);
    const double flops = 2.0 * 4096 * D * 8192;
    add_lines(
        lines, ctx, repeats, "vocabulary_head 4096×128×8192", flops, 2 * flops,
        {random_values(ctx, {32768, 128}, 1), random_values(ctx, {8192, 128}, 2)},
        [&](Tape&, const std::vector<Var>& x) { return vocabulary_head(x[0], x[1], Var(), labels).value; });
  }
  return lines;
}

std::vector<BenchLine> bench_ssd_lengths(Context& ctx, int repeats) {
  std::vector<BenchLine> lines;
  for (int64_t T = 512; T <= 8192; T *= 2) {
    const Shape heads{4, T, 1, 128};
    std::vector<BenchLine> both;
    add_lines(both, ctx, repeats, fmt::format("ssd B4 N128 P128 T{}", T),
              ssd_flops(4.0 * static_cast<double>(T), 128, 128, 1, 2),
              ssd_flops(4.0 * static_cast<double>(T), 128, 128, 2.5, 5),
              {random_values(ctx, heads, 1), random_values(ctx, heads, 2), random_values(ctx, heads, 3)},
              [](Tape&, const std::vector<Var>& x) { return ssd(x[0], x[1], x[2], Var(), Var()); });
    lines.push_back(both[1]);
  }
  return lines;
}

}  // namespace eigentrace
