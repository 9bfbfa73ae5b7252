// Scans and long convolutions on the GPU (or its emulation) against the CPU in float64, at sizes that the
// table of op cases does not reach: several chunks of time, several blocks of states, odd and long sequences.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "tensor/kernels.h"
#include "tensor/kernels/fft_convolution_add.h"
#include "tensor/kernels/skip_from_y.h"
#include "tensor/rng.h"
#include "tensor/worse.h"
#include "tests/cuda_testing.h"

using namespace eigentrace;
using namespace eigentrace::testing;

namespace {

using Values = std::vector<std::vector<double>>;
using Tensors = std::vector<Tensor>;

Tensor normal(const Shape& shape, uint64_t seed, double scale = 1) {
  Rng rng(seed, 5);
  std::vector<double> values(static_cast<size_t>(shape.numel()));
  for (double& v : values) v = scale * rng.normal();
  return Tensor::from(values, shape);
}
Tensor uniform(const Shape& shape, uint64_t seed, double low, double high) {
  Rng rng(seed, 6);
  std::vector<double> values(static_cast<size_t>(shape.numel()));
  for (double& v : values) v = rng.uniform(low, high);
  return Tensor::from(values, shape);
}

/// A kernel with all its operands: makes its outputs in step memory and fills them.
using Run = std::function<Tensors(Context&, const Tensors&)>;

Values results(const Run& run, const Tensors& inputs, Device device, DType dtype) {
  Context ctx(device, device.is_cuda() ? size_t{512} << 20 : 0);
  ctx.poison = true;
  Tensors mine;
  for (const Tensor& x : inputs) mine.push_back(x.clone(device, dtype));
  Values all;
  for (const Tensor& y : run(ctx, mine)) all.push_back(y.to_vector<double>());
  return all;
}

/// x as the middle of a tensor five columns wider.
Tensor strided(Context& ctx, const Tensor& x) {
  const int last = x.rank() - 1;
  Shape wide = x.shape();
  wide[last] += 5;
  Tensor view = ctx.empty(wide, x.dtype()).slice(last, 2, x.dim(last));
  kernels::copy(ctx, x, view);
  return view;
}

/// Inputs are rounded to float32 first, so that only what the kernel rounds is measured.
void check(const Run& run, const Tensors& given, double float32_bound, double float64_bound = 1e-11) {
  Tensors inputs;
  for (const Tensor& x : given) inputs.push_back(x.clone({}, DType::f32).clone({}, DType::f64));
  const Device gpu = parse_device("cuda");
  const Values exact = results(run, inputs, {}, DType::f64);
  const Values single = results(run, inputs, gpu, DType::f32);
  CHECK(relative_error(results(run, inputs, gpu, DType::f64), exact, 1e-3) < float64_bound);
  CHECK(relative_error(single, exact, 1e-3) < float32_bound);
  CHECK(results(run, inputs, gpu, DType::f32) == single);
}

Tensors scan(Context& ctx, const Tensors& in, bool reverse) {
  const Tensor x = strided(ctx, in[0]), dh = strided(ctx, in[1]);
  Tensor h = strided(ctx, in[0]), dx = strided(ctx, in[0]), la = ctx.empty_like(in[2]),
         arg = ctx.empty_like(in[3]);
  kernels::diagonal_scan(ctx, x, in[2], in[3], reverse, h);
  kernels::diagonal_scan_backward(ctx, h, in[2], in[3], reverse, dh, dx, la, arg);
  Tensor none, alone = ctx.empty_like(in[3]), dx_alone = strided(ctx, in[0]);
  kernels::diagonal_scan_backward(ctx, h, in[2], in[3], reverse, dh, none, none, alone);
  kernels::diagonal_scan_backward(ctx, h, in[2], in[3], reverse, dh, dx_alone, none, none);
  Tensors out;
  for (const Tensor& t : {h, dx, dx_alone}) {
    Tensor dense = ctx.empty(t.shape(), t.dtype());
    kernels::copy(ctx, t, dense);
    out.push_back(dense);
  }
  out.push_back(la), out.push_back(arg), out.push_back(alone);
  return out;
}

}  // namespace

