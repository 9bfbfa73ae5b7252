#pragma once
// Dropout masks: an element is kept iff its 16 bits of Philox4x32-7(seed; step, op; block) are at least
// round(p 2¹⁶): eight decisions a call. A pure function of (seed, step, op, element): recomputed in the
// backward pass, equal on every device. What is kept is divided by the probability that 16 bits give, so the
// mean is exact; p < 2⁻¹⁷ drops nothing, and p > 1 − 2⁻¹⁷ keeps one in 65,536.
//   tensors           element i: half-word i % 8 of block i / 8
//   attention weights [items, T, T]: see DropoutStream::weight_block
#include <cmath>

#include "tensor/context.h"
#include "tensor/error.h"
#include "tensor/kernels.h"
#include "tensor/rng.h"
#include "tensor/vec.h"

namespace eigentrace {

constexpr int dropout_rounds = 7;

struct DropoutStream {
  const int64_t* state;  ///< (seed, step), on the device: a replayed step reads the step of the day
  uint32_t op, threshold;
  double keep_scale;  ///< 2¹⁶ / (2¹⁶ − threshold)

  /// The top bit of the counter keeps masks apart from every host stream of the same seed (Rng counts up from
  /// 0).
  ET_HD static Philox4 words(uint64_t seed, uint64_t step_op, int64_t block) {
    return philox<dropout_rounds>(seed, step_op, static_cast<uint64_t>(block) | uint64_t{1} << 63);
  }
  /// Several calls, round by round (tensor/rng.h has the equations): the rounds' keys are made once.
  template <int n>
  ET_HD static void words(uint64_t seed, uint64_t step_op, const int64_t (&block)[n], Philox4 (&w)[n]) {
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const uint64_t low = static_cast<uint64_t>(block[i]) | uint64_t{1} << 63;
      w[i] = {{static_cast<uint32_t>(low), static_cast<uint32_t>(low >> 32), static_cast<uint32_t>(step_op),
               static_cast<uint32_t>(step_op >> 32)}};
    }
#pragma unroll
    for (int round = 0; round < dropout_rounds; ++round) {
#pragma unroll
      for (int i = 0; i < n; ++i) {
        const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * w[i].x[0];
        const uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * w[i].x[2];
        w[i] = {{static_cast<uint32_t>(p1 >> 32) ^ w[i].x[1] ^ k0, static_cast<uint32_t>(p1),
                 static_cast<uint32_t>(p0 >> 32) ^ w[i].x[3] ^ k1, static_cast<uint32_t>(p0)}};
      }
      k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
  }
  ET_HD Philox4 words(int64_t block) const {
    return words(static_cast<uint64_t>(state[0]), static_cast<uint64_t>(state[1]) << 32 | op, block);
  }
  ET_HD bool keeps(uint32_t word, int half) const { return (word >> 16 * half & 0xFFFFu) >= threshold; }

  /// keep_scale or 0 for one element.
  template <class T>
  ET_HD T factor(int64_t element) const {
    return factors<T, 1>(element).x[0];
  }
  /// Those of elements `element` … + width − 1; width 1, or `element` a multiple of width ≤ 8: one call
  /// of Philox.
  template <class T, int width>
  ET_HD Vec<T, width> factors(int64_t element) const {
    static_assert(width == 1 || width == 2 || width == 4 || width == 8);
    const Philox4 w = words(element >> 3);
    if constexpr (width == 8) {
      Vec<T, width> f;
#pragma unroll
      for (int i = 0; i < 8; ++i) f.x[i] = keeps(w.x[i / 2], i % 2) ? T(keep_scale) : T(0);
      return f;
    }
    // no index that the compiler does not know: words stay in registers
    const uint32_t low = element & 4 ? w.x[2] : w.x[0], high = element & 4 ? w.x[3] : w.x[1];
    const uint32_t first = width < 4 && element & 2 ? high : low;
    Vec<T, width> f;
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const int half = width == 1 ? static_cast<int>(element & 1) : i % 2;
      f.x[i] = keeps(i < 2 ? first : high, half) ? T(keep_scale) : T(0);
    }
    return f;
  }

