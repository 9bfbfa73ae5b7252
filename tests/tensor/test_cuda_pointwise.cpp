// The CUDA bodies that are bound by memory, against the CPU's in float64: sizes that fill blocks and sizes
// that do not, rows apart, views off 16 bytes, results in poisoned memory, the same bits twice.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "tensor/error.h"
#include "tensor/kernels.h"
#include "tensor/kernels/causal_conv1d_elu.h"
#include "tensor/kernels/copy_each.h"
#include "tensor/kernels/gated_batch_norm.h"
#include "tensor/kernels/glu_norm.h"
#include "tensor/rng.h"

using namespace eigentrace;

namespace {

enum class Layout { dense, off_by_one, rows_apart, rows_apart_aligned };

/// The operands of one run: the same numbers on every device, in the type and layout asked for.
struct Run {
  Context& ctx;
  DType dtype;
  Layout layout;
  Rng rng{5};
  std::vector<std::vector<double>> results;
  std::vector<Tensor> written;

  Tensor view(const Tensor& base, const Shape& shape) const {
    if (layout == Layout::dense || shape.rank() == 0) return base;
    if (layout == Layout::off_by_one) return base.slice(0, 1, shape.numel()).reshape(shape);
    return base.slice(-1, layout == Layout::rows_apart ? 1 : 4, shape[-1]);
  }
  Shape base_shape(const Shape& shape) const {
    if (layout == Layout::dense || shape.rank() == 0) return shape;
    if (layout == Layout::off_by_one) return {shape.numel() + 1};
    Shape wider = shape;
    wider[-1] += layout == Layout::rows_apart ? 3 : 8;
    return wider;
  }
  Tensor in(const Shape& shape, double low = -2, double high = 2) {
    Tensor y = view(Tensor::zeros(base_shape(shape), dtype, ctx.device()), shape);
    std::vector<double> values(static_cast<size_t>(shape.numel()));
    for (double& x : values) x = rng.uniform(low, high);
    Context plain(ctx.device(), ctx.device().is_cuda() ? size_t{16} << 20 : 0);
    kernels::copy(plain, Tensor::from(values, shape).clone(ctx.device(), dtype), y);
    synchronise(ctx.device());
    return y;
  }
  /// Parameters are dense in every layout.
  Tensor vector(const Shape& shape) {
    std::vector<double> values(static_cast<size_t>(shape.numel()));
    for (double& x : values) x = rng.uniform(0.5, 1.5);
    return Tensor::from(values, shape).clone(ctx.device(), dtype);
  }
  Tensor integers(const std::vector<int32_t>& values, const Shape& shape) const {
    return Tensor::from(values, shape, ctx.device());
  }
  Tensor out(const Shape& shape) { return keep(view(ctx.empty(base_shape(shape), dtype), shape)); }
  Tensor dense_out(const Shape& shape) { return keep(ctx.empty(shape, dtype)); }
  Tensor keep(const Tensor& y) { return written.push_back(y), y; }
};

using Case = std::function<void(Run&)>;

std::vector<std::vector<double>> run(Context& ctx, DType dtype, Layout layout, const Case& body) {
  Run r{ctx, dtype, layout, Rng(5), {}, {}};
  ctx.set_step(9, 4);
  body(r);
  synchronise(ctx.device());
  std::vector<std::vector<double>> values;
  for (const Tensor& t : r.written) {
    if (is_floating(t.dtype())) {
      values.push_back(t.to_vector<double>());
    } else {
      const std::vector<int32_t> integers = t.to_vector<int32_t>();
      values.emplace_back(integers.begin(), integers.end());
    }
  }
  return values;
}

double worst(const std::vector<std::vector<double>>& x, const std::vector<std::vector<double>>& y) {
  double most = 0;
  for (size_t k = 0; k < y.size(); ++k) {
    double scale = 1;
    for (double v : y[k]) scale = std::max(scale, std::abs(v));
    for (size_t i = 0; i < y[k].size(); ++i) {
      if (std::isnan(x[k][i]) && std::isnan(y[k][i])) continue;
      const double d = std::abs(x[k][i] - y[k][i]) / scale;
      most = d <= most ? most : d;
    }
  }
  return most;
}

/// body on the GPU gives the CPU's float64 within `bound32` (float32) and 1e-11 (float64), in every layout.
void check(const std::string& name, const Case& body, double bound32 = 1e-5, bool layouts = true) {
  if (cuda_device_count() == 0) {
    MESSAGE("no GPU here: this case needs one");
    return;
  }
  Context cpu, gpu(parse_device("cuda"), size_t{64} << 20);
  cpu.poison = gpu.poison = true;
  for (const Layout layout :
       {Layout::dense, Layout::off_by_one, Layout::rows_apart, Layout::rows_apart_aligned}) {
    if (!layouts && layout != Layout::dense) continue;
    CAPTURE(name);
    CAPTURE(static_cast<int>(layout));
    const auto exact = run(cpu, DType::f64, layout, body);
    CHECK(worst(run(gpu, DType::f64, layout, body), exact) < 1e-11);
    const auto narrow = run(gpu, DType::f32, layout, body);
    CHECK(worst(narrow, exact) < bound32);
    CHECK(worst(run(gpu, DType::f32, layout, body), narrow) == 0);
  }
}

std::string named(const char* what, const Shape& shape) { return std::string(what) + " " + to_string(shape); }

}  // namespace

