// The scalar-decay recurrence on the GPU (or its emulation) against the CPU in float64.
#include <doctest/doctest.h>

#include <functional>

#include "autograd/ops_attention.h"
#include "autograd/ops_pointwise.h"
#include "tensor/kernels.h"
#include "tests/op_checks.h"

using namespace eigentrace;
using namespace eigentrace::testing;

namespace {

enum class Decay { none, per_head, per_step };

struct Case {
  int64_t B, T, G, H, N, P;
  Decay decay = Decay::none;
  double least = -1;
  bool weighs = false;
};

struct Operands {
  Tensor q, k, v, log_a, w, dy;
};

/// Float64 operands whose values are float32 numbers. Parts of one projection, as a layer cuts them: rows
/// that are not aligned.
Operands operands(const Case& c, uint64_t seed = 1) {
  const auto rounded = [](const Tensor& x) { return x.clone({}, DType::f32).clone({}, DType::f64); };
  Operands x;
  x.q = rounded(random_tensor({c.B, c.T, c.G, c.N}, seed)),
  x.k = rounded(random_tensor(x.q.shape(), seed + 1));
  x.v = rounded(random_tensor({c.B, c.T, c.H, c.P}, seed + 2));
  x.dy = rounded(random_tensor(x.v.shape(), seed + 3));
  const Shape steps{c.B, c.T, c.H};
  if (c.decay == Decay::per_step) x.log_a = rounded(uniform_tensor(steps, seed + 4, c.least, 0));
  if (c.decay == Decay::per_head) x.log_a = rounded(uniform_tensor({c.H}, seed + 4, c.least, 0));
  if (c.weighs) x.w = rounded(uniform_tensor(steps, seed + 5, 0, 1));
  return x;
}

/// [B, T, H, N] as a part of wider rows, `gap` elements from their start; its values are x's.
Tensor part_of_rows(const Tensor& x, int64_t gap, Device device, DType dtype) {
  const int64_t B = x.dim(0), T = x.dim(1), width = x.dim(2) * x.dim(3), room = width + 2 * gap + 1;
  const std::vector<double> values = x.to_vector<double>();
  std::vector<double> wide(static_cast<size_t>(B * T * room), NAN);
  for (int64_t r = 0; r < B * T; ++r)
    for (int64_t e = 0; e < width; ++e)
      wide[static_cast<size_t>(r * room + gap + e)] = values[static_cast<size_t>(r * width + e)];
  return Tensor::from(wide, {B, T, room}).clone(device, dtype).slice(2, gap, width).reshape(x.shape());
}

struct Run {
  Device device;
  DType dtype = DType::f64;
  Precision precision = Precision::fp32;
  bool strided = false;
  unsigned wanted = 31;  // dq, dk, dv, dlog_a, dw
};

using Results = std::vector<std::vector<double>>;

/// y, dq, dk, dv, dlog_a, dw; those that are not wanted or do not exist are left out.
Results run(Context& ctx, const Operands& x, const Run& how) {
  ctx.precision = how.precision;
  int64_t gap = 0;
  const auto load = [&](const Tensor& t) {
    if (!t.defined() || t.rank() != 4 || !how.strided)
      return t.defined() ? t.clone(how.device, how.dtype) : Tensor();
    return part_of_rows(t, gap += 3, how.device, how.dtype);
  };
  const Tensor q = load(x.q), k = load(x.k), v = load(x.v), log_a = load(x.log_a), w = load(x.w),
               dy = load(x.dy);
  const auto room = [&](const Tensor& t, unsigned bit) {
    if (!t.defined() || !(how.wanted >> bit & 1)) return Tensor();
    if (!how.strided || t.rank() != 4) return ctx.empty(t.shape(), how.dtype);
    const int64_t width = t.dim(2) * t.dim(3);
    return ctx.empty({t.dim(0), t.dim(1), width + 5}, how.dtype).slice(2, 1, width).reshape(t.shape());
  };
  Tensor y = ctx.empty(v.shape(), how.dtype);
  kernels::ssd(ctx, q, k, v, log_a, w, y);
  Results forward_only{y.to_vector<double>()};
  if (how.wanted == 0) return forward_only;
  Tensor d[5] = {room(q, 0), room(k, 1), room(v, 2), room(log_a, 3), room(w, 4)};
  kernels::ssd_backward(ctx, q, k, v, log_a, w, dy, d[0], d[1], d[2], d[3], d[4]);
  synchronise(how.device);
  Results results{y.to_vector<double>()};
  for (const Tensor& t : d)
    if (t.defined()) results.push_back(t.to_vector<double>());
  return results;
}

bool gpu_here() {
  if (cuda_device_count() > 0) return true;
  MESSAGE("no GPU here: this case needs one");
  return false;
}

Context poisoned(Device device) {
  Context ctx(device, device.is_cuda() ? size_t{256} << 20 : 0);
  ctx.poison = true;
  return ctx;
}

struct Bound {
  DType dtype;
  Precision precision;
  double largest;  ///< error relative to the result's largest element
};
const Bound bounds[] = {{DType::f64, Precision::fp32, 1e-12},
                        {DType::f32, Precision::fp32, 1e-5},
                        {DType::f32, Precision::tf32x3, 1e-5},
                        {DType::f32, Precision::tf32, 3e-3},
                        {DType::f32, Precision::bf16, 3e-2}};

}  // namespace

