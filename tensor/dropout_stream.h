#pragma once
// Dropout masks: element i of random op `op` is kept iff word i % 4 of Philox(seed; step, op; i / 4) is at
// least p 2³². A pure function of (seed, step, op, i): recomputed in the backward pass, equal on every
// device.
#include <cmath>

#include "tensor/context.h"
#include "tensor/error.h"
#include "tensor/kernels.h"
#include "tensor/rng.h"
#include "tensor/vec.h"

namespace eigentrace {

struct DropoutStream {
  const int64_t* state;  ///< (seed, step), on the device: a replayed step reads the step of the day
  uint32_t op, threshold;
  double keep_scale;  ///< 1 / (1 − p)

  /// The four words of elements 4·block … 4·block + 3. The top bit of the counter keeps masks apart from
  /// every host stream of the same seed (Rng counts up from 0).
  ET_HD Philox4 words(int64_t block) const {
    return philox(static_cast<uint64_t>(state[0]), static_cast<uint64_t>(state[1]) << 32 | op,
                  static_cast<uint64_t>(block) | uint64_t{1} << 63);
  }
  /// 1/(1 − p) or 0 for one element.
  template <class T>
  ET_HD T factor(int64_t element) const {
    return words(element >> 2).x[element & 3] >= threshold ? T(keep_scale) : T(0);
  }
  /// Those of elements `element` … + width − 1; width 1, or `element` a multiple of width ≤ 4: one call of
  /// Philox.
  template <class T, int width>
  ET_HD Vec<T, width> factors(int64_t element) const {
    const Philox4 w = words(element >> 2);
    Vec<T, width> f;
#pragma unroll
    for (int i = 0; i < width; ++i) {  // no index that the compiler does not know: words stay in registers
      uint32_t word = w.x[i & 3];
      if (width == 2) word = element & 2 ? w.x[(i + 2) & 3] : word;
      if (width == 1) word = element & 2 ? (element & 1 ? w.x[3] : w.x[2]) : (element & 1 ? w.x[1] : w.x[0]);
      f.x[i] = word >= threshold ? T(keep_scale) : T(0);
    }
    return f;
  }
};

/// Error: p outside [0, 1).
inline DropoutStream dropout_stream(const Context& ctx, double p, uint32_t op) {
  if (!(p >= 0 && p < 1)) fail("dropout: p in [0, 1) expected, found " + std::to_string(p));
  const double threshold = std::nearbyint(p * 4294967296.0);
  return {ctx.step_state().data<int64_t>(), op,
          threshold < 4294967295.0 ? static_cast<uint32_t>(threshold) : 4294967295u, 1.0 / (1.0 - p)};
}

/// The mask of a tensor's elements, in row-major order: a draw each, or [B, T, D] with one draw for all T of
/// (b, d).
struct MaskedElements {
  DropoutStream stream;
  int64_t time, width;  ///< time 0: a draw each

  template <class T, int pack>
  ET_HD Vec<T, pack> factors(int64_t element) const {
    if (time == 0) return stream.template factors<T, pack>(element);
    const int64_t row =
        element <= INT32_MAX
            ? static_cast<int64_t>(static_cast<uint32_t>(element) / static_cast<uint32_t>(width))
            : element / width;
    const int64_t batch = row <= INT32_MAX
                              ? static_cast<int64_t>(static_cast<uint32_t>(row) / static_cast<uint32_t>(time))
                              : row / time;
    const int64_t column = element - row * width;
    if (width % pack == 0) return stream.template factors<T, pack>(batch * width + column);
    Vec<T, pack> f;  // a pack of a dense tensor may reach into the next row
#pragma unroll
    for (int i = 0; i < pack; ++i) {
      const int64_t r = (element + i) / width;
      f.x[i] = stream.template factors<T, 1>(r / time * width + (element + i) % width).x[0];
    }
    return f;
  }
};

inline MaskedElements masked_elements(const Context& ctx, const kernels::Dropout& drop, const Tensor& x) {
  if (drop.shared_over_time && x.rank() != 3)
    fail("dropout: a mask shared over time needs x [B, T, D], found " + to_string(x));
  return {dropout_stream(ctx, drop.p, drop.op), drop.shared_over_time ? x.dim(1) : 0,
          drop.shared_over_time ? x.dim(2) : 1};
}

/// Host loops: factors of elements start … start + n − 1 into out, whole blocks at a time; out has room for
/// n + 6. Returns where the first one lies.
template <class T>
const T* dropout_factors(const DropoutStream& mask, int64_t start, int64_t n, T* out) {
  const int64_t first = start >> 2, blocks = ((start + n + 3) >> 2) - first;
  const int64_t state[2] = {mask.state[0], mask.state[1]};
  const DropoutStream local{state, mask.op, mask.threshold, mask.keep_scale};
  const T keep = T(mask.keep_scale);
#pragma omp simd
  for (int64_t b = 0; b < blocks; ++b) {
    const Philox4 w = local.words(first + b);
    out[4 * b] = w.x[0] >= local.threshold ? keep : T(0);
    out[4 * b + 1] = w.x[1] >= local.threshold ? keep : T(0);
    out[4 * b + 2] = w.x[2] >= local.threshold ? keep : T(0);
    out[4 * b + 3] = w.x[3] >= local.threshold ? keep : T(0);
  }
  return out + (start & 3);
}

}  // namespace eigentrace