TEST_CASE("cuda pointwise: maps of one and two operands") {
  for (const Shape& shape : {Shape{1}, Shape{63}, Shape{3001}, Shape{4096}, Shape{100, 64}, Shape{33, 385},
                             Shape{7, 5, 36}, Shape{2, 3, 4, 5}, Shape{3, 1100}, Shape{0, 4}}) {
    check(named("unary", shape), [&](Run& r) {
      const Tensor x = r.in(shape), dy = r.in(shape);
      Tensor y = r.out(shape), dx = r.out(shape);
      kernels::unary(r.ctx, kernels::Unary::gelu, x, y);
      kernels::unary_backward(r.ctx, kernels::Unary::gelu, x, dy, dx);
    });
    check(named("binary", shape), [&](Run& r) {
      const Tensor a = r.in(shape), b = r.in(shape, 0.5, 2), dy = r.in(shape);
      Tensor y = r.out(shape), z = r.out(shape), w = r.out(shape), v = r.out(shape);
      kernels::binary(r.ctx, kernels::Binary::add, a, b, y);
      kernels::div_backward_b(r.ctx, dy, a, b, z);
      kernels::scale(r.ctx, a, -0.7, w);
      kernels::fill(r.ctx, v, 3);
      kernels::accumulate(r.ctx, b, v);
    });
  }
}

TEST_CASE("cuda pointwise: broadcast operands, transposed copies") {
  for (const int64_t width : {1, 5, 64, 132}) {
    const Shape shape{5, 7, width};
    check(named("broadcast", shape), [&](Run& r) {
      const Tensor x = r.in(shape), row = r.vector({width}), scalar = r.vector({1}),
                   column = r.vector({5, 1, 1});
      const Tensor middle = r.vector({7, 1});
      for (const Tensor& b : {row, scalar, column, middle}) {
        Tensor y = r.out(shape);
        kernels::binary(r.ctx, kernels::Binary::mul, x, b.expand(shape), y);
      }
      Tensor t = r.dense_out({width, 7, 5});
      kernels::copy(r.ctx, x.transpose(0, 2), t);
      Tensor all = r.dense_out(shape);
      kernels::fill(r.ctx, all, 1);
      kernels::accumulate(r.ctx, scalar.expand(shape), all);
    });
  }
}