TEST_CASE("cuda ssd: every precision keeps its bound, for all widths, lengths, decays, weights, groups") {
  if (!gpu_here()) return;
  const Device device = parse_device("cuda");
  Context cpu = poisoned({}), gpu = poisoned(device);
  const std::vector<Case> cases = {{2, 1, 1, 1, 5, 5, Decay::per_step, -1, true},
                                   {1, 63, 1, 2, 16, 128},
                                   {1, 100, 1, 1, 128, 128},
                                   {1, 300, 1, 1, 128, 128, Decay::per_step, -0.02, true},
                                   {2, 128, 2, 2, 128, 128, Decay::per_head, -0.02},
                                   {1, 300, 1, 3, 64, 100, Decay::per_step, -0.3, true},
                                   {1, 300, 2, 4, 100, 16, Decay::per_head, -0.1},
                                   {2, 130, 1, 2, 5, 64, Decay::per_step, -50, true},
                                   {1, 300, 2, 2, 16, 32, Decay::none, 0, true},
                                   {1, 200, 1, 1, 64, 64, Decay::per_head, -3},
                                   {1, 70, 1, 2, 140, 150, Decay::per_step, -0.5, true}};
  const auto hold = [&](const Bound& bound) {
    for (const Case& c : cases)
      for (const bool strided : {false, true}) {
        if (strided && (bound.precision == Precision::tf32x3 || bound.precision == Precision::bf16)) continue;
        const Operands x = operands(c);
        const Results exact = run(cpu, x, {.device = {}});
        const Results found =
            run(gpu, x,
                {.device = device, .dtype = bound.dtype, .precision = bound.precision, .strided = strided});
        INFO("T ", c.T, " N ", c.N, " P ", c.P, " strided ", strided);
        REQUIRE(found.size() == exact.size());
        for (size_t r = 0; r < exact.size(); ++r) {
          INFO("result ", r);
          CHECK(relative_difference({found[r]}, {exact[r]}) < bound.largest);
        }
        CHECK(gpu.slab().in_use() == 0);
      }
  };
  for (const Bound& bound : bounds) {
    SUBCASE(bound.dtype == DType::f64 ? "f64" : name_of(bound.precision)) { hold(bound); }
  }
}

TEST_CASE("cuda ssd: many sequences, each walked from end to end by one block") {
  if (!gpu_here()) return;
  const Device device = parse_device("cuda");
  Context cpu = poisoned({}), gpu = poisoned(device);
  const Operands x = operands({70, 140, 1, 2, 5, 7, Decay::per_step, -0.05, true});
  const Results exact = run(cpu, x, {.device = {}});
  for (const Bound& bound : {bounds[1], bounds[3]})
    CHECK(relative_difference(
              run(gpu, x, {.device = device, .dtype = bound.dtype, .precision = bound.precision}), exact) <
          bound.largest);
}

TEST_CASE("cuda ssd: a gradient is the same whether the others are wanted or not") {
  if (!gpu_here()) return;
  const Device device = parse_device("cuda");
  Context gpu = poisoned(device);
  const Operands x = operands({1, 150, 1, 2, 16, 32, Decay::per_step, -0.2, true});
  for (const Precision precision : {Precision::fp32, Precision::tf32}) {
    const Results all = run(gpu, x, {.device = device, .dtype = DType::f32, .precision = precision});
    for (const unsigned wanted : {1u, 2u, 4u, 8u, 16u, 3u, 12u, 20u}) {
      const Results some =
          run(gpu, x, {.device = device, .dtype = DType::f32, .precision = precision, .wanted = wanted});
      size_t at = 1;
      for (unsigned bit = 0; bit < 5; ++bit)
        if (wanted >> bit & 1) {
          CAPTURE(wanted);
          CAPTURE(bit);
          CHECK(relative_difference({some[at++]}, {all[bit + 1]}) < 1e-5);
        }
    }
  }
}