TEST_CASE("cuda diagonal_scan: the CPU's values and gradients, forwards and backwards, any size") {
  if (!gpu_here()) return;
  const int64_t sizes[][3] = {{1, 1, 1},    {2, 63, 7},    {3, 300, 33},
                              {1, 2049, 5}, {100, 20, 17}, {200, 130, 3}};
  for (const auto& size : sizes)
    for (const bool reverse : {false, true}) {
      const int64_t b = size[0], t = size[1], n = size[2];
      CAPTURE(b);
      CAPTURE(t);
      CAPTURE(n);
      CAPTURE(reverse);
      if (reverse && b >= 100) continue;
      check([&](Context& ctx, const Tensors& in) { return scan(ctx, in, reverse); },
            {normal({b, t, 2 * n}, 1), normal({b, t, 2 * n}, 2), uniform({n}, 3, -0.3, -0.003),
             uniform({n}, 4, -3, 3)},
            2e-5);
    }
}

TEST_CASE("cuda diagonal_scan: what comes later changes no bit of what was before") {
  if (!gpu_here()) return;
  const int64_t T = 700, N = 3, changed = 401;
  Tensor x = normal({1, T, 2 * N}, 1);
  const Tensors rest = {normal({1, T, 2 * N}, 2), uniform({N}, 3, -0.3, -0.003), uniform({N}, 4, -3, 3)};
  const auto h_of = [&](const Tensor& input) {
    return results([](Context& ctx, const Tensors& in) { return scan(ctx, in, false); },
                   {input, rest[0], rest[1], rest[2]}, parse_device("cuda"), DType::f32)[0];
  };
  std::vector<double> before = h_of(x), values = x.to_vector<double>();
  for (size_t i = changed * 2 * N; i < values.size(); ++i) values[i] += 1;
  std::vector<double> after = h_of(Tensor::from(values, x.shape()));
  CHECK(before.back() != after.back());
  before.resize(changed * 2 * N), after.resize(changed * 2 * N);
  CHECK(before == after);
}

TEST_CASE("cuda selective_scan: the CPU's values and gradients, any size") {
  if (!gpu_here()) return;
  const int64_t sizes[][4] = {{1, 1, 1, 1}, {2, 63, 33, 5}, {1, 300, 40, 16}, {2, 49, 7, 37}};
  for (const auto& size : sizes) {
    const int64_t b = size[0], t = size[1], e = size[2], s = size[3];
    CAPTURE(b);
    CAPTURE(t);
    CAPTURE(e);
    CAPTURE(s);
    const auto run = [](Context& ctx, const Tensors& in) {
      const kernels::SelectiveScan operands{strided(ctx, in[0]), strided(ctx, in[1]), in[2],
                                            strided(ctx, in[3]), strided(ctx, in[4]), in[5]};
      Tensor y = ctx.empty_like(in[0]), no_boundary;
      Tensor boundary = ctx.empty(kernels::selective_scan_boundary(in[0], in[3]), in[0].dtype());
      kernels::selective_scan(ctx, operands, y, no_boundary);
      Tensors out = {y};
      y = ctx.empty_like(in[0]);
      kernels::selective_scan(ctx, operands, y, boundary);
      out.push_back(y);
      kernels::SelectiveScan gradient{ctx.empty_like(in[0]), ctx.empty_like(in[1]), ctx.empty_like(in[2]),
                                      ctx.empty_like(in[3]), ctx.empty_like(in[4]), ctx.empty_like(in[5])};
      const Tensor dy = strided(ctx, in[6]);
      kernels::selective_scan_backward(ctx, operands, boundary, dy, gradient);
      kernels::SelectiveScan some{{}, ctx.empty_like(in[1]), {}, ctx.empty_like(in[3]), {}, {}};
      kernels::selective_scan_backward(ctx, operands, boundary, dy, some);
      for (const Tensor& g : {gradient.x, gradient.delta, gradient.a_log, gradient.b, gradient.c, gradient.d,
                              some.delta, some.b})
        out.push_back(g);
      return out;
    };
    check(run,
          {normal({b, t, e}, 1), uniform({b, t, e}, 2, 0.01, 0.5), uniform({e, s}, 3, -1, 2),
           normal({b, t, s}, 4), normal({b, t, s}, 5), normal({e}, 6), normal({b, t, e}, 7)},
          2e-5);
  }
}

