#pragma once
// Fourier transforms of M = 256 S points, S = 4, 8, 16 or 32, by blocks of 512 threads: 16 S threads a
// signal, 16 points a thread in registers, C = 32/S signals (neighbouring channels) a block. For .cu files
// only.
//
// Thread (j, c), c fastest, so that a warp reads C neighbouring channels of S neighbouring time steps.
//   forward   points j + 16 S q, q = 0..15: radix 16, twiddles w_M^{jq};          exchange between warps
//             points 16 S a + j' + S q (a = j/S, j' = j mod S): radix 16, w_{16S}^{j'q};   within the warp
//             points 16 j + i: transforms of S points
// and back in the opposite order. Spectra stay where they are (thread (j, c) holds the places 16 j + i of a
// digit-reversed order), which products of spectra need not know. Each thread overwrites only places of
// shared memory that it has read itself, so that a transform there and back costs two barriers. Place p lies
// at p + p/16: no bank conflicts.
//
// Operations a thread and transform: about 680 (radix 16: 176, twiddles 104), 2·32 accesses of 8 bytes to
// shared memory. Twiddles: w, w², w⁴, w⁸ to float32's last bit, the others by one or two products of these.
#include "tensor/cplx.h"
#include "tensor/kernels/block_fft.cuh"

namespace eigentrace::kernels {
namespace {

constexpr int fft_threads = 512;
using Cf = cplx<float>;

/// x · exp(∓2πi k/32), k < 8 known when compiled.
template <bool inverse>
__device__ __forceinline__ Cf turned_in_quarter(const Cf& x, int k) {
  constexpr float r = 0.70710678118654752f;
  switch (k) {
    case 0:
      return x;
    case 1:
      return turned<inverse>(x, Cf{0.98078528040323043f, -0.19509032201612825f});
    case 2:
      return turned<inverse>(x, Cf{0.92387953251128674f, -0.38268343236508977f});
    case 3:
      return turned<inverse>(x, Cf{0.83146961230254524f, -0.55557023301960218f});
    case 4:
      if constexpr (inverse) return {r * (x.re - x.im), r * (x.im + x.re)};
      return {r * (x.re + x.im), r * (x.im - x.re)};
    case 5:
      return turned<inverse>(x, Cf{0.55557023301960218f, -0.83146961230254524f});
    case 6:
      return turned<inverse>(x, Cf{0.38268343236508977f, -0.92387953251128674f});
    default:
      return turned<inverse>(x, Cf{0.19509032201612825f, -0.98078528040323043f});
  }
}
/// The same for k < 16.
template <bool inverse>
__device__ __forceinline__ Cf turned_32(const Cf& x, int k) {
  return k < 8 ? turned_in_quarter<inverse>(x, k)
               : turned_in_quarter<inverse>(quarter_turned<inverse>(x), k - 8);
}

template <bool inverse>
__device__ __forceinline__ void dft4(Cf& a, Cf& b, Cf& c, Cf& d) {
  const Cf ac = a + c, bd = b + d, a_c = a - c, b_d = quarter_turned<inverse>(b - d);
  a = ac + bd, b = a_c + b_d, c = ac - bd, d = a_c - b_d;
}

/// x in natural order both ways.
template <bool inverse>
__device__ __forceinline__ void dft8(Cf (&x)[8]) {
  Cf odd[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    odd[i] = turned_32<inverse>(x[i] - x[i + 4], 4 * i);
    x[i] = x[i] + x[i + 4];
  }
  dft4<inverse>(x[0], x[1], x[2], x[3]);
  dft4<inverse>(odd[0], odd[1], odd[2], odd[3]);
#pragma unroll
  for (int i = 3; i >= 0; --i) x[2 * i] = x[i], x[2 * i + 1] = odd[i];
}

/// Forward 16 points; half: points 8.. are zero and not read.
template <bool half>
__device__ __forceinline__ void dft16_forward(Cf (&x)[16]) {
  Cf even[8], odd[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if constexpr (half) {
      even[i] = x[i], odd[i] = turned_32<false>(x[i], 2 * i);
    } else {
      even[i] = x[i] + x[i + 8], odd[i] = turned_32<false>(x[i] - x[i + 8], 2 * i);
    }
  }
  dft8<false>(even);
  dft8<false>(odd);
#pragma unroll
  for (int i = 0; i < 8; ++i) x[2 * i] = even[i], x[2 * i + 1] = odd[i];
}

/// Back; half: only points 0..7 are wanted.
template <bool half>
__device__ __forceinline__ void dft16_inverse(Cf (&x)[16]) {
  Cf even[8], odd[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) even[i] = x[2 * i], odd[i] = x[2 * i + 1];
  dft8<true>(even);
  dft8<true>(odd);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const Cf o = turned_32<true>(odd[i], 2 * i);
    x[i] = even[i] + o;
    if constexpr (!half) x[i + 8] = even[i] - o;
  }
}

template <int S>
struct RegisterFft {
  static constexpr int signals = 32 / S, threads_a_signal = 16 * S, length = 256 * S;
  static constexpr int J = threads_a_signal, C = signals;
  /// Bytes of dynamic shared memory: the exchange, then w, w², w⁴, w⁸ of both stages.
  static constexpr int exchange = (length + length / 16) * C;
  static constexpr size_t shared = sizeof(Cf) * static_cast<size_t>(exchange + 4 * J + 4 * S);

  int j, c;         ///< this thread's signal is number c of the block
  Cf *wide, *near;  ///< this thread's places of the exchange between warps: written, and read
  Cf* last;         ///< and of the exchange within the warp
  const Cf *w_wide, *w_near;