TEST_CASE("cuda ssd: two runs give the same bits, and later inputs change no earlier bit") {
  if (!gpu_here()) return;
  const Device device = parse_device("cuda");
  Context gpu = poisoned(device);
  for (const Case& c : {Case{1, 200, 1, 2, 16, 128, Decay::per_step, -0.2, true}, {1, 140, 1, 1, 128, 128}})
    for (const Bound& bound : bounds) {
      const Run how{.device = device, .dtype = bound.dtype, .precision = bound.precision};
      const Operands x = operands(c);
      const Results once = run(gpu, x, how);
      CHECK(run(gpu, x, how) == once);
      Run forward = how;
      forward.wanted = 0;
      const Operands other = operands(c, 50);
      for (const int64_t t : {0, 63, 100}) {
        Operands mixed = x;
        const auto later = [&](Tensor& own, const Tensor& foreign) {
          if (!own.defined()) return;
          std::vector<double> a = own.to_vector<double>(), b = foreign.to_vector<double>();
          const auto split = static_cast<size_t>((t + 1) * own.numel() / own.dim(1));
          for (size_t i = split; i < a.size(); ++i) a[i] = 1e3 * b[i];
          own = Tensor::from(a, own.shape());
        };
        later(mixed.q, other.q), later(mixed.k, other.k), later(mixed.v, other.v), later(mixed.w, other.w);
        const Results changed = run(gpu, mixed, forward);
        const auto kept = static_cast<size_t>((t + 1) * c.H * c.P);
        CAPTURE(t);
        CHECK(std::equal(once[0].begin(), once[0].begin() + static_cast<int64_t>(kept), changed[0].begin()));
        CHECK(once[0] != changed[0]);
      }
    }
}

TEST_CASE("cuda ssd: a strong decay has a tiny gradient, right to its last digits") {
  if (!gpu_here()) return;
  const Device device = parse_device("cuda");
  Context gpu = poisoned(device);
  const auto on_gpu = [&](const std::vector<float>& x, const Shape& shape) {
    return Tensor::from(x, shape, device);
  };
  const Tensor one = on_gpu({1, 1}, {1, 2, 1, 1}), v = on_gpu({3, 1e6f}, {1, 2, 1, 1}),
               a = on_gpu({-1, -50}, {1, 2, 1}), dy = on_gpu({0, 2}, {1, 2, 1, 1});
  Tensor none, da = gpu.empty(a.shape(), DType::f32);
  kernels::ssd_backward(gpu, one, one, v, a, {}, dy, none, none, none, da, none);
  synchronise(device);
  const std::vector<double> found = da.to_vector<double>();
  CHECK(found[0] == 0);
  CHECK(found[1] == doctest::Approx(6 * std::exp(-50)).epsilon(1e-5));
}