TEST_CASE("cuda pointwise: glu, dropout and activations with it") {
  for (const int64_t width : {1, 7, 64, 300}) {
    check(named("glu", {9, width}), [&](Run& r) {
      const Tensor x = r.in({9, 2 * width}), dy = r.in({9, width});
      Tensor y = r.out({9, width}), dx = r.out({9, 2 * width});
      kernels::glu(r.ctx, x, y);
      kernels::glu_backward(r.ctx, x, dy, dx);
    });
    for (const bool shared : {false, true})
      check(named("dropout", {3, 41, width}), [&](Run& r) {
        const Tensor x = r.in({3, 41, width});
        Tensor y = r.out(x.shape()), z = r.out(x.shape());
        kernels::dropout(r.ctx, x, 0.3, 5, shared, y);
        kernels::dropout(r.ctx, x, 0.9, 6, shared, z);
      });
    for (const kernels::Unary f : {kernels::Unary::gelu, kernels::Unary::gelu_tanh})
      for (const bool shared : {false, true})
        check(named("activation", {3, 41, width}), [&](Run& r) {
          const Tensor x = r.in({3, 41, width}), dy = r.in({3, 41, width});
          Tensor y = r.out(x.shape()), dx = r.out(x.shape());
          const kernels::Dropout drop{0.3, 5, shared};
          kernels::activation(r.ctx, f, x, drop, y);
          kernels::activation_backward(r.ctx, f, x, drop, dy, dx);
        });
  }
}

TEST_CASE("cuda pointwise: sums over an axis") {
  for (const Shape& shape : {Shape{3, 1, 5}, Shape{2, 700, 1}, Shape{1, 5000, 4}, Shape{1, 3000, 20},
                             Shape{5, 9, 130}, Shape{1, 9001, 1}, Shape{70, 33, 7}, Shape{2, 0, 3}})
    check(
        named("sum", shape),
        [&](Run& r) {
          const Tensor x = r.in(shape);
          for (int axis = 0; axis < 3; ++axis) {
            Tensor y = r.dense_out(shape.without(axis));
            kernels::sum(r.ctx, x, axis, y);
          }
        },
        1e-5, shape.numel() < 5000);
}

TEST_CASE("cuda pointwise: LayerNorm and RMSNorm, plain and residual") {
  for (const int64_t width : {1, 63, 100, 260, 512, 1000, 1100})
    for (const bool residual : {false, true}) {
      const int64_t rows = width < 200 ? 19 : 9;
      const Shape shape{rows, width};
      check(
          named(residual ? "residual norm" : "norm", shape),
          [&](Run& r) {
            const Tensor x = r.in(shape), weight = r.vector({width}), bias = r.vector({width});
            kernels::NormForward f{.x = x, .weight = weight, .bias = residual ? Tensor{} : bias};
            f.epsilon = 1e-5;
            if (residual)
              f.branch = r.in(shape), f.p = 0.3, f.random_op = 2, f.sum = r.out(shape), f.bias = bias;
            f.y = r.out(shape), f.rstd = r.dense_out({rows}), f.mean = r.dense_out({rows});
            kernels::layer_norm(r.ctx, f);
            kernels::NormBackward b{.x = residual ? f.sum : x,
                                    .weight = weight,
                                    .mean = f.mean,
                                    .rstd = f.rstd,
                                    .dy = r.in(shape)};
            if (residual) b.dsum = r.in(shape), b.p = 0.3, b.random_op = 2, b.dbranch = r.out(shape);
            b.dx = r.out(shape), b.dweight = r.dense_out({width}), b.dbias = r.dense_out({width});
            kernels::layer_norm_backward(r.ctx, b);
            kernels::NormForward rms{.x = x, .weight = weight};
            rms.epsilon = 1e-5, rms.y = r.out(shape), rms.rstd = r.dense_out({rows});
            kernels::layer_norm(r.ctx, rms);
            kernels::NormBackward rms_back{.x = x, .weight = weight, .rstd = rms.rstd, .dy = r.in(shape)};
            rms_back.dweight = r.dense_out({width});
            kernels::layer_norm_backward(r.ctx, rms_back);  // the parameters' gradient alone
            rms_back.dx = r.out(shape), rms_back.dweight = {};
            kernels::layer_norm_backward(r.ctx, rms_back);
          },
          width == 1 ? 1e-3 : 2e-5);  // of one number a row the variance is rounding alone
    }
}

