#pragma once
// Interventions inside the pass: Forward::on_mixer replaced y by what other eigenvalues give.
#include <map>
#include <memory>

#include "nn/mixer.h"
#include "spectral/intervention.h"

namespace eigentrace {

/// How y is found.
enum class InterventionPath : unsigned char {
  automatic,  ///< ops where the family has a form of them, else replay
  ops,        ///< differentiable, in the pass's type; error: a family without
  replay      ///< simulated in float64, a constant: exact by definition, without gradient
};

/// Hooks for the passes of one model with its present weights (replay: S4's eigenvectors are kept; ops:
/// weights may move between passes).
class Intervener {
 public:
  Intervener(std::shared_ptr<const Interventions> interventions, InterventionPath path)
      : interventions_(std::move(interventions)), path_(path) {}

  /// y with the altered eigenvalues; undefined where the layer is not touched. For on_mixer.
  Var operator()(Forward& forward, int layer, const Mixer& mixer, const Terms& terms, const Mixed& mixed);
  /// Sets forward.on_mixer. The object must outlive the pass.
  void attach(Forward& forward);
  const Interventions& interventions() const { return *interventions_; }
  /// True iff a layer was simulated.
  bool replayed() const { return !simulations_.empty(); }
  /// S4: largest condition of an eigenvector; 0: none was needed.
  double condition() const;

 private:
  EigenvalueVars mapped(const EigenvalueVars& lambda, int layer, const Mixer& mixer);
  Var constant(const Var& like, size_t n, int layer, const char* what, const Shape& shape,
               const std::vector<double>& values);

  std::shared_ptr<const Interventions> interventions_;
  InterventionPath path_;
  std::map<int, AlteredSimulation> simulations_;
  std::map<std::string, Tensor> constants_;  // made in the first pass: none is copied in a later one
};

}  // namespace eigentrace
