#pragma once
// The four normalisers of norm attention, host and device: log η = f(x), and what its gradient needs,
// g(x) = −f′(x) exp(−f(x)), one expression in each case: f′ alone may be infinite where exp(−f) is 0.
#include <limits>

#include "tensor/kernels.h"
#include "tensor/math.h"

namespace eigentrace::kernels {

template <class T>
ET_HD T normaliser_value(NormFunction f, T x) {
  switch (f) {
    case NormFunction::exp: {
      const T y = fast_exp(x);
      return y > std::numeric_limits<T>::max() ? std::numeric_limits<T>::max() : y;
    }
    case NormFunction::elu:
      return x > 0 ? x : static_cast<T>(std::expm1(x));
    case NormFunction::softplus:
      return softplus(x);
    case NormFunction::sigmoid:
      return sigmoid(x);
  }
  return 0;
}

/// −f′(x) exp(−f(x))
template <class T>
ET_HD T normaliser_slope(NormFunction f, T x) {
  const T log_eta = normaliser_value(f, x);
  switch (f) {
    case NormFunction::exp:
      return -fast_exp(x - log_eta);
    case NormFunction::elu:
      return -fast_exp((x > 0 ? T(0) : x) - log_eta);
    case NormFunction::softplus:
      return -sigmoid(x) * fast_exp(-log_eta);
    case NormFunction::sigmoid:
      return -log_eta * sigmoid(-x) * fast_exp(-log_eta);
  }
  return 0;
}

}  // namespace eigentrace::kernels