TEST_CASE("cuda pointwise: LayerNorm of a residual and a gated linear unit") {
  for (const int64_t width : {1, 63, 100, 260, 512, 1100}) {
    const int64_t rows = width < 200 ? 19 : 9;
    check(
        named("glu_layer_norm", {rows, width}),
        [&](Run& r) {
          const Shape shape{rows, width};
          kernels::NormForward f{.x = r.in(shape), .weight = r.vector({width}), .bias = r.vector({width})};
          f.epsilon = 1e-3, f.sum = r.out(shape), f.y = r.out(shape);
          f.rstd = r.dense_out({rows}), f.mean = r.dense_out({rows});
          kernels::glu_layer_norm(r.ctx, f, r.in({rows, 2 * width}));
        },
        width == 1 ? 1e-3 : 2e-5);  // of one number a row the variance is rounding alone
  }
}

TEST_CASE("cuda pointwise: LayerNorm over more rows than a block takes") {
  check(
      "layer_norm, 5000 rows",
      [](Run& r) {
        const Shape shape{5000, 4};
        const Tensor x = r.in(shape), weight = r.vector({4}), bias = r.vector({4});
        kernels::NormForward f{.x = x, .weight = weight, .bias = bias};
        f.epsilon = 1e-5, f.y = r.out(shape), f.rstd = r.dense_out({5000}), f.mean = r.dense_out({5000});
        kernels::layer_norm(r.ctx, f);
        kernels::NormBackward b{.x = x, .weight = weight, .mean = f.mean, .rstd = f.rstd, .dy = r.in(shape)};
        b.dx = r.out(shape), b.dweight = r.dense_out({4}), b.dbias = r.dense_out({4});
        kernels::layer_norm_backward(r.ctx, b);
      },
      1e-4, false);
}

TEST_CASE("cuda pointwise: BatchNorm, training and evaluation") {
  for (const Shape& shape : {Shape{1, 5}, Shape{127, 64}, Shape{300, 7}, Shape{3, 150, 132}})
    for (const bool training : {true, false})
      check(
          named("batch_norm", shape),
          [&](Run& r) {
            const int64_t width = shape[-1];
            const Tensor weight = r.vector({width}), bias = r.vector({width});
            kernels::BatchNorm n{.x = r.in(shape, 99, 101), .weight = weight, .bias = bias};
            n.running_mean = r.keep(r.vector({width})), n.running_var = r.keep(r.vector({width}));
            n.epsilon = 1e-1, n.momentum = 0.9, n.training = training;
            n.y = r.out(shape), n.rstd = r.dense_out({width});
            n.mean = training ? r.dense_out({width}) : n.running_mean;
            kernels::batch_norm(r.ctx, n);
            const Tensor dy = r.in(shape);
            Tensor dx = r.out(shape), dw = r.dense_out({width}), db = r.dense_out({width}), none;
            kernels::batch_norm_backward(r.ctx, n.x, weight, n.mean, n.rstd, training, dy, dx, dw, db);
            kernels::batch_norm_backward(r.ctx, n.x, weight, n.mean, n.rstd, training, dy, none, dw, db);
          },
          training ? 2e-4 : 2e-5);  // x near 100: seven digits leave five after the mean
}

TEST_CASE("cuda pointwise: BatchNorm over more blocks of rows than a column has threads to merge them") {
  const Shape shape{8600, 5};
  check(
      named("batch_norm", shape),
      [&](Run& r) {
        const Tensor weight = r.vector({5}), bias = r.vector({5});
        kernels::BatchNorm n{.x = r.in(shape, -3, 5), .weight = weight, .bias = bias};
        n.epsilon = 1e-5, n.training = true;
        n.y = r.out(shape), n.mean = r.dense_out({5}), n.rstd = r.dense_out({5});
        kernels::batch_norm(r.ctx, n);
      },
      1e-5);
}

