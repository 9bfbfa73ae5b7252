// The kernels that bound a training step on a GPU, at the study's sizes, each captured alone. The floor of a
// line is its operands' bytes, each once, at the measured rate of a copy, or its products at the measured
// rate, whichever is longer.
#include <fmt/format.h>

#include <algorithm>

#include "tensor/graph.h"
#include "tensor/kernels.h"
#include "tensor/kernels/head_blocks.h"
#include "tensor/rng.h"
#include "tools/bench.h"

namespace eigentrace {
namespace {

using kernels::NormFunction;

/// Sequences as the attention-like kernels see them.
struct Sizes {
  const char* name;
  int64_t B, T, H, N, P;
  int64_t shared_heads;  ///< of q and k in Mamba-2
  int64_t mamba_N;
  double dropout;  ///< of softmax attention
  int64_t tokens() const { return B * T; }
};
constexpr Sizes study[] = {{"mqar", 64, 512, 1, 128, 128, 1, 128, 0.0},
                           {"cifar", 50, 1024, 4, 16, 128, 1, 64, 0.0},
                           {"imdb", 6, 4096, 4, 16, 32, 1, 64, 0.1}};

/// One line: operands are made by its methods, which count their bytes.
class Kernel {
 public:
  Kernel(const GpuBench& how, Precision precision) : how_(how), ctx_(how.device, size_t{12} << 30) {
    ctx_.precision = precision;
    if (how.attention) ctx_.attention_precision = *how.attention;
    ctx_.set_step(1, 1);
  }
  Tensor read(const Shape& shape) {
    std::vector<float> values(static_cast<size_t>(shape.numel()));
    for (float& v : values) v = static_cast<float>(rng_.uniform(0.01, 1));
    bytes_ += 4.0 * static_cast<double>(values.size());
    return Tensor::from(values, shape, how_.device);
  }
  Tensor written(const Shape& shape) {
    bytes_ += 4.0 * static_cast<double>(shape.numel());
    return Tensor::zeros(shape, DType::f32, how_.device);
  }
  Tensor not_wanted(const Shape& shape) { return Tensor::zeros(shape, DType::f32, how_.device); }
  Context& ctx() { return ctx_; }

  /// `flops`: of its products, at the rate of `precision`.
  BenchLine time(double flops, Precision precision, const std::function<void()>& work) {
    constexpr int calls = 8;
    work();
    synchronise(how_.device);
    const CapturedGraph graph(ctx_, [&] {
      for (int i = 0; i < calls; ++i) work();
    });
    BenchLine line;
    line.seconds = steady_seconds(how_.device, how_.quick ? 1 : 4, [&] { graph.launch(ctx_); }) / calls;
    line.flops = flops, line.bytes = bytes_;
    line.floor = std::max(flops / gemm_rate(how_.ceilings, precision), bytes_ / how_.ceilings.copy);
    line.peak_mib = static_cast<double>(ctx_.slab().peak()) / 1048576.0;
    line.note = fmt::format("{} kernels, {:.0f} GB/s", graph.nodes() / calls, bytes_ / line.seconds / 1e9);
    return line;
  }