TEST_CASE("cuda s4_kernel: the CPU's kernels and gradients, any length") {
  if (!gpu_here()) return;
  // states, channels, length: one table of states and two, one node a thread and more, odd and even lengths
  const int64_t sizes[][3] = {{1, 1, 1},   {3, 2, 63},   {70, 2, 100}, {5, 3, 300},
                              {2, 1, 512}, {4, 1, 1200}, {2, 1, 2049}};
  for (const auto& size : sizes) {
    const int64_t n = size[0], d = size[1], length = size[2];
    CAPTURE(n);
    CAPTURE(d);
    CAPTURE(length);
    const auto run = [length](Context& ctx, const Tensors& in) {
      const kernels::S4Parameters parameters{in[0], in[1], in[2], in[3], in[4], in[5]};
      Tensor k = ctx.empty({in[0].dim(1), length}, in[0].dtype());
      kernels::s4_kernel(ctx, parameters, k);
      kernels::S4Parameters g{ctx.empty_like(in[0]), ctx.empty_like(in[1]), ctx.empty_like(in[2]),
                              ctx.empty_like(in[3]), ctx.empty_like(in[4]), ctx.empty_like(in[5])};
      kernels::s4_kernel_backward(ctx, parameters, strided(ctx, in[6]), g);
      Tensor k_again = ctx.empty_like(k);
      const Tensor kept = kernels::s4_kernel_kept(ctx, parameters, length);
      kernels::s4_kernel(ctx, parameters, k_again, kept);
      kernels::S4Parameters h{ctx.empty_like(in[0]), ctx.empty_like(in[1]), ctx.empty_like(in[2]),
                              ctx.empty_like(in[3]), ctx.empty_like(in[4]), ctx.empty_like(in[5])};
      kernels::s4_kernel_backward(ctx, parameters, strided(ctx, in[6]), h, kept);
      return Tensors{k,       g.lambda_re, g.lambda_im, g.p, g.b, g.c, g.log_step,
                     k_again, h.lambda_re, h.lambda_im, h.p, h.b, h.c, h.log_step};
    };
    check(run,
          {uniform({n, d}, 1, -0.7, 0.01), normal({n, d}, 2, 30), normal({n, d, 2}, 3), normal({n, d, 2}, 4),
           normal({n, d, 2}, 5), uniform({1, d}, 6, -6, -2), normal({d, length}, 7)},
          1e-6, 1e-9);
  }
}