TEST_CASE("cuda ssd: the normaliser over several chunks, and scaled rows, aligned or not") {
  if (!gpu_here()) return;
  const Device device = parse_device("cuda");
  Context cpu = poisoned({}), gpu = poisoned(device);
  for (const Case& c : {Case{2, 1, 1, 1, 5, 5}, {1, 63, 1, 2, 16, 128}, {1, 300, 1, 2, 200, 100}}) {
    const Shape steps{c.B, c.T, c.H};
    const Tensor q = uniform_tensor({c.B, c.T, c.H, c.N}, 1, 0.1, 2),
                 k = uniform_tensor(q.shape(), 2, 0.1, 2), cotangent = random_tensor(steps, 3),
                 y = random_tensor({c.B, c.T, c.H, c.P}, 4), dout = random_tensor(y.shape(), 5),
                 n = random_tensor(steps, 6), offset = random_tensor({c.H}, 7);
    const auto compute = [&](Context& ctx, DType dtype, int64_t gap) {
      const Device here = ctx.device();
      const auto load = [&](const Tensor& x) {
        return x.rank() == 4 && gap ? part_of_rows(x, gap, here, dtype) : x.clone(here, dtype);
      };
      const Tensor Q = load(q), K = load(k), Y = load(y), dOut = load(dout), N = load(n), O = load(offset);
      Tensor eta = ctx.empty(steps, dtype), dq = ctx.empty(q.shape(), dtype),
             dk = ctx.empty(q.shape(), dtype), out = ctx.empty(y.shape(), dtype),
             dy = ctx.empty(y.shape(), dtype), deta = ctx.empty(steps, dtype),
             scaled = ctx.empty(y.shape(), dtype), log_eta = ctx.empty(steps, dtype),
             dy_2 = ctx.empty(y.shape(), dtype), dn = ctx.empty(steps, dtype),
             doffset = ctx.empty({c.H}, dtype);
      kernels::attention_normaliser(ctx, Q, K, eta);
      kernels::attention_normaliser_backward(ctx, Q, K, eta, load(cotangent), dq, dk);
      kernels::divide_by_eta(ctx, Y, eta, out);
      kernels::divide_by_eta_backward(ctx, out, eta, dOut, dy, deta);
      const auto f = kernels::NormFunction::softplus;
      kernels::norm_scale(ctx, Y, f, N, O, 0.5, scaled, log_eta);
      kernels::norm_scale_backward(ctx, Y, f, N, O, 0.5, dOut, dy_2, dn, doffset);
      synchronise(here);
      Results results;
      for (const Tensor& x : {eta, dq, dk, out, dy, deta, scaled, log_eta, dy_2, dn, doffset})
        results.push_back(x.to_vector<double>());
      return results;
    };
    const Results exact = compute(cpu, DType::f64, 0);
    for (const int64_t gap : {0, 3}) {
      CHECK(relative_difference(compute(gpu, DType::f64, gap), exact) < 1e-12);
      CHECK(relative_difference(compute(gpu, DType::f32, gap), exact) < 1e-5);
      CHECK(compute(gpu, DType::f32, gap) == compute(gpu, DType::f32, gap));
    }
  }
}

TEST_CASE("cuda ssd: an offset's gradient, a sum over more steps than a block asks for at once") {
  if (!gpu_here()) return;
  const Shape steps{3, 5600, 2};
  const Tensor y = random_tensor({3, 5600, 2, 1}, 1), dout = random_tensor(y.shape(), 2),
               n = random_tensor(steps, 3), offset = random_tensor({2}, 4);
  const auto compute = [&](Context& ctx, DType dtype) {
    const auto load = [&](const Tensor& x) { return x.clone(ctx.device(), dtype); };
    Tensor none, doffset = ctx.empty({2}, dtype);
    kernels::norm_scale_backward(ctx, load(y), kernels::NormFunction::softplus, load(n), load(offset), 1,
                                 load(dout), none, none, doffset);
    synchronise(ctx.device());
    return Results{doffset.to_vector<double>()};
  };
  Context cpu = poisoned({}), gpu = poisoned(parse_device("cuda"));
  const Results exact = compute(cpu, DType::f64);
  CHECK(relative_difference(compute(gpu, DType::f64), exact) < 1e-12);
  CHECK(relative_difference(compute(gpu, DType::f32), exact) < 1e-5);
}