 private:
  const GpuBench& how_;
  Context ctx_;
  Rng rng_{11};
  double bytes_ = 0;
};

BenchLine softmax(const GpuBench& how, Precision precision, const Sizes& s, bool backward) {
  Kernel k(how, precision);
  const Precision inside = how.attention.value_or(precision);
  const Shape qk{s.B, s.T, s.H, s.N}, vy{s.B, s.T, s.H, s.P};
  const double scale = 0.25, pairs = static_cast<double>(s.B * s.H * s.T) * static_cast<double>(s.T) / 2,
               n = static_cast<double>(s.N), p = static_cast<double>(s.P);
  const Tensor q = k.read(qk), keys = k.read(qk), v = k.read(vy);
  if (!backward) {
    Tensor y = k.written(vy), lse = k.written({s.B, s.T, s.H});
    return k.time(pairs * 2 * (n + p), inside,
                  [&] { kernels::softmax_attention(k.ctx(), q, keys, v, scale, s.dropout, 1, y, lse); });
  }
  Tensor y = k.read(vy), lse = k.read({s.B, s.T, s.H});
  kernels::softmax_attention(k.ctx(), q, keys, v, scale, s.dropout, 1, y, lse);
  const Tensor dy = k.read(vy);
  Tensor dq = k.written(qk), dk = k.written(qk), dv = k.written(vy);
  return k.time(pairs * 2 * (3 * n + 2 * p), inside, [&] {
    kernels::softmax_attention_backward(k.ctx(), q, keys, v, y, lse, dy, scale, s.dropout, 1, dq, dk, dv);
  });
}

/// Weights in, out of one product y = x Wᵀ and which of its three products is made.
struct LinearSizes {
  const char* name;
  int64_t tokens, in, out;
};
constexpr LinearSizes linears[] = {
    {"cifar 512 to 640", 51200, 512, 640},   {"cifar 512 to 644", 51200, 512, 644},
    {"mqar 128 to 8192", 4096, 128, 8192},   {"cifar 512 to 512", 51200, 512, 512},
    {"cifar 512 to 128", 51200, 512, 128},   {"cifar 128 to 512", 51200, 128, 512},
    {"cifar 512 to 1024", 51200, 512, 1024}, {"mqar 128 to 384", 32768, 128, 384},
    {"mqar 128 to 385", 32768, 128, 385},    {"mqar 128 to 128", 32768, 128, 128},
    {"mqar 128 to 256", 32768, 128, 256},    {"imdb 128 to 256", 24576, 128, 256},
    {"imdb 128 to 512", 24576, 128, 512},    {"imdb 512 to 128", 24576, 512, 128}};
enum class Which { forward, input, weight };

BenchLine linear(const GpuBench& how, Precision precision, const LinearSizes& s, Which which) {
  Kernel k(how, precision);
  const auto rows = [&](int64_t width) {
    const Tensor dense = k.read({s.tokens, width});
    Tensor padded = kernels::empty_rows(k.ctx(), {s.tokens, width}, DType::f32);
    kernels::copy(k.ctx(), dense, padded);
    return padded;
  };
  const double flops = 2.0 * static_cast<double>(s.tokens) * static_cast<double>(s.in * s.out);
  Tensor x = rows(s.in), y = rows(s.out), w = k.read({s.out, s.in}), b = k.read({s.out});
  return k.time(flops, precision, [&] {
    if (which == Which::forward) kernels::linear(k.ctx(), x, w, b, y);
    if (which == Which::input) kernels::linear_backward_input(k.ctx(), y, w, x);
    if (which == Which::weight) kernels::linear_backward_weight(k.ctx(), y, x, w, b);
  });
}

BenchLine conv(const GpuBench& how, Precision precision, const Sizes& s, bool backward) {
  Kernel k(how, precision);
  const int64_t channels = s.H * (2 * s.N + s.P);
  const Shape shape{s.B, s.T, channels};
  const Tensor x = k.read(shape), weight = k.read({channels, 1, 4}), bias = k.read({channels});
  if (!backward) {
    Tensor y = k.written(shape);
    return k.time(0, precision, [&] { kernels::causal_conv1d(k.ctx(), x, weight, bias, true, y); });
  }
  const Tensor dy = k.read(shape);
  Tensor dx = k.written(shape), dweight = k.written({channels, 1, 4}), dbias = k.written({channels});
  return k.time(0, precision, [&] {
    kernels::causal_conv1d_backward(k.ctx(), x, weight, bias, true, dy, dx, dweight, dbias);
  });
}

/// sum = x + dropout(branch), y = norm(sum), and its gradients.
BenchLine norm(const GpuBench& how, Precision precision, const Sizes& s, bool backward) {
  Kernel k(how, precision);
  const int64_t D = s.H * s.P;
  const Shape shape{s.tokens(), D};
  const Tensor x = k.read(shape), weight = k.read({D}), bias = k.read({D});
  Tensor mean = k.not_wanted({s.tokens()}), rstd = k.not_wanted({s.tokens()});
  if (!backward) {
    const Tensor branch = k.read(shape);
    Tensor sum = k.written(shape), y = k.written(shape);
    return k.time(0, precision, [&] {
      kernels::layer_norm(k.ctx(), {.x = x,
                                    .branch = branch,
                                    .weight = weight,
                                    .bias = bias,
                                    .p = s.dropout,
                                    .random_op = 1,
                                    .sum = sum,
                                    .y = y,
                                    .mean = mean,
                                    .rstd = rstd});
    });
  }
  const Tensor dy = k.read(shape), dsum = k.read(shape);
  Tensor dx = k.written(shape), dweight = k.written({D}), dbias = k.written({D});
  return k.time(0, precision, [&] {
    kernels::layer_norm_backward(k.ctx(), {.x = x,
                                           .weight = weight,
                                           .mean = mean,
                                           .rstd = rstd,
                                           .dy = dy,
                                           .dsum = dsum,
                                           .dx = dx,
                                           .dweight = dweight,
                                           .dbias = dbias});
  });
}

/// MQAR's loss and gradients at 64 labels of each of 64 sequences, logits in blocks of `mib`.
BenchLine head(const GpuBench& how, Precision precision, int64_t mib) {
  Kernel k(how, precision);
  const int64_t labels = 4096, rows = 32768, D = 128, V = 8192;
  std::vector<int32_t> row(static_cast<size_t>(labels)), label(row);
  for (size_t i = 0; i < row.size(); ++i)
    row[i] = static_cast<int32_t>(8 * i), label[i] = static_cast<int32_t>(i % static_cast<size_t>(V));
  const auto whole = [&](const std::vector<int32_t>& values) {
    return Tensor::from(values, {labels}, how.device);
  };
  const Tensor at = whole(row), classes = whole(label);
  const Tensor weights = Tensor::from(std::vector<float>(row.size(), 1.0f), {labels}, how.device);
  const Tensor count = Tensor::from(std::vector<double>{static_cast<double>(labels)}, {1}, how.device);
  const auto one = [&](DType dtype) { return Tensor::zeros({1}, dtype, how.device); };
  Tensor value = Tensor::zeros({}, DType::f32, how.device), correct = one(DType::f64), sum = one(DType::f64),
         argmax = Tensor::zeros({labels}, DType::i32, how.device);
  const Tensor x = k.not_wanted({rows, D}), w = k.read({V, D});
  Tensor dx = k.written({labels, D}), dw = k.written({V, D}), none;
  const int64_t before = kernels::head_block_bytes;
  kernels::head_block_bytes = mib << 20;
  BenchLine line = k.time(6.0 * static_cast<double>(labels * D) * static_cast<double>(V), precision, [&] {
    kernels::vocabulary_head(k.ctx(), x, w, {}, {at, classes, weights, count}, {value, correct, sum, argmax},
                             dx, dw, none);
  });
  kernels::head_block_bytes = before;
  return line;
}

}  // namespace

std::vector<BenchCase> gpu_kernel_benchmarks(const GpuBench& how) {
  std::vector<BenchCase> cases;
  for (const Precision precision : how.precisions) {
    const auto add = [&](const std::string& name, auto make, auto... rest) {
      cases.push_back({fmt::format("kernel: {}, {}", name, name_of(precision)),
                       [=] { return make(how, precision, rest...); }});
    };
    for (const Sizes& s : study)
      for (const bool backward : {false, true}) {
        const char* direction = backward ? " backward" : "";
        add(fmt::format("softmax attention{} {}", direction, s.name), softmax, s, backward);
        add(fmt::format("conv{} {}", direction, s.name), conv, s, backward);
        add(fmt::format("layer norm{} {}", direction, s.name), norm, s, backward);
      }
    for (const int64_t mib : {16, 32, 64, 256})
      add(fmt::format("vocabulary head mqar, blocks of {} MiB", mib), head, mib);
    for (const LinearSizes& s : linears)
      for (const auto& [which, name] : {std::pair{Which::forward, "linear"},
                                        {Which::input, "linear input gradient"},
                                        {Which::weight, "linear weight gradient"}})
        add(fmt::format("{} {}", name, s.name), linear, s, which);
  }
  return cases;
}

}  // namespace eigentrace
