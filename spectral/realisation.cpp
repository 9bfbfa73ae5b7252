#include "spectral/realisation.h"

#include <initializer_list>
#include <string>

#include "tensor/error.h"

namespace eigentrace {

const char* name_of(Family family) {
  switch (family) {
    case Family::softmax_attention:
      return "softmax_attention";
    case Family::linear_attention:
      return "linear_attention";
    case Family::norm_attention:
      return "norm_attention";
    case Family::mamba2:
      return "mamba2";
    case Family::mamba2_pseudo_lti:
      return "mamba2_pseudo_lti";
    case Family::mamba1:
      return "mamba1";
    case Family::lru:
      return "lru";
    case Family::s5:
      return "s5";
    case Family::s4:
      return "s4";
  }
  return "?";
}

const char* name_of(Gauge gauge) {
  return gauge == Gauge::state_normalised ? "state_normalised" : "readout_normalised";
}

ComplexTensor ComplexTensor::interleaved(const Tensor& pairs) {
  if (pairs.rank() < 1 || pairs.dim(-1) != 2)
    fail("ComplexTensor::interleaved: expected a last axis of (re, im), found " + to_string(pairs));
  const Shape shape = pairs.shape().without(pairs.rank() - 1);
  return {pairs.slice(-1, 0, 1).reshape(shape), pairs.slice(-1, 1, 1).reshape(shape)};
}

namespace {

void expect(const Tensor& tensor, const char* field, const Shape& shape) {
  if (!tensor.defined() || !(tensor.shape() == shape) || !is_floating(tensor.dtype()))
    fail(std::string("Realisation: ") + field + ": expected f32 or f64 " + to_string(shape) + ", found " +
         to_string(tensor));
}

void expect(const ComplexTensor& tensor, const char* field, const Shape& shape) {
  expect(tensor.re, (std::string(field) + ".re").c_str(), shape);
  expect(tensor.im, (std::string(field) + ".im").c_str(), shape);
}

void expect_rank(const Tensor& tensor, const char* field, int rank) {
  if (!tensor.defined() || tensor.rank() != rank)
    fail(std::string("Realisation: ") + field + ": expected rank " + std::to_string(rank) + ", found " +
         to_string(tensor));
}

[[noreturn]] void unfit(const char* maps, const char* lambda) {
  fail(std::string("Realisation: ") + maps + " goes with " + lambda + ", found another Λ");
}

struct Checker {
  const Realisation& system;
  const Tensor& u = system.u;

  void operator()(const Factored& maps) const {
    expect_rank(u, "u", 4), expect_rank(maps.q, "q", 4);
    const int64_t b = u.dim(0), t = u.dim(1), h = u.dim(2), g = maps.q.dim(2);
    if (g < 1 || h % g != 0)
      fail("Realisation: q: expected a number of groups that divides the " + std::to_string(h) +
           " heads, found " + to_string(maps.q));
    expect(maps.q, "q", {b, t, g, maps.q.dim(3)});
    expect(maps.k, "k", maps.q.shape());
    if (maps.weight.defined()) expect(maps.weight, "weight", {b, t, h});
    if (const auto* ratio = std::get_if<NormaliserRatio>(&system.lambda)) {
      expect(ratio->log_eta, "log_eta", {b, t, h});
    } else if (const auto* decay = std::get_if<ScalarDecay>(&system.lambda)) {
      if (decay->log_lambda.defined() && decay->log_lambda.rank() == 1)
        expect(decay->log_lambda, "log_lambda", {h});
      else
        expect(decay->log_lambda, "log_lambda", {b, t, h});
    } else {
      unfit("Factored", "ScalarDecay or NormaliserRatio");
    }
  }
  void operator()(const Kernel& maps) const {
    expect_rank(u, "u", 4), expect_rank(maps.q, "q", 4);
    const auto* ratio = std::get_if<NormaliserRatio>(&system.lambda);
    if (ratio == nullptr) unfit("Kernel", "NormaliserRatio");
    expect(maps.q, "q", {u.dim(0), u.dim(1), u.dim(2), maps.q.dim(3)});
    expect(maps.k, "k", maps.q.shape());
    expect(ratio->log_eta, "log_eta", {u.dim(0), u.dim(1), u.dim(2)});
  }
  void operator()(const Selective& maps) const {
    expect_rank(u, "u", 3), expect_rank(maps.b, "b", 3);
    const auto* outer = std::get_if<Outer>(&system.lambda);
    if (outer == nullptr) unfit("Selective", "Outer");
    expect(outer->delta, "delta", u.shape());
    expect(maps.b, "b", {u.dim(0), u.dim(1), maps.b.dim(2)});
    expect(maps.c, "c", maps.b.shape());
    expect(outer->a, "a", {u.dim(2), maps.b.dim(2)});
  }
  void operator()(const Dense& maps) const {
    expect_rank(u, "u", 3);
    const auto* diagonal = std::get_if<Diagonal>(&system.lambda);
    if (diagonal == nullptr) unfit("Dense", "Diagonal");
    expect_rank(diagonal->log_abs, "log_abs", 1);
    const int64_t n = diagonal->log_abs.dim(0), width = u.dim(2);
    expect(diagonal->log_abs, "log_abs", {n}), expect(diagonal->arg, "arg", {n});
    expect(maps.b, "b", {n, width}), expect(maps.c, "c", {width, n});
    if (maps.gain.re.defined()) expect(maps.gain.re, "gain.re", {n});
    if (maps.gain.im.defined()) expect(maps.gain.im, "gain.im", {n});
    if (maps.c_backward.defined()) expect(maps.c_backward, "c_backward", {width, n});
  }
  void operator()(const Channels& maps) const {
    expect_rank(u, "u", 3);
    const auto* dplr = std::get_if<Dplr>(&system.lambda);
    if (dplr == nullptr) unfit("Channels", "Dplr");
    expect_rank(dplr->lambda.re, "lambda.re", 2);
    const Shape shape{dplr->lambda.re.dim(0), u.dim(2)};
    expect(dplr->lambda, "lambda", shape), expect(dplr->p, "p", shape);
    expect(maps.b, "b", shape), expect(maps.c, "c", shape);
    if (!dplr->log_step.defined() || dplr->log_step.numel() != u.dim(2))
      fail("Realisation: log_step: expected one for each of " + std::to_string(u.dim(2)) +
           " channels, found " + to_string(dplr->log_step));
    if (maps.length < 1)
      fail("Realisation: length: expected the kernel's length, found " + std::to_string(maps.length));
  }
};

}  // namespace

void check(const Realisation& system) {
  if (!system.u.defined() || system.u.rank() < 3 || system.u.numel() == 0)
    fail("Realisation: u: expected [B,T,H,P] or [B,T,D] with elements, found " + to_string(system.u));
  std::visit(Checker{system}, system.maps);
  const int64_t wide = system.u.dim(2);
  if (system.d.defined() && system.d.numel() != wide)
    fail("Realisation: d: expected " + std::to_string(wide) + " elements, found " + to_string(system.d));
}

std::vector<double> log_ratios(const double* log_eta, int64_t steps, int64_t stride) {
  std::vector<double> ratios(static_cast<size_t>(steps > 1 ? steps - 1 : 0));
  for (int64_t i = 1; i < steps; ++i)
    ratios[static_cast<size_t>(i - 1)] = log_eta[(i - 1) * stride] - log_eta[i * stride];
  return ratios;
}

}  // namespace eigentrace