TEST_CASE("cuda pointwise: copies of several tensors in one launch, whole packs or not, one of them empty") {
  for (const int64_t width : {7, 64})
    check(
        named("copy_each", {3, width}),
        [&](Run& r) {
          std::vector<std::pair<Tensor, Tensor>> pairs;
          for (const Shape& shape : {Shape{3, width}, Shape{40, 2 * width}, Shape{width}, Shape{0, width}})
            pairs.emplace_back(r.in(shape), shape.rank() == 1 ? r.out(shape) : r.dense_out(shape));
          kernels::copy_each(r.ctx, pairs);
          kernels::copy_each(r.ctx, {});
        },
        1e-7);  // inputs rounded to float32
}

TEST_CASE("cuda pointwise: a linear layer of one input column, rows of several blocks and pieces") {
  for (const Shape& shape : {Shape{1, 1}, Shape{3, 63}, Shape{150, 132}, Shape{701, 7}, Shape{2, 150, 260}})
    check(
        named("linear of one column", shape),
        [&](Run& r) {
          const int64_t width = shape[-1];
          Shape rows = shape;
          rows[-1] = 1;
          const Tensor x = r.in(rows), dy = r.in(shape), weight = r.vector({1, width}).transpose(0, 1),
                       bias = r.vector({width});
          Tensor y = r.out(shape), bare = r.out(shape), none;
          kernels::linear(r.ctx, x, weight, bias, y);
          kernels::linear(r.ctx, x, weight, none, bare);
          Tensor dw = r.dense_out({width, 1}), db = r.dense_out({width}), dw_alone = r.dense_out({width, 1});
          kernels::linear_backward_weight(r.ctx, dy, x, dw, db);
          kernels::linear_backward_weight(r.ctx, dy, x, dw_alone, none);
        },
        1e-5);
}

TEST_CASE("cuda pointwise: BatchNorm of a gate") {
  for (const Shape& shape : {Shape{1, 2, 5}, Shape{2, 127, 64}, Shape{3, 150, 132}})
    for (const bool joined : {true, false})
      check(
          named("gated_batch_norm", shape),
          [&](Run& r) {
            const int64_t width = shape[-1];
            kernels::Gate g{.a = r.in(shape), .z = r.in(shape)};
            if (joined) g.residual = r.in(shape), g.drop = {0.3, 5, true};
            kernels::BatchNorm n{.x = r.out(shape), .weight = r.vector({width}), .bias = r.vector({width})};
            n.running_mean = r.keep(r.vector({width})), n.running_var = r.keep(r.vector({width}));
            n.epsilon = 1e-1, n.momentum = 0.9;
            n.y = r.out(shape), n.rstd = r.dense_out({width}), n.mean = r.dense_out({width});
            kernels::gated_batch_norm(r.ctx, g, n);
            Tensor dx = r.out(shape), da = r.out(shape), dz = r.out(shape), none;
            Tensor dw = r.dense_out({width}), db = r.dense_out({width});
            kernels::gated_batch_norm_backward(r.ctx, g, n, r.in(shape), dx, da, dz, dw, db);
            kernels::gated_batch_norm_backward(r.ctx, g, n, r.in(shape), dx, none, dz, dw, db);
          },
          1e-4);
}