TEST_CASE("cuda ssd: normalisers and skips in one pass give what separate ops give") {
  if (!gpu_here()) return;
  const Device device = parse_device("cuda");
  Context cpu = poisoned({}), gpu = poisoned(device);
  using Vars = std::vector<Var>;
  const auto compute = [](Context& ctx, const TestedFunction& f, const std::vector<Tensor>& inputs,
                          DType dtype) {
    Tape tape(ctx);
    Vars leaves;
    for (const Tensor& x : inputs) leaves.push_back(tape.leaf(x.clone(ctx.device(), dtype)));
    const Vars y = f(tape, leaves);
    const std::vector<Tensor> cotangents{random_tensor(y[0].shape(), 9).clone(ctx.device(), dtype)};
    tape.backward(y, cotangents);
    synchronise(ctx.device());
    Results results{y[0].value().to_vector<double>()};
    for (const Var& leaf : leaves) results.push_back(tape.gradient_of(leaf).to_vector<double>());
    return results;
  };
  for (const Case& c : {Case{1, 150, 2, 2, 16, 32}, {1, 130, 1, 1, 128, 128}, {1, 65, 1, 1, 5, 100}}) {
    const Tensor q = uniform_tensor({c.B, c.T, c.H, c.N}, 1, 0.1, 2),
                 k = uniform_tensor(q.shape(), 2, 0.1, 2), v = random_tensor({c.B, c.T, c.H, c.P}, 3),
                 signed_q = random_tensor(q.shape(), 8), signed_k = random_tensor(q.shape(), 10),
                 n = random_tensor({c.B, c.T, c.H}, 4), per_head = random_tensor({c.H}, 5),
                 log_a = uniform_tensor({c.B, c.T, c.H}, 6, -0.1, 0),
                 w = uniform_tensor(log_a.shape(), 7, 0, 1);
    const std::vector<std::pair<TestedFunction, std::vector<Tensor>>> functions = {
        {[](Tape&, const Vars& x) { return Vars{linear_attention(x[0], x[1], x[2]).y}; }, {q, k, v}},
        {[](Tape&, const Vars& x) {
           const Var q = unary(Unary::elu_plus_one, x[0]), k = unary(Unary::elu_plus_one, x[1]);
           return Vars{linear_attention(q, k, x[2], {x[0], x[1]}).y};
         },
         {signed_q, signed_k, v}},
        {[](Tape&, const Vars& x) {
           const Var q = unary(Unary::elu_plus_one, x[0]), k = unary(Unary::elu_plus_one, x[1]);
           return Vars{norm_attention(q, k, x[2], NormFunction::softplus, x[3], x[4], 0.3, {x[0], x[1]}).y};
         },
         {signed_q, signed_k, v, n, per_head}},
        {[](Tape&, const Vars& x) {
           return Vars{norm_attention(x[0], x[1], x[2], NormFunction::softplus, x[3], x[4], 0.3).y};
         },
         {q, k, v, n, per_head}},
        {[](Tape&, const Vars& x) { return Vars{ssd(x[0], x[1], x[2], x[3], x[4], x[5])}; },
         {q, k, v, log_a, w, per_head}}};
    for (size_t f = 0; f < functions.size(); ++f) {
      const auto& [function, inputs] = functions[f];
      const Results exact = compute(cpu, function, inputs, DType::f64);
      for (const Bound& bound : bounds) {
        gpu.precision = bound.precision;
        const Results found = compute(gpu, function, inputs, bound.dtype);
        for (size_t r = 0; r < exact.size(); ++r) {
          INFO("function ", f, " T ", c.T, " result ", r, " precision ", static_cast<int>(bound.precision));
          CHECK(relative_difference({found[r]}, {exact[r]}) < 4 * bound.largest);
        }
        if (bound.precision == Precision::tf32) CHECK(compute(gpu, function, inputs, bound.dtype) == found);
      }
    }
  }
}

TEST_CASE("cuda ssd: states are kept for bf16 operands as for float32 ones, and change no bit") {
  if (!gpu_here()) return;
  const Device device = parse_device("cuda");
  Context ctx = poisoned(device);
  ctx.precision = Precision::tf32;
  const Operands x = operands({1, 150, 1, 2, 16, 32, Decay::per_step, -1, true});
  const auto load = [&](const Tensor& t) { return t.clone(device, DType::bf16); };
  const Tensor q = load(x.q), k = load(x.k), v = load(x.v), log_a = load(x.log_a), w = load(x.w),
               dy = load(x.dy), kept = kernels::ssd_kept(ctx, q, v, log_a, w);
  REQUIRE(kept.defined());
  const auto gradients = [&](const Tensor& states) {
    Tensor y = ctx.empty_like(v), dq = ctx.empty_like(q), dk = ctx.empty_like(k), dv = ctx.empty_like(v),
           dlog_a = ctx.empty_like(log_a), dw = ctx.empty_like(w);
    kernels::ssd(ctx, q, k, v, log_a, w, y, states);
    kernels::ssd_backward(ctx, q, k, v, log_a, w, dy, dq, dk, dv, dlog_a, dw, states);
    synchronise(device);
    Results results;
    for (const Tensor& t : {y, dq, dk, dv, dlog_a, dw}) results.push_back(t.to_vector<double>());
    return results;
  };
  const Results with_states = gradients(kept);
  CHECK(with_states == gradients({}));
  CHECK_FALSE(kept.to_vector<double>() == std::vector<double>(static_cast<size_t>(kept.numel()), 0.0));
}
