#pragma once
// Fourier transforms of 1024 points by one warp, 32 points a lane in registers, and on them products of real
// polynomials modulo z^1024 = i. For .cu files only.
//
// With W = exp(iπ/2048), x_t W^t transforms into the values of the polynomial Σ x_t z^t at the 1024 roots of
// z^1024 = i. There u k = (u k)_low + z^1024 (u k)_high is (u k)_low + i (u k)_high: of two real sequences
// the product of transforms, transformed back and turned by W^−t, has the causal convolution as its real
// part. So a sequence of 1024 needs no zeros behind it and no second one beside it.
//
// Lane l holds times l + 32 q, q = 0..31, or frequencies l + 32 q:
//   forward   x_q c_q, c_q = W^(32 q), a constant; 32 points; by t_lk = W^l w^(lk), w = exp(−2πi/1024); turn
//             (lane, place); 32 points
//   inverse   32 points; turn; by conj(t_lk); 32 points; by conj(c_q), real part
// Only warps meet. Operations a lane and transform: 2·472 (32 points), 208 (t, of 8 + 3 factors in a table),
// 64; accesses of 4 bytes to shared memory: 128, without bank conflicts.
#include "tensor/kernels/register_fft.cuh"

namespace eigentrace::kernels {
namespace {

constexpr int warp_points = 1024;
constexpr int turn_factors = 11 * 32;

/// W^(32 q) = exp(iπ q/64), q < 32; a quarter's cosines are the other's sines.
__device__ constexpr float wave_cosine[33] = {
    1.0f,         0.998795456f, 0.995184727f,  0.98917651f,   0.98078528f,  0.970031253f, 0.956940336f,
    0.941544065f, 0.923879533f, 0.903989293f,  0.881921264f,  0.85772861f,  0.831469612f, 0.803207531f,
    0.773010453f, 0.740951125f, 0.707106781f,  0.671558955f,  0.634393284f, 0.595699304f, 0.555570233f,
    0.514102744f, 0.471396737f, 0.427555093f,  0.382683432f,  0.336889853f, 0.290284677f, 0.24298018f,
    0.195090322f, 0.146730474f, 0.0980171403f, 0.0490676743f, 0.0f};

/// 32 points, natural order both ways.
template <bool inverse>
__device__ __forceinline__ void dft32(Cf (&x)[32]) {
  Cf even[16], odd[16];
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    even[i] = x[i] + x[i + 16];
    odd[i] = turned_32<inverse>(x[i] - x[i + 16], i);
  }
  if constexpr (inverse) {
    dft16_inverse<false>(even);
    dft16_inverse<false>(odd);
  } else {
    dft16_forward<false>(even);
    dft16_forward<false>(odd);
  }
#pragma unroll
  for (int i = 0; i < 16; ++i) x[2 * i] = even[i], x[2 * i + 1] = odd[i];
}

/// whole: complex numbers pass shared memory at once, else real parts before imaginary ones, in half the
/// memory.
template <bool whole>
struct WarpFft {
  /// Floats of a warp's exchange; 4 · pitch mod 32 = 16, so that four rows of eight exchanges are read at
  /// once.
  static constexpr int pitch = whole ? 2116 : 1060;
  int lane;
  float* exchange;    ///< of this warp: warp_pitch floats
  const Cf* factors;  ///< turn_factors of them, see fill

  /// By all threads of a block, then a barrier.
  __device__ static void fill(Cf* factors) {
    for (int i = static_cast<int>(threadIdx.x); i < turn_factors; i += static_cast<int>(blockDim.x)) {
      const int l = i % 32, row = i / 32;
      const int power = row < 8 ? l * (16 * row - 1) : l * 4 * (row - 7);  // of exp(−2πi/4096)
      float s, c;
      sincospif(static_cast<float>(power) / 2048.0f, &s, &c);
      factors[i] = {c, -s};
    }
  }

  __device__ __forceinline__ void forward(const float (&u)[32], Cf (&x)[32]) const {
#pragma unroll
    for (int q = 0; q < 32; ++q) x[q] = {u[q] * wave_cosine[q], u[q] * wave_cosine[32 - q]};
    dft32<false>(x);
    turn<false>(x);
    transpose(x);
    dft32<false>(x);
  }
  /// Times 1024.
  __device__ __forceinline__ void inverse(Cf (&x)[32], float (&y)[32]) const {
    dft32<true>(x);
    transpose(x);
    turn<true>(x);
    dft32<true>(x);
#pragma unroll
    for (int q = 0; q < 32; ++q) y[q] = x[q].re * wave_cosine[q] + x[q].im * wave_cosine[32 - q];
  }

 private:
  template <bool inverted>
  __device__ __forceinline__ void turn(Cf (&x)[32]) const {
    Cf step[3];
#pragma unroll
    for (int i = 0; i < 3; ++i) step[i] = factors[(8 + i) * 32 + lane];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const Cf w = factors[j * 32 + lane];
      x[4 * j] = turned<inverted>(x[4 * j], w);
#pragma unroll
      for (int i = 0; i < 3; ++i) x[4 * j + 1 + i] = turned<inverted>(x[4 * j + 1 + i], w * step[i]);
    }
  }
  /// Place k of lane l ↔ place l of lane k.
  __device__ __forceinline__ void transpose(Cf (&x)[32]) const {
    if constexpr (whole) {
      Cf* const memory = reinterpret_cast<Cf*>(exchange);
      __syncwarp();
#pragma unroll
      for (int k = 0; k < 32; ++k) memory[33 * k + lane] = x[k];
      __syncwarp();
#pragma unroll
      for (int k = 0; k < 32; ++k) x[k] = memory[33 * lane + k];
    } else {
      pass(x, &Cf::re);
      pass(x, &Cf::im);
    }
  }
  __device__ __forceinline__ void pass(Cf (&x)[32], float Cf::*part) const {
    __syncwarp();
#pragma unroll
    for (int k = 0; k < 32; ++k) exchange[33 * k + lane] = x[k].*part;
    __syncwarp();
#pragma unroll
    for (int k = 0; k < 32; ++k) x[k].*part = exchange[33 * lane + k];
  }
};

}  // namespace
}  // namespace eigentrace::kernels
