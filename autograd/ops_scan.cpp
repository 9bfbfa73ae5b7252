#include "autograd/ops_scan.h"

#include <fmt/format.h>

#include <array>

#include "tensor/error.h"
#include "tensor/kernels.h"
#include "tensor/kernels/fft_convolution_add.h"
#include "tensor/kernels/skip_from_y.h"

namespace eigentrace {
namespace {

void expect(bool holds, const char* op, const char* argument, const std::string& expected, const Var& found) {
  if (!holds)
    fail(fmt::format("{}: {}: expected {}, found {}", op, argument, expected, to_string(found.value())));
}

void expect_shape(const char* op, const char* argument, const Shape& shape, const Var& found) {
  expect(found.shape() == shape && found.value().contiguous(), op, argument, to_string(shape) + " dense",
         found);
}

/// Gradients of one kernel into every input at once: memory for all of them, wanted or not.
class Destinations {
 public:
  Destinations(Backward& b, std::span<const VarRef> inputs) : b_(b), inputs_(inputs.begin(), inputs.end()) {
    for (const VarRef& x : inputs_) {
      wanted_.push_back(b.destination(x));
      memory_.push_back(wanted_.back());
      if (!memory_.back().defined() || !memory_.back().contiguous())
        memory_.back() = b.ctx().empty(x.shape, x.dtype);
    }
  }
  Tensor& operator[](size_t i) { return memory_[i]; }
  void commit() {
    for (size_t i = 0; i < inputs_.size(); ++i) {
      if (!wanted_[i].defined()) continue;
      if (wanted_[i].raw() != memory_[i].raw()) kernels::copy(b_.ctx(), memory_[i], wanted_[i]);
      b_.commit(inputs_[i], wanted_[i]);
    }
  }