TEST_CASE("cuda fft_convolution: the CPU's values and gradients within rounding, any length") {
  if (!gpu_here()) return;
  // batch, time, channels, taps
  const int64_t sizes[][4] = {{1, 1, 1, 1},     {3, 63, 5, 63},     {2, 300, 9, 200},
                              {5, 100, 3, 130}, {1, 520, 2, 520},   {2, 1030, 3, 1030},
                              {4, 1000, 5, 24}, {3, 2049, 2, 2049}, {3, 40, 5, 1}};
  for (const auto& size : sizes) {
    const int64_t b = size[0], t = size[1], d = size[2], taps = size[3];
    CAPTURE(b);
    CAPTURE(t);
    CAPTURE(d);
    CAPTURE(taps);
    const auto run = [](Context& ctx, const Tensors& in) {
      const Tensor u = strided(ctx, in[0]), dy = strided(ctx, in[3]);
      const auto dense = [&](const Tensor& x) {
        Tensor y = ctx.empty(x.shape(), x.dtype());
        kernels::copy(ctx, x, y);
        return y;
      };
      Tensor y = strided(ctx, in[0]), without = ctx.empty_like(in[0]), none;
      kernels::fft_convolution(ctx, u, in[1], in[2], y);
      kernels::fft_convolution(ctx, u, in[1], none, without);
      Tensor du = strided(ctx, in[0]), dk = ctx.empty_like(in[1]), dd = ctx.empty_like(in[2]);
      Tensor y_kept = ctx.empty_like(in[0]), du_kept = ctx.empty_like(in[0]);
      const Tensor kept = kernels::fft_convolution_kept(ctx, u, in[1]);
      kernels::fft_convolution(ctx, u, in[1], in[2], y_kept, kept);
      kernels::fft_convolution_backward(ctx, u, in[1], in[2], dy, du_kept, dk, dd, kept);
      dk = ctx.empty_like(in[1]);
      kernels::fft_convolution_backward(ctx, u, in[1], in[2], dy, du, dk, dd);
      Tensor du_alone = ctx.empty_like(in[0]), dk_alone = ctx.empty_like(in[1]);
      kernels::fft_convolution_backward(ctx, u, in[1], none, dy, du_alone, none, none);
      kernels::fft_convolution_backward(ctx, u, in[1], none, dy, none, dk_alone, none);
      return Tensors{dense(y), without, dense(du), dk, dd, du_alone, dk_alone, y_kept, du_kept};
    };
    check(run, {normal({b, t, d}, 1), uniform({d, taps}, 2, -0.2, 0.2), normal({d}, 3), normal({b, t, d}, 4)},
          2e-6);
  }
}

TEST_CASE("cuda channel_skip: the CPU's values and gradients, any size") {
  if (!gpu_here()) return;
  const int64_t sizes[][2] = {{1, 1}, {63, 100}, {1200, 5}, {300, 260}};
  for (const auto& size : sizes) {
    const int64_t rows = size[0], columns = size[1];
    CAPTURE(rows);
    CAPTURE(columns);
    const auto run = [](Context& ctx, const Tensors& in) {
      Tensor z = ctx.empty_like(in[0]), du = ctx.empty_like(in[0]), dd = ctx.empty_like(in[2]), none;
      kernels::channel_skip(ctx, in[0], in[1], in[2], z);
      kernels::channel_skip_backward(ctx, in[1], in[2], in[0], du, dd);
      Tensor dd_alone = ctx.empty_like(dd), du_alone = ctx.empty_like(du), z_strided = ctx.empty_like(z);
      kernels::channel_skip(ctx, in[0], strided(ctx, in[1]), in[2], z_strided);
      kernels::channel_skip_backward(ctx, strided(ctx, in[1]), in[2], in[0], none, dd_alone);
      kernels::channel_skip_backward(ctx, strided(ctx, in[1]), in[2], in[0], du_alone, none);
      return Tensors{z, du, dd, z_strided, du_alone, dd_alone};
    };
    check(run, {normal({rows, columns}, 1), normal({rows, columns}, 2), normal({columns}, 3)}, 2e-6);
  }
}

TEST_CASE("cuda channel_skip_activation: the CPU's values and gradients, any size, each kind of mask") {
  if (!gpu_here()) return;
  const int64_t sizes[][3] = {{1, 1, 1}, {3, 100, 260}, {5, 33, 7}, {2, 300, 128}};
  for (const auto& size : sizes)
    for (const kernels::Dropout& drop :
         {kernels::Dropout{}, kernels::Dropout{0.3, 5, true}, kernels::Dropout{0.2, 6, false}}) {
      const int64_t batch = size[0], time = size[1], columns = size[2];
      CAPTURE(time);
      CAPTURE(columns);
      CAPTURE(drop.p);
      const auto run = [&](Context& ctx, const Tensors& in) {
        constexpr auto f = kernels::Unary::gelu_tanh;
        Tensor z = ctx.empty_like(in[0]), g = ctx.empty_like(in[0]), dz = ctx.empty_like(in[0]), none;
        Tensor du = ctx.empty_like(in[0]), dd = ctx.empty_like(in[2]), dz_alone = ctx.empty_like(in[0]);
        kernels::channel_skip_activation(ctx, in[0], strided(ctx, in[1]), in[2], f, drop, z, g);
        kernels::channel_skip_activation_backward(ctx, strided(ctx, in[1]), in[2], z, f, drop, in[0], in[1],
                                                  dz, du, dd, in[0]);
        kernels::channel_skip_activation_backward(ctx, in[1], in[2], z, f, drop, in[0], none, dz_alone, none,
                                                  none);
        // without z
        Tensor g_alone = ctx.empty_like(in[0]), dy = ctx.empty_like(in[0]), du_of_y = ctx.empty_like(in[0]),
               dd_of_y = ctx.empty_like(in[2]);
        kernels::channel_skip_activation(ctx, in[0], strided(ctx, in[1]), in[2], f, drop, none, g_alone);
        kernels::channel_skip_activation_backward_from_y(ctx, in[0], strided(ctx, in[1]), in[2], f, drop,
                                                         in[1], dy, du_of_y, dd_of_y, in[0]);
        return Tensors{z, g, dz, du, dd, dz_alone, g_alone, dy, du_of_y, dd_of_y};
      };
      check(run, {normal({batch, time, columns}, 1), normal({batch, time, columns}, 2), normal({columns}, 3)},
            5e-6);
    }
}

