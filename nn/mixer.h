#pragma once
// A sequence mixer is a dynamical system h_i = Λ_i h_{i−1} + B_i u_i, y_i = C_i h_i + D_i u_i. Its pass is
// cut where the system stands:
//
//   x ── terms ──> q, k, Δ, … ── mix ──> y, log η ── finish ──> [B,T,D]
//         projections,            the recurrence in its       gate, dropout,
//         convolution, steps      fast parallel form          out-projection
//
// `realise` only relabels the tensors of the first two as (Λ, B, C, D): a spectrum is of what was computed.
#include <functional>
#include <memory>
#include <vector>

#include "autograd/ops_pointwise.h"
#include "nn/module.h"

namespace eigentrace {

struct Realisation;  // spectral/realisation.h
struct Lambda;

/// What a mixer computed before its recurrence. Each family has a struct of its own derived from this one.
struct Terms {
  Var input;  ///< [B,T,D], the mixer's input
  virtual ~Terms() = default;
};

struct Mixed {
  Var y;            ///< the recurrence's output, as the family shapes it: [B,T,H,P] or [B,T,D]
  Tensor log_eta;   ///< [B,T,H], log of the normaliser; undefined where the family has none
  Var activated{};  ///< of mix_activated, where the family makes it in the same pass
  Var rows{};       ///< of mix_for_rows, y at those rows, where the family makes them
};

/// What a block applies to its mixer's output: dropout(f(y)).
struct Activation {
  Unary f;
  double dropout;
  DropoutMask mask;
};

/// A tensor that a layer's eigenvalues are a function of.
struct LambdaSource {
  Tensor values;
  bool per_step = false;  ///< [B,T,…], a row for each sequence and step; false: the same for all
};

/// A layer's eigenvalues on the tape: log|λ| and arg λ (undefined: real and positive). [B,T,H] (attention:
/// entry 0 stands for no eigenvalue), [H] or, without heads, [N] with arg.
struct EigenvalueVars {
  Var log_abs, arg;
};
/// Other eigenvalues in their place.
using EigenvalueMap = std::function<EigenvalueVars(const EigenvalueVars&)>;

class Mixer {
 public:
  virtual ~Mixer() = default;
  /// "sm-attention", "mamba2", "s4", …
  virtual const char* family() const = 0;
  /// All that comes before the recurrence. x [B,T,D]. `convolve` false leaves the short convolution and its
  /// SiLU out (what the published analysis does).
  virtual std::unique_ptr<Terms> terms(Forward& forward, const Var& x, bool convolve = true) const = 0;
  virtual Mixed mix(Forward& forward, const Terms& terms) const = 0;
  /// The same, for a block that goes on with dropout(f(finish(y))) alone.
  virtual Mixed mix_activated(Forward& forward, const Terms& terms, const Activation&) const {
    return mix(forward, terms);
  }
  /// The same, where labelled rows of y alone are gone on with; without a hook on_mixer the rest may be
  /// missing.
  virtual Mixed mix_for_rows(Forward& forward, const Terms& terms, const Labels&) const {
    return mix(forward, terms);
  }
  /// All that comes after it: [B,T,D]. y may be some rows of the recurrence's only, as one sequence, if the
  /// model leaves_rows_out.
  virtual Var finish(Forward& forward, const Terms& terms, const Var& y) const = 0;

  /// (Λ, B, C, D) as views of what terms and mix computed: no copies beyond their size, valid while they are.
  /// y of the system is mixed.y.
  virtual Realisation realise(const Terms& terms, const Mixed& mixed) const = 0;

  /// What Λ is a function of, as terms and mix computed it: valid while they are, nothing is computed here,
  /// so that a captured pass can copy them.
  virtual std::vector<LambdaSource> lambda_sources(const Terms& terms, const Mixed& mixed) const = 0;
  /// Λ as `realise` gives it, from those tensors or from copies of them on any device.
  virtual Lambda lambda(const std::vector<Tensor>& sources) const = 0;

  /// True iff mix_with works: the recurrence can run with other eigenvalues through the ops of the tape.
  virtual bool has_mix_with() const { return false; }
  /// y of h_i = Λ'_i h_{i−1} + B_i u_i, B, C and D as they are, Λ' = map(Λ); differentiable, through Λ too.
  /// With a map that changes nothing it is mix's y. Error: families without such a form.
  virtual Var mix_with(Forward& forward, const Terms& terms, const EigenvalueMap& map) const;

  /// The whole pass, with the hooks of `forward`. x [B,T,D] → [B,T,D]. `then`, if not null, is applied to it.
  Var operator()(Forward& forward, int layer, const Var& x, const Activation* then = nullptr) const;
};

}  // namespace eigentrace
