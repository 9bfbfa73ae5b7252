#pragma once
// Scalar functions for kernels, host and device. On the host the float forms are branch-free so that a loop
// over them vectorises; on the device they are CUDA's own.
#include <bit>
#include <cmath>
#include <cstdint>

#include "tensor/hd.h"

namespace eigentrace {

/// exp(x), float32 on the host: x = n·ln 2 + r, |r| ≤ ln 2 / 2, exp(r) by a degree-6 polynomial, scaled by 2ⁿ
/// in two factors so that results reach from denormals to infinity. NaN stays NaN.
ET_HD float fast_exp(float x) {
#ifdef __CUDA_ARCH__
  return expf(x);
#else
  const float clamped = x > 89.0f ? 89.0f : (x < -104.0f ? -104.0f : x);
  const float n = std::nearbyint(clamped * 1.44269504f);
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const int32_t k = static_cast<int32_t>(n), half = k / 2;
  const float scale_a = std::bit_cast<float>((half + 127) << 23);
  const float scale_b = std::bit_cast<float>((k - half + 127) << 23);
  const float y = p * scale_a * scale_b;
  return x != x ? x : y;
#endif
}
ET_HD double fast_exp(double x) { return exp(x); }

template <class T>
ET_HD T sigmoid(T x) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == 4) return __fdividef(1.0f, 1.0f + expf(-x));  // 2 units in the last place
#endif
  return T(1) / (T(1) + fast_exp(-x));
}

/// log(1 + u) for u in [0, 1], float32 on the host: 2 atanh(s), s = u/(2 + u) ≤ 1/3, nine terms.
ET_HD float log1p_unit(float u) {
#ifdef __CUDA_ARCH__
  return log1pf(u);
#else
  const float s = u / (2.0f + u), q = s * s;
  float p = 2.0f / 17;
  p = p * q + 2.0f / 15;
  p = p * q + 2.0f / 13;
  p = p * q + 2.0f / 11;
  p = p * q + 2.0f / 9;
  p = p * q + 2.0f / 7;
  p = p * q + 2.0f / 5;
  p = p * q + 2.0f / 3;
  p = p * q + 2.0f;
  return p * s;
#endif
}
ET_HD double log1p_unit(double u) { return log1p(u); }

/// log(1 + eˣ) without overflow.
template <class T>
ET_HD T softplus(T x) {
  const T magnitude = x < 0 ? x : -x;
  return (x > 0 ? x : T(0)) + log1p_unit(fast_exp(magnitude));
}

}  // namespace eigentrace