TEST_CASE(
    "cuda fft_convolution: whole packs of channels, several sequences a block, a gradient on top of what was "
    "sent") {
  if (!gpu_here()) return;
  for (const int64_t d : {12, 540}) {
    const int64_t b = d == 12 ? 3 : 5, t = d == 12 ? 1000 : 513;
    CAPTURE(d);
    const auto run = [](Context& ctx, const Tensors& in) {
      Tensor y = ctx.empty_like(in[0]), du = ctx.empty_like(in[0]), in_place = ctx.empty_like(in[0]);
      Tensor dk = ctx.empty_like(in[1]), dd = ctx.empty_like(in[2]), none;
      const Tensor kept = kernels::fft_convolution_kept(ctx, in[0], in[1]);
      kernels::fft_convolution(ctx, in[0], in[1], in[2], y, kept);
      kernels::fft_convolution_backward_add(ctx, in[0], in[1], in[2], in[3], in[4], du, dk, dd, kept);
      kernels::copy(ctx, in[4], in_place);
      kernels::fft_convolution_backward_add(ctx, in[0], in[1], in[2], in[3], in_place, in_place, none, none,
                                            kept);
      return Tensors{y, du, dk, dd, in_place};
    };
    check(run,
          {normal({b, t, d}, 1), normal({d, t}, 2, 0.1), normal({d}, 3), normal({b, t, d}, 4),
           normal({b, t, d}, 5)},
          1e-5, 1e-11);
  }
}

TEST_CASE("cuda fft_convolution: float32 within 8 eps log2(2T) |K|_1 max|u|") {
  if (!gpu_here()) return;
  for (const int64_t T : {100, 512, 1000, 2048, 2049, 4200}) {
    const int64_t D = 2;
    const Tensors in = {normal({2, T, D}, 1), normal({D, T}, 2, 0.1)};
    const Run run = [](Context& ctx, const Tensors& x) {
      Tensor y = ctx.empty_like(x[0]), none;
      kernels::fft_convolution(ctx, x[0], x[1], none, y);
      return Tensors{y};
    };
    const Values exact = results(run, in, {}, DType::f64);
    const Values y = results(run, in, parse_device("cuda"), DType::f32);
    const std::vector<double> u = in[0].to_vector<double>(), k = in[1].to_vector<double>();
    for (int64_t d = 0; d < D; ++d) {
      double sum = 0, most = 0, worst = 0;
      for (int64_t t = 0; t < T; ++t) sum += std::abs(k[static_cast<size_t>(d * T + t)]);
      for (size_t i = static_cast<size_t>(d); i < u.size(); i += static_cast<size_t>(D)) {
        most = std::max(most, std::abs(u[i]));
        worst = worse(worst, std::abs(y[0][i] - exact[0][i]));
      }
      CAPTURE(T);
      CHECK(worst < 8 * 0x1p-23 * std::log2(2.0 * static_cast<double>(T)) * sum * most);
    }
  }
}
