// Lines of single kernels at the sizes of the study. flops and bytes are what the algorithm needs at least
// (causal products count their lower triangle).
#include <fmt/format.h>

#include "autograd/ops_attention.h"
#include "autograd/ops_linear.h"
#include "autograd/ops_loss.h"
#include "autograd/ops_norm.h"
#include "autograd/ops_pointwise.h"
#include "autograd/ops_scan.h"
#include "autograd/ops_sequence.h"
#include "tensor/rng.h"
#include "tools/bench.h"

namespace eigentrace {
namespace {

Tensor random_values(Context& ctx, const Shape& shape, uint64_t seed) {
  Rng rng(seed);
  std::vector<float> values(static_cast<size_t>(shape.numel()));
  for (float& v : values) v = static_cast<float>(rng.normal());
  return Tensor::from(values, shape, ctx.device());
}

using Function = std::function<Var(Tape&, const std::vector<Var>&)>;

/// Adds two cases: forward alone, then forward and backward with a fixed cotangent. Bytes: inputs and output
/// once forward, three times with the gradients. The inputs are made when a case runs.
void add_cases(std::vector<BenchCase>& cases, const std::string& name, double flops, double backward_flops,
               const std::vector<Shape>& shapes, const Function& f, int repeats) {
  for (const bool backward : {false, true})
    cases.push_back({name + (backward ? " forward + backward" : " forward"), [=] {
                       Context ctx;
                       std::vector<Tensor> inputs;
                       double bytes = 0;
                       for (size_t i = 0; i < shapes.size(); ++i) {
                         inputs.push_back(random_values(ctx, shapes[i], i + 1));
                         bytes += static_cast<double>(inputs.back().bytes());
                       }
                       double output_bytes = 0;
                       const auto run = [&] {
                         Tape tape(ctx, backward);
                         std::vector<Var> leaves;
                         for (const Tensor& input : inputs) leaves.push_back(tape.leaf(input));
                         const std::vector<Var> y{f(tape, leaves)};
                         output_bytes = static_cast<double>(y[0].value().bytes());
                         const std::vector<Tensor> dy{y[0].value()};  // any cotangent will do
                         if (backward) tape.backward(y, dy);
                       };
                       BenchLine line;
                       line.seconds = best_seconds(repeats, run);
                       line.flops = backward ? flops + backward_flops : flops;
                       line.bytes = (bytes + output_bytes) * (backward ? 3 : 1);
                       line.peak_mib = static_cast<double>(ctx.slab().peak()) / 1048576.0;
                       return line;
                     }});
}

Labels every_eighth_row(int64_t count, int64_t classes, Device device) {
  std::vector<int32_t> rows, labels;
  for (int64_t m = 0; m < count; ++m) {
    rows.push_back(static_cast<int32_t>(8 * m));
    labels.push_back(static_cast<int32_t>(m % classes));
  }
  return {Tensor::from(rows, {count}, device), Tensor::from(labels, {count}, device),
          Tensor::from(std::vector<float>(rows.size(), 1), {count}, device),
          Tensor::from(std::vector<double>{static_cast<double>(count)}, {1}, device)};
}

/// Multiplications and additions of the ssd's products: pairs within a chunk of 128, states in and out.
double ssd_flops(double steps, double N, double P, double pair_products, double state_products) {
  return steps * (pair_products * 128 * (N + P) + state_products * 2 * N * P);
}

Var negative_exp(const Var& x) { return unary(Unary::neg, unary(Unary::exp, x)); }

/// The recurrences of LRU and Mamba-1 and S4's two halves, at MQAR's sizes.
void add_scans(std::vector<BenchCase>& cases, int repeats) {
  add_cases(
      cases, "diagonal_scan 64x512, N 128", 0, 0, {{64, 512, 256}, {128}, {128}},
      [](Tape&, const std::vector<Var>& x) { return diagonal_scan(x[0], negative_exp(x[1]), x[2]); },
      repeats);
  add_cases(
      cases, "selective_scan 8x512, E 256, S 16", 0, 0,
      {{8, 512, 256}, {8, 512, 256}, {256, 16}, {8, 512, 16}, {8, 512, 16}, {256}},
      [](Tape&, const std::vector<Var>& x) {
        return selective_scan(x[0], unary(Unary::softplus, x[1]), x[2], x[3], x[4], x[5]);
      },
      repeats);
  add_cases(
      cases, "s4_kernel N 128, D 128, L 512", 0, 0,
      {{128, 128}, {128, 128}, {128, 128, 2}, {128, 128, 2}, {128, 128, 2}, {1, 128}},
      [](Tape&, const std::vector<Var>& x) {
        return s4_kernel(negative_exp(x[0]), x[1], x[2], x[3], x[4], x[5], 512);
      },
      repeats);
  add_cases(
      cases, "fft_convolution 64x512, D 128", 0, 0, {{64, 512, 128}, {128, 512}, {128}},
      [](Tape&, const std::vector<Var>& x) { return fft_convolution(x[0], x[1], x[2]); }, repeats);
}

}  // namespace

std::vector<BenchCase> kernel_benchmarks(bool quick) {
  std::vector<BenchCase> cases;
  const int repeats = quick ? 1 : 5;
  const double rows = 32768, D = 128;
  add_cases(
      cases, "linear [32768,128]x[384,128]", 2 * rows * D * 384, 4 * rows * D * 384,
      {{32768, 128}, {384, 128}, {384}},
      [](Tape&, const std::vector<Var>& x) { return linear(x[0], x[1], x[2]); }, repeats);
  const std::vector<Shape> heads(3, Shape{64, 512, 1, 128});
  const double product = rows * 512 * D;  // the lower triangle of one product
  add_cases(
      cases, "softmax_attention 64x512, N 128, P 128", 2 * product, 5 * product, heads,
      [](Tape&, const std::vector<Var>& x) { return softmax_attention(x[0], x[1], x[2], 0.088, 0).y; },
      repeats);
  // backward: the states again and their gradient, three products of pairs, three of states
  const auto add_ssd = [&](int64_t B, int64_t T) {
    const double steps = static_cast<double>(B * T);
    add_cases(
        cases, fmt::format("ssd {}x{}, N 128, P 128", B, T), ssd_flops(steps, D, D, 1, 2),
        ssd_flops(steps, D, D, 2.5, 5), std::vector<Shape>(3, Shape{B, T, 1, 128}),
        [](Tape&, const std::vector<Var>& x) { return ssd(x[0], x[1], x[2], Var(), Var()); }, repeats);
  };
  add_ssd(64, 512);
  for (int64_t T = 512; T <= 8192; T *= 2) add_ssd(4, T);  // time must grow linearly
  const double head = 2.0 * 4096 * D * 8192;
  add_cases(
      cases, "vocabulary_head 4096x128x8192", head, 2 * head, {{32768, 128}, {8192, 128}},
      [](Tape& tape, const std::vector<Var>& x) {
        const Labels labels = every_eighth_row(4096, 8192, tape.ctx().device());
        return vocabulary_head(x[0], x[1], Var(), labels).value;
      },
      repeats);
  add_cases(
      cases, "layer_norm [32768,128]", 0, 0, {{32768, 128}, {128}, {128}},
      [](Tape&, const std::vector<Var>& x) { return layer_norm(x[0], x[1], x[2], 1e-5); }, repeats);
  add_cases(
      cases, "unary gelu [32768,128]", 0, 0, {{32768, 128}},
      [](Tape&, const std::vector<Var>& x) { return unary(Unary::gelu, x[0]); }, repeats);
  add_cases(
      cases, "causal_conv1d, silu [64,512,384], K 4", 0, 0, {{64, 512, 384}, {384, 1, 4}, {384}},
      [](Tape&, const std::vector<Var>& x) { return causal_conv1d(x[0], x[1], x[2], true); }, repeats);
  add_scans(cases, repeats);
  return cases;
}

}  // namespace eigentrace