  /// Attention weight (i, j) of matrix `item` of [items, 16 blocks, 16 blocks]: one call serves rows i, i + 8
  /// and columns j, j + 1, j + 8, j + 9 of a block of 16 × 16, which is what a lane holds of a tensor-core
  /// product; half-word weight_half(i, j) of block weight_block(…).
  ET_HD static int64_t weight_block(int64_t item, int64_t i, int64_t j, int64_t blocks) {
    return ((item * blocks + (i >> 4)) * blocks + (j >> 4)) * 32 + (i & 7) * 4 + (j >> 1 & 3);
  }
  ET_HD static int weight_half(int64_t i, int64_t j) {
    return static_cast<int>((i >> 3 & 1) * 2 + (j >> 3 & 1) * 4 + (j & 1));
  }
  ET_HD static int64_t weight_blocks(int64_t length) { return (length + 15) / 16; }
};

/// Error: p outside [0, 1).
inline DropoutStream dropout_stream(const Context& ctx, double p, uint32_t op) {
  if (!(p >= 0 && p < 1)) fail("dropout: p in [0, 1) expected, found " + std::to_string(p));
  const uint32_t threshold = static_cast<uint32_t>(std::fmin(std::nearbyint(p * 65536), 65535));
  return {ctx.step_state().data<int64_t>(), op, threshold, 65536.0 / (65536.0 - threshold)};
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
      f.x[i] = stream.template factor<T>(r / time * width + (element + i) % width);
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
/// n + 14. Returns where the first one lies.
template <class T>
const T* dropout_factors(const DropoutStream& mask, int64_t start, int64_t n, T* out) {
  const int64_t first = start >> 3, blocks = ((start + n + 7) >> 3) - first;
  const int64_t state[2] = {mask.state[0], mask.state[1]};
  const DropoutStream local{state, mask.op, mask.threshold, mask.keep_scale};
  const T keep = T(mask.keep_scale);
#pragma omp simd
  for (int64_t b = 0; b < blocks; ++b) {
    const Philox4 w = local.words(first + b);
    out[8 * b + 0] = local.keeps(w.x[0], 0) ? keep : T(0);
    out[8 * b + 1] = local.keeps(w.x[0], 1) ? keep : T(0);
    out[8 * b + 2] = local.keeps(w.x[1], 0) ? keep : T(0);
    out[8 * b + 3] = local.keeps(w.x[1], 1) ? keep : T(0);
    out[8 * b + 4] = local.keeps(w.x[2], 0) ? keep : T(0);
    out[8 * b + 5] = local.keeps(w.x[2], 1) ? keep : T(0);
    out[8 * b + 6] = local.keeps(w.x[3], 0) ? keep : T(0);
    out[8 * b + 7] = local.keeps(w.x[3], 1) ? keep : T(0);
  }
  return out + (start & 7);
}

/// Host loops: factors of attention weights (i, start) … (i, start + n − 1) of matrix `item`, start a
/// multiple of 16; out has room for n rounded up to 16.
template <class T>
void dropout_weight_factors(const DropoutStream& mask, int64_t length, int64_t item, int64_t i, int64_t start,
                            int64_t n, T* out) {
  const int64_t state[2] = {mask.state[0], mask.state[1]};
  const DropoutStream local{state, mask.op, mask.threshold, mask.keep_scale};
  const T keep = T(mask.keep_scale);
  const int64_t first = DropoutStream::weight_block(item, i, start, DropoutStream::weight_blocks(length));
  const int row = static_cast<int>(i >> 3 & 1);
  for (int64_t block = 0; block < (n + 15) / 16; ++block) {
    T* to = out + 16 * block;
#pragma omp simd
    for (int t = 0; t < 4; ++t) {
      const Philox4 w = local.words(first + 32 * block + t);
      const uint32_t near = row ? w.x[1] : w.x[0], far = row ? w.x[3] : w.x[2];
      to[2 * t] = local.keeps(near, 0) ? keep : T(0);
      to[2 * t + 1] = local.keeps(near, 1) ? keep : T(0);
      to[2 * t + 8] = local.keeps(far, 0) ? keep : T(0);
      to[2 * t + 9] = local.keeps(far, 1) ? keep : T(0);
    }
  }
}

}  // namespace eigentrace