  /// Fills the tables; every thread of the block makes one.
  __device__ RegisterFft() {
    Cf* const memory = dynamic_shared<Cf>();
    const int thread = static_cast<int>(threadIdx.x);
    j = thread / C, c = thread % C;
    const int a = j / S, b = j % S;
    wide = memory + (j + j / 16) * C + c;
    near = memory + (a * (J + J / 16) + b + b / 16) * C + c;
    last = memory + 17 * j * C + c;
    Cf* const tables = memory + exchange;
    for (int i = thread; i < 4 * (J + S); i += fft_threads) {
      const int stage = i >= 4 * J, k = stage ? i - 4 * J : i, points = stage ? S : J;
      const int power = 1 << k / points;
      float s, cosine;
      sincospif(2.0f * static_cast<float>(k % points * power) / static_cast<float>(16 * points), &s, &cosine);
      tables[i] = {cosine, -s};
    }
    w_wide = tables + j, w_near = tables + 4 * J + b;
    __syncthreads();
  }

  /// x[8..15] are zero and not read.
  __device__ __forceinline__ void forward(Cf (&x)[16]) const {
    dft16_forward<true>(x);
    twiddle<false, J>(x, w_wide);
#pragma unroll
    for (int q = 0; q < 16; ++q) wide[q * (J + J / 16) * C] = x[q];
    __syncthreads();
#pragma unroll
    for (int q = 0; q < 16; ++q) x[q] = near[(q * S + q * S / 16) * C];
    dft16_forward<false>(x);
    twiddle<false, S>(x, w_near);
#pragma unroll
    for (int q = 0; q < 16; ++q) near[(q * S + q * S / 16) * C] = x[q];
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 16; ++i) x[i] = last[i * C];
    last_stage<false>(x);
  }
  /// After a forward transform, and before another one there must be a barrier. Times M; x[0..7] only.
  __device__ __forceinline__ void inverse(Cf (&x)[16]) const {
    last_stage<true>(x);
#pragma unroll
    for (int i = 0; i < 16; ++i) last[i * C] = x[i];
    __syncwarp();
#pragma unroll
    for (int q = 0; q < 16; ++q) x[q] = near[(q * S + q * S / 16) * C];
    twiddle<true, S>(x, w_near);
    dft16_inverse<false>(x);
#pragma unroll
    for (int q = 0; q < 16; ++q) near[(q * S + q * S / 16) * C] = x[q];
    __syncthreads();
#pragma unroll
    for (int q = 0; q < 16; ++q) x[q] = wide[q * (J + J / 16) * C];
    twiddle<true, J>(x, w_wide);
    dft16_inverse<true>(x);
  }

 private:
  /// x_q · w^q from w, w², w⁴, w⁸ at w[0], w[stride], …
  template <bool inverted, int stride>
  __device__ __forceinline__ static void twiddle(Cf (&x)[16], const Cf* w) {
    const Cf w1 = w[0], w2 = w[stride], w4 = w[2 * stride], w8 = w[3 * stride], w3 = w1 * w2;
    x[1] = turned<inverted>(x[1], w1), x[2] = turned<inverted>(x[2], w2), x[3] = turned<inverted>(x[3], w3);
    x[4] = turned<inverted>(x[4], w4), x[8] = turned<inverted>(x[8], w8);
    const Cf w5 = w1 * w4, w6 = w2 * w4, w7 = w3 * w4;
    x[5] = turned<inverted>(x[5], w5), x[6] = turned<inverted>(x[6], w6), x[7] = turned<inverted>(x[7], w7);
    x[9] = turned<inverted>(x[9], w1 * w8), x[10] = turned<inverted>(x[10], w2 * w8);
    x[11] = turned<inverted>(x[11], w3 * w8), x[12] = turned<inverted>(x[12], w4 * w8);
    x[13] = turned<inverted>(x[13], w5 * w8), x[14] = turned<inverted>(x[14], w6 * w8);
    x[15] = turned<inverted>(x[15], w7 * w8);
  }
  /// Transforms of S neighbouring points; of 32, each half of which another thread has: j and j ^ 1.
  template <bool inverted>
  __device__ __forceinline__ void last_stage(Cf (&x)[16]) const {
    if constexpr (S == 4) {
#pragma unroll
      for (int i = 0; i < 16; i += 4) dft4<inverted>(x[i], x[i + 1], x[i + 2], x[i + 3]);
    } else if constexpr (S == 8) {
      Cf part[8];
#pragma unroll
      for (int from = 0; from < 16; from += 8) {
#pragma unroll
        for (int i = 0; i < 8; ++i) part[i] = x[from + i];
        dft8<inverted>(part);
#pragma unroll
        for (int i = 0; i < 8; ++i) x[from + i] = part[i];
      }
    } else {
      const bool upper = j & 1;
      if constexpr (inverted) dft16_inverse<false>(x);
      if constexpr (S == 32) {
#pragma unroll
        for (int i = 0; i < 16; ++i) {
          if constexpr (inverted)
            if (upper) x[i] = turned_32<true>(x[i], i);
          const Cf other = {__shfl_xor_sync(0xFFFFFFFFu, x[i].re, 1),
                            __shfl_xor_sync(0xFFFFFFFFu, x[i].im, 1)};
          x[i] = upper ? other - x[i] : x[i] + other;
          if constexpr (!inverted)
            if (upper) x[i] = turned_32<false>(x[i], i);
        }
      }
      if constexpr (!inverted) dft16_forward<false>(x);
    }
  }
};

}  // namespace
}  // namespace eigentrace::kernels