 private:
  Backward& b_;
  std::vector<VarRef> inputs_;
  std::vector<Tensor> wanted_, memory_;
};

}  // namespace

Complex complex_parts(const Var& x) {
  expect(x.rank() >= 1 && x.dim(-1) == 2, "complex_parts", "x", "[..., 2]", x);
  const Shape shape = x.shape().without(x.rank() - 1);
  const auto part = [shape](const Tensor& t, int i) { return t.slice(t.rank() - 1, i, 1).reshape(shape); };
  Tensor re = x.ctx().empty(shape, x.dtype()), im = x.ctx().empty(shape, x.dtype());
  kernels::copy(x.ctx(), part(x.value(), 0), re);
  kernels::copy(x.ctx(), part(x.value(), 1), im);
  const VarRef ref = x.ref();
  const std::vector<Var> parts =
      x.tape().record_many(Op::complex_parts, {re, im}, std::span(&ref, 1), [ref, part](Backward& b) {
        b.gradient(ref, [&](Tensor& dx) {
          for (int i = 0; i < 2; ++i) {
            Tensor to = part(dx, i);
            kernels::copy(b.ctx(), b.dy(i), to);
          }
        });
      });
  return {parts[0], parts[1]};
}

Var diagonal_scan(const Var& x, const Var& log_abs, const Var& arg, bool reverse) {
  expect(x.rank() == 3 && x.dim(2) % 2 == 0, "diagonal_scan", "x", "[B, T, 2N]", x);
  const int64_t states = x.dim(2) / 2;
  expect_shape("diagonal_scan", "log_abs", {states}, log_abs);
  expect_shape("diagonal_scan", "arg", {states}, arg);

  Context& ctx = x.ctx();
  Tensor h = ctx.empty(x.shape(), x.dtype());
  kernels::diagonal_scan(ctx, x.value(), log_abs.value(), arg.value(), reverse, h);

  return x.tape().record(Op::diagonal_scan, h, {x.ref(), log_abs.ref(), arg.ref()},
                         [x = x.ref(), log_abs, arg, reverse, h](Backward& b) {
                           Tensor dx = b.destination(x), da = b.destination(log_abs.ref());
                           Tensor dt = b.destination(arg.ref());
                           kernels::diagonal_scan_backward(b.ctx(), h, log_abs.value(), arg.value(), reverse,
                                                           b.dy(), dx, da, dt);
                           b.commit(x, dx);
                           b.commit(log_abs.ref(), da);
                           b.commit(arg.ref(), dt);
                         });
}

Discretised s5_discretise(const Var& lambda_re, const Var& lambda_im, const Var& log_step, bool bilinear,
                          bool clip) {
  const Shape shape = {lambda_re.value().numel()};
  expect_shape("s5_discretise", "lambda_re", shape, lambda_re);
  expect_shape("s5_discretise", "lambda_im", shape, lambda_im);
  expect(log_step.value().numel() == shape[0] && log_step.value().contiguous(), "s5_discretise", "log_step",
         to_string(shape) + " dense", log_step);

  Context& ctx = lambda_re.ctx();
  const kernels::Discretisation how{bilinear, clip};
  const auto one = [&] { return ctx.empty(shape, lambda_re.dtype()); };
  std::vector<Tensor> out = {one(), one(), one(), one()};
  kernels::s5_discretise(ctx, how, lambda_re.value(), lambda_im.value(), log_step.value(), out[0], out[1],
                         out[2], out[3]);

  const std::array<VarRef, 3> inputs = {lambda_re.ref(), lambda_im.ref(), log_step.ref()};
  const std::vector<Var> y = lambda_re.tape().record_many(
      Op::s5_discretise, out, inputs, [inputs, how, lambda_re, lambda_im, log_step](Backward& b) {
        Destinations to(b, inputs);
        const Tensor dy[4] = {b.dy(0), b.dy(1), b.dy(2), b.dy(3)};
        Tensor dx[3] = {to[0], to[1], to[2]};
        kernels::s5_discretise_backward(b.ctx(), how, lambda_re.value(), lambda_im.value(), log_step.value(),
                                        dy, dx);
        to.commit();
      });
  return {y[0], y[1], {y[2], y[3]}};
}

Var selective_scan(const Var& x, const Var& delta, const Var& a_log, const Var& b, const Var& c,
                   const Var& d) {
  expect(x.rank() == 3, "selective_scan", "x", "[B, T, E]", x);
  expect(a_log.rank() == 2, "selective_scan", "a_log", "[E, S]", a_log);
  const int64_t batch = x.dim(0), time = x.dim(1), channels = x.dim(2), states = a_log.dim(1);
  const Shape state_rows = {batch, time, states};
  expect(delta.shape() == x.shape(), "selective_scan", "delta", to_string(x.shape()), delta);
  expect_shape("selective_scan", "a_log", {channels, states}, a_log);
  expect(b.shape() == state_rows, "selective_scan", "b", to_string(state_rows), b);
  expect(c.shape() == state_rows, "selective_scan", "c", to_string(state_rows), c);
  expect_shape("selective_scan", "d", {channels}, d);

  Context& ctx = x.ctx();
  const kernels::SelectiveScan in{x.value(), delta.value(), a_log.value(), b.value(), c.value(), d.value()};
  Tensor y = ctx.empty(x.shape(), x.dtype()), boundary;
  if (x.tape().recording()) boundary = ctx.empty(kernels::selective_scan_boundary(in.x, in.b), x.dtype());
  kernels::selective_scan(ctx, in, y, boundary);

  const std::array<VarRef, 6> refs = {x.ref(), delta.ref(), a_log.ref(), b.ref(), c.ref(), d.ref()};
  return x.tape().record_many(Op::selective_scan, {y}, refs, [refs, in, boundary](Backward& back) {
    std::array<Tensor, 6> to;
    for (size_t i = 0; i < 6; ++i) to[i] = back.destination(refs[i]);
    kernels::SelectiveScan gradient{to[0], to[1], to[2], to[3], to[4], to[5]};
    kernels::selective_scan_backward(back.ctx(), in, boundary, back.dy(), gradient);
    for (size_t i = 0; i < 6; ++i) back.commit(refs[i], to[i]);
  })[0];
}

Var s4_kernel(const Var& lambda_re, const Var& lambda_im, const Var& p, const Var& b, const Var& c,
              const Var& log_step, int64_t length) {
  expect(lambda_re.rank() == 2, "s4_kernel", "lambda_re", "[N, D]", lambda_re);
  if (length < 1) fail(fmt::format("s4_kernel: length: expected at least 1, found {}", length));
  const Shape states = lambda_re.shape(), pairs = states.with(2);
  expect_shape("s4_kernel", "lambda_re", states, lambda_re);
  expect_shape("s4_kernel", "lambda_im", states, lambda_im);
  expect_shape("s4_kernel", "p", pairs, p);
  expect_shape("s4_kernel", "b", pairs, b);
  expect_shape("s4_kernel", "c", pairs, c);
  expect(log_step.value().numel() == states[1] && log_step.value().contiguous(), "s4_kernel", "log_step",
         fmt::format("[1, {}] dense", states[1]), log_step);

  Context& ctx = lambda_re.ctx();
  const kernels::S4Parameters in{lambda_re.value(), lambda_im.value(), p.value(),
                                 b.value(),         c.value(),         log_step.value()};
  Tensor k = ctx.empty({states[1], length}, lambda_re.dtype());
  Tensor kept;
  if (lambda_re.tape().recording()) kept = kernels::s4_kernel_kept(ctx, in, length);
  kernels::s4_kernel(ctx, in, k, kept);

  const std::array<VarRef, 6> refs = {lambda_re.ref(), lambda_im.ref(), p.ref(),
                                      b.ref(),         c.ref(),         log_step.ref()};
  return lambda_re.tape().record_many(Op::s4_kernel, {k}, refs, [refs, in, kept](Backward& back) {
    Destinations to(back, refs);
    kernels::S4Parameters gradient{to[0], to[1], to[2], to[3], to[4], to[5]};
    kernels::s4_kernel_backward(back.ctx(), in, back.dy(), gradient, kept);
    to.commit();
  })[0];
}

Var fft_convolution(const Var& u, const Var& k, const Var& d) {
  expect(u.rank() == 3, "fft_convolution", "u", "[B, T, D]", u);
  expect(k.rank() == 2 && k.dim(0) == u.dim(2) && k.dim(1) >= 1 && k.value().contiguous(), "fft_convolution",
         "k", fmt::format("[{}, L] dense", u.dim(2)), k);
  if (d.defined())
    expect(d.value().numel() == u.dim(2) && d.value().contiguous(), "fft_convolution", "d",
           fmt::format("[{}] dense", u.dim(2)), d);

  Context& ctx = u.ctx();
  Tensor y = ctx.empty(u.shape(), u.dtype());
  Tensor kept;
  if (u.tape().recording()) kept = kernels::fft_convolution_kept(ctx, u.value(), k.value());
  kernels::fft_convolution(ctx, u.value(), k.value(), d.value(), y, kept);

  return u.tape().record(Op::fft_convolution, y, {u, k, d}, [u, k, d, kept](Backward& b) {
    Tensor sent;
    Tensor du = b.destination_with_sent(u.ref(), sent), dk = b.destination(k.ref()),
           dd = b.destination(d.ref());
    kernels::fft_convolution_backward_add(b.ctx(), u.value(), k.value(), d.value(), b.dy(), sent, du, dk, dd,
                                          kept);
    b.commit_with_sent(u.ref(), du, sent);
    b.commit(k.ref(), dk);
    b.commit(d.ref(), dd);
  });
}

SelectiveStep selective_step(const Var& x, const Var& bias, const Var& a_log) {
  expect(x.rank() >= 1, "selective_step", "x", "[..., H]", x);
  expect_shape("selective_step", "bias", {x.dim(-1)}, bias);
  expect_shape("selective_step", "a_log", {x.dim(-1)}, a_log);

  Context& ctx = x.ctx();
  Tensor delta = ctx.empty(x.shape(), x.dtype()), log_a = ctx.empty(x.shape(), x.dtype());
  kernels::selective_step(ctx, x.value(), bias.value(), a_log.value(), delta, log_a);

  const VarRef refs[] = {x.ref(), bias.ref(), a_log.ref()};
  const std::vector<Var> out =
      x.tape().record_many(Op::selective_step, {delta, log_a}, refs, [x, bias, a_log](Backward& b) {
        const Tensor ddelta = b.has_dy(0) ? b.dy(0) : Tensor(), dlog_a = b.has_dy(1) ? b.dy(1) : Tensor();
        Tensor dx = b.destination(x.ref()), dbias = b.destination(bias.ref()),
               da_log = b.destination(a_log.ref());
        kernels::selective_step_backward(b.ctx(), x.value(), bias.value(), a_log.value(), ddelta, dlog_a, dx,
                                         dbias, da_log);
        b.commit(x.ref(), dx);
        b.commit(bias.ref(), dbias);
        b.commit(a_log.ref(), da_log);
      });
  return {out[0], out[1]};
}

Var channel_skip(const Var& y, const Var& u, const Var& d) {
  expect(u.rank() >= 1, "channel_skip", "u", "[..., D]", u);
  expect(y.shape() == u.shape(), "channel_skip", "y", to_string(u.shape()), y);
  expect_shape("channel_skip", "d", {u.dim(-1)}, d);

  Tensor z = u.ctx().empty(u.shape(), u.dtype());
  kernels::channel_skip(u.ctx(), y.value(), u.value(), d.value(), z);

  return u.tape().record(Op::channel_skip, z, {y, u, d}, [y = y.ref(), u, d](Backward& b) {
    b.add_gradient(y, b.dy());
    Tensor sent;
    Tensor du = b.destination_with_sent(u.ref(), sent), dd = b.destination(d.ref());
    if (du.defined() || dd.defined())
      kernels::channel_skip_backward(b.ctx(), u.value(), d.value(), b.dy(), du, dd, sent);
    b.commit_with_sent(u.ref(), du, sent);
    b.commit(d.ref(), dd);
  });
}

Skipped channel_skip_activation(const Var& y, const Var& u, const Var& d, Unary f, double dropout,
                                DropoutMask mask, bool with_z) {
  constexpr const char* what = "channel_skip_activation";
  expect(u.rank() >= 1, what, "u", "[..., D]", u);
  expect(y.shape() == u.shape(), what, "y", to_string(u.shape()), y);
  expect_shape(what, "d", {u.dim(-1)}, d);

  Context& ctx = u.ctx();
  kernels::Dropout drop;
  if (dropout > 0) drop = {dropout, u.tape().next_random_op(), mask == DropoutMask::shared_over_time};
  Tensor z, g = ctx.empty(u.shape(), u.dtype());
  if (with_z) z = ctx.empty(u.shape(), u.dtype());
  kernels::channel_skip_activation(ctx, y.value(), u.value(), d.value(), f, drop, z, g);

  const VarRef inputs[] = {y.ref(), u.ref(), d.ref()};
  const std::vector<Var> out = u.tape().record_many(
      Op::channel_skip_activation, with_z ? std::vector{g, z} : std::vector{g}, inputs,
      [y = y.ref(), u, d, kept = with_z ? z : y.value(), with_z, f, drop](Backward& b) {
        Tensor sent, dz;
        if (b.has_dy(0)) {
          dz = b.destination(y);
          if (!dz.defined()) dz = b.ctx().empty(u.shape(), u.dtype());
        }
        Tensor du = b.destination_with_sent(u.ref(), sent), dd = b.destination(d.ref());
        if (!with_z) {
          kernels::channel_skip_activation_backward_from_y(b.ctx(), kept, u.value(), d.value(), f, drop,
                                                           b.dy(0), dz, du, dd, sent);
        } else if (b.has_dy(0)) {
          kernels::channel_skip_activation_backward(b.ctx(), u.value(), d.value(), kept, f, drop, b.dy(0),
                                                    b.has_dy(1) ? b.dy(1) : Tensor(), dz, du, dd, sent);
        } else {  // z alone went on
          b.add_gradient(y, b.dy(1));
          if (du.defined() || dd.defined())
            kernels::channel_skip_backward(b.ctx(), u.value(), d.value(), b.dy(1), du, dd, sent);
        }
        b.commit_with_sent(u.ref(), du, sent);
        if (b.has_dy(0)) b.commit(y, dz);  // after u's, which may be y's: what was sent is already in that
        b.commit(d.ref(), dd);
      });
  return {with_z ? out[1] : Var(), out[0]};
}

LruMaps lru_maps(const Var& nu_log, const Var& theta_log, const Var& gamma_log, const Complex& b,
                 const Complex& c) {
  expect(b.re.rank() == 2, "lru_maps", "b.re", "[N, D]", b.re);
  const int64_t states = b.re.dim(0), width = b.re.dim(1);
  expect_shape("lru_maps", "nu_log", {states}, nu_log);
  expect_shape("lru_maps", "theta_log", {states}, theta_log);
  expect_shape("lru_maps", "gamma_log", {states}, gamma_log);
  expect_shape("lru_maps", "b.re", {states, width}, b.re);
  expect_shape("lru_maps", "b.im", {states, width}, b.im);
  expect_shape("lru_maps", "c.re", {width, states}, c.re);
  expect_shape("lru_maps", "c.im", {width, states}, c.im);

  Context& ctx = b.re.ctx();
  const auto make = [&](const Shape& shape) { return ctx.empty(shape, b.re.dtype()); };
  kernels::LruMaps maps{make({states}), make({states}), make({states}), make({2 * states, width}),
                        make({width, 2 * states})};
  const kernels::LruParameters in{nu_log.value(), theta_log.value(), gamma_log.value(), b.re.value(),
                                  b.im.value(),   c.re.value(),      c.im.value()};
  kernels::lru_maps(ctx, in, maps);

  const std::array<VarRef, 7> refs = {nu_log.ref(), theta_log.ref(), gamma_log.ref(), b.re.ref(),
                                      b.im.ref(),   c.re.ref(),      c.im.ref()};
  const std::vector<Var> y = b.re.tape().record_many(
      Op::lru_maps, {maps.log_abs, maps.arg, maps.input, maps.output}, refs,
      [refs, in, maps](Backward& back) {
        Destinations to(back, refs);
        kernels::LruParameters gradient{to[0], to[1], to[2], to[3], to[4], to[5], to[6]};
        const kernels::LruMaps dmaps{back.dy(0), back.dy(1), {}, back.dy(2), back.dy(3)};
        kernels::lru_maps_backward(back.ctx(), in, maps, dmaps, gradient);
        to.commit();
      });
  return {y[0], y[1], y[2], y[3], maps.gain};
}

}  // namespace eigentrace
