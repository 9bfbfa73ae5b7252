#pragma once
// Interventions: other eigenvalues in place of a layer's own, B, C and D held fixed, to see whether a
// spectral signature causes performance. What is changed is Λ of the Realisation (gauge included): attention
// in the study's gauge has B_i = k_i/η_i and λ_i = η_{i−1}/η_i, and only the latter moves.
//
// In words: clauses joined by ";", done in this order. A clause is a change, then optionally "layers=0,2" and
// "heads=1" (channels, for S4) that limit it:
//
//   abs<=R  abs>=R    |λ| at most, at least R              arg=A   phase := A degrees
//   abs=R             |λ| := R                             arg+=A  phase shifted by A degrees
//   abs*=S            |λ| := S |λ|                         arg*=S  phase := S · phase
//   abs^=P            |λ| := |λ|^P: memory 1/P as long     lambda=C  λ := C (0: memoryless)
//   freeze=mean       one λ a head, exp of the mean of log|λ| over time and a batch
//   freeze=profile    one λ a head and time step, exp of the mean of log|λ| over a batch
//   freeze=initial    the eigenvalues that the run's first weights give; freeze=FILE: those of a checkpoint
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "spectral/reading.h"

namespace eigentrace {

enum class Change : unsigned char {
  abs_at_most,
  abs_at_least,
  abs_set,
  abs_scale,
  abs_power,
  lambda_set,
  arg_set,
  arg_shift,
  arg_scale,
  freeze
};

struct Intervention {
  Change change = Change::abs_at_most;
  double number = 0;                   ///< R, S, P, C; degrees where the phase is set or shifted
  std::string source;                  ///< freeze: mean, profile, initial or a file
  std::vector<int64_t> layers, heads;  ///< empty: all
  std::string text;                    ///< as it was written

  bool in_layer(int64_t layer) const;
  bool in_head(int64_t head) const;
  bool phase() const { return change >= Change::arg_set && change <= Change::arg_scale; }
  /// freeze=mean, freeze=profile: an average over time, nothing for a fixed Λ.
  bool averages() const { return change == Change::freeze && (source == "mean" || source == "profile"); }
};

/// `layers`, `heads`: of the clauses that name none. Errors (usage): not such a text.
std::vector<Intervention> parse_interventions(const std::string& text,
                                              const std::vector<int64_t>& layers = {},
                                              const std::vector<int64_t>& heads = {});

/// log|λ| and arg λ after any change but freeze. NaN (an eigenvalue that is not known) stays unless it is
/// set.
void change_eigenvalue(const Intervention& intervention, double& log_abs, double& arg);

/// What a batch of a time-varying spectrum [B,T,M] is frozen to: [1,1,M] (mean) or [1,T,M] (profile) means of
/// log|λ| over what is finite; NaN where nothing is.
LayerSpectrum frozen_mean(const LayerSpectrum& spectrum);
LayerSpectrum frozen_profile(const LayerSpectrum& spectrum);

/// The interventions of one model, with what frozen layers are frozen to.
class Interventions {
 public:
  Interventions() = default;
  explicit Interventions(std::vector<Intervention> list) : list_(std::move(list)) {}

  const std::vector<Intervention>& list() const { return list_; }
  bool empty() const { return list_.empty(); }
  bool touches(int64_t layer) const;
  /// What list()[n] freezes layer `values.layer` to: shaped as that layer's spectrum, or with 1 along batch
  /// and time.
  void freeze(size_t n, LayerSpectrum values);
  /// Null: not given.
  const LayerSpectrum* frozen(size_t n, int64_t layer) const;

  /// Changes the eigenvalues of spectrum.layer in place; `sequence`: which one of the batch its first
  /// sequence is. What was counted over a larger set is dropped: it is no longer true. Errors (usage): a head
  /// or channel the layer does not have, a phase for real eigenvalues, a freeze that does not fit.
  void alter(LayerSpectrum& spectrum, int64_t sequence = 0) const;

 private:
  std::vector<Intervention> list_;
  std::map<std::pair<size_t, int64_t>, LayerSpectrum> frozen_;
};

/// y of the altered system, simulated step by step in float64: exact by definition, for every family. One
/// object a layer and set of weights: S4's eigenvectors are kept from call to call.
class AlteredSimulation {
 public:
  /// y, as many elements as u and in its order. Errors: those of check(); of alter().
  std::vector<double> operator()(const Realisation& system, int64_t layer,
                                 const Interventions& interventions);
  /// S4: largest condition 1/|yᴴv| of an eigenvector seen: y can be trusted to about condition · 1e-16.
  double condition() const { return condition_; }

 private:
  struct Mode {
    double log_abs, arg, re, im;  // λ_k and the coefficient of λ_kˡ in the channel's kernel
  };
  std::vector<double> channels(const Realisation& system, int64_t layer, const Interventions& interventions);
  std::vector<std::vector<Mode>> modes_;
  double condition_ = 0;
};

}  // namespace eigentrace