TEST_CASE("cuda pointwise: the short causal convolution, elu + 1 in a range of its channels") {
  struct Size {
    int64_t batch, time, channels, taps;
    kernels::ChannelRange elu;
  };
  for (const Size& s :
       {Size{1, 1, 1, 4, {}}, Size{2, 150, 20, 4, {}}, Size{1, 70, 132, 4, {}}, Size{2, 33, 8, 3, {}},
        Size{3, 70, 5, 4, {}}, Size{1, 600, 2, 2, {}}, Size{210, 250, 4, 4, {}}, Size{2, 150, 20, 4, {8, 20}},
        Size{1, 100, 132, 4, {3, 131}}, Size{2, 63, 7, 4, {0, 5}}, Size{1, 40, 260, 4, {129, 130}},
        Size{2, 33, 8, 3, {1, 8}}})
    for (const bool silu : {false, true}) {
      const Shape shape{s.batch, s.time, s.channels};
      check(
          named("conv", shape),
          [&](Run& r) {
            const Tensor x = r.in(shape), weight = r.vector({s.channels, 1, s.taps}),
                         bias = r.vector({s.channels});
            Tensor y = r.dense_out(shape);
            kernels::causal_conv1d_elu(r.ctx, x, weight, bias, silu, s.elu, y);
            const Tensor dy = r.in(shape);
            Tensor dx = r.out(shape), dw = r.dense_out(weight.shape()), db = r.dense_out(bias.shape()), none;
            kernels::causal_conv1d_backward(r.ctx, x, weight, bias, silu, dy, dx, dw, db);
            Tensor only_dx = r.out(shape), only_dw = r.dense_out(weight.shape());
            kernels::causal_conv1d_backward(r.ctx, x, weight, bias, silu, dy, only_dx, none, none);
            kernels::causal_conv1d_backward(r.ctx, x, weight, bias, silu, dy, none, only_dw, none);
          },
          2e-5);
    }
}

TEST_CASE("cuda pointwise: embedding; a token that fills the batch is summed like any other") {
  const int64_t batch = 3, time = 151, vocabulary = 37;
  for (const int64_t width : {1, 5, 132})
    for (const int frequent : {0, 60, 100})  // per cent of the positions
      check(named("embedding", {width, frequent}), [&](Run& r) {
        Rng rng(static_cast<uint64_t>(frequent) + 1);
        std::vector<int32_t> ids, order;
        for (int64_t k = 0; k < batch * time; ++k) {
          const bool most = static_cast<int>(rng.below(100)) < frequent;
          ids.push_back(most ? 20 : static_cast<int32_t>(2 + rng.below(30)));
          order.push_back(static_cast<int32_t>(k));
        }
        std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
          return ids[static_cast<size_t>(a)] < ids[static_cast<size_t>(b)];
        });
        const Tensor tokens = r.integers(ids, {batch, time}), sorted = r.integers(order, {batch, time});
        const Tensor table = r.in({vocabulary, width}), positions = r.in({time + 3, width});
        Tensor y = r.dense_out({batch, time, width}), z = r.dense_out(y.shape());
        kernels::embedding(r.ctx, tokens, table, positions, r.vector({width}), y);
        kernels::embedding(r.ctx, tokens, table, {}, {}, z);
        const Tensor dy = r.in({batch, time, width});
        Tensor dtable = r.out({vocabulary, width});
        kernels::embedding_backward(r.ctx, tokens, sorted, dy, dtable);
      });
}

TEST_CASE("cuda pointwise: pooling over lengths and valid time; reversed time") {
  using kernels::Pool;
  const int64_t batch = 4, time = 90;
  for (const int64_t width : {1, 7, 132})
    for (const Pool how : {Pool::mean, Pool::max, Pool::sum, Pool::first, Pool::last})
      for (const bool limited : {false, true})
        check(named("pool", {static_cast<int64_t>(how), width, limited}), [&](Run& r) {
          const Shape shape{batch, time, width};
          const Tensor x = r.in(shape);
          const Tensor lengths = limited ? r.integers({90, 0, 1, 67}, {batch}) : Tensor{};
          const Tensor valid = limited ? r.integers({80}, {1}) : Tensor{};
          Tensor y = r.dense_out({batch, width}), argmax;
          if (how == Pool::max) argmax = r.keep(r.ctx.empty({batch, width}, DType::i32));
          kernels::pool(r.ctx, how, x, lengths, valid, y, argmax);
          const Tensor dy = r.in({batch, width});
          Tensor dx = r.out(shape), back = r.out(shape);
          kernels::pool_backward(r.ctx, how, lengths, valid, argmax, dy, dx);
          if (how == Pool::sum)
            kernels::reverse_time(r.ctx, x, back);
          else
            kernels::fill(r.ctx, back, 0);
        });
}
