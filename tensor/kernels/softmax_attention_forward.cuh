#pragma once
// Softmax attention on tensor cores, forward. Equations: softmax_attention.cu.
//
// A block owns 16 · groups queries a warp and walks over tiles of keys: s = q kᵀ in registers, running
// maximum and sum, and p as the left operand of y += p v without leaving registers. Tiles travel to shared
// memory asynchronously while the tensor cores work on the tile before, and each thread rounds what it
// copied. The maximum is raised, and y and the sum scaled, only when a score exceeds it by 2^attention_slack:
// p stays below 2^8, which costs no accuracy, and a row's decision depends on its own scores alone.
//
// Floor (H200, B·H·T²/2 pairs). CIFAR (200, 1024, N 16, P 128), bf16: 30 GFLOP = 50 µs at mma.sync's rate;
// 105 M exponentials at 16 a clock and SM = 28 µs; operands 0.24 GB = 58 µs; right operands from shared
// memory, which 32 queries a warp read together, 32 µs. Measured 197 µs: two warps a scheduler, since 32 ×
// 128 sums take half of a thread's registers, and 510 instructions per 32 × 32 pairs, a third of a warp's
// cycles waiting for the result of the instruction before. IMDB (24, 4096, 16, 32), dropout: 201 M
// exponentials = 56 µs, 25 M calls of Philox; measured 215 µs, 550 instructions per 32 × 32 pairs at 0.6 a
// clock. MQAR (64, 512, 128, 128): 43 µs.
#include "tensor/kernels/softmax_attention_mma.cuh"

#ifdef EIGENTRACE_WITH_CUDA
namespace eigentrace::kernels {

/// What a row's scores may exceed its maximum so far by, as powers of 2, before its sums are scaled anew.
constexpr float attention_slack = 8;

template <class M, int N, int P, bool drops>
__global__ void __launch_bounds__(AttentionShapes<M, N, P>::forward.threads(),
                                  AttentionShapes<M, N, P>::forward.resident)
    attention_mma_kernel(AttentionOperands<float> a, AttentionAccess access) {
  using Element = typename M::Element;
  constexpr AttentionShape shape = AttentionShapes<M, N, P>::forward;
  constexpr int threads = shape.threads(), rows = shape.rows(), groups = shape.groups, keys = shape.tile;
  constexpr int own_rows = 16 * groups, part = keys < 32 ? keys : 32, tiles = part / 8;
  constexpr int np = N + M::pad, pp = P + M::pad;
  static_assert(part % own_rows == 0, "a row sees a key of every part that its warp works on");
  using CopyK = AttentionCopy<M, keys, N, threads>;
  using CopyV = AttentionCopy<M, keys, P, threads>;
  auto* raw_k = dynamic_shared<float>();
  auto* raw_v = raw_k + keys * N;
  auto* q_s = reinterpret_cast<Element*>(CopyK::in_place ? raw_k : raw_v + keys * P);
  auto *k_s = q_s + rows * np, *v_s = k_s + 2 * keys * np;
  const int length = static_cast<int>(a.size.T), turns = (length + rows - 1) / rows;
  const AttentionTurn at(a.size.B * a.size.H, turns);
  const int64_t b = at.item / a.size.H, h = at.item % a.size.H;
  const AttentionRows q(a.q, b, h, length, a.size.N, access.q), k(a.k, b, h, length, a.size.N, access.k),
      v(a.v, b, h, length, a.size.P, access.v);
  const AttentionMask mask = drops ? AttentionMask(a.mask, at.item, length) : AttentionMask();
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int g = lane / 4, t = lane % 4;
  const int own = attention_own(warp) * own_rows;
  const int i0 = (turns - 1 - at.turn) * rows, first = i0 + own;
  const float factor = a.scale * 1.44269504f;
  const int64_t mask_block = drops ? mask.block(first + g, 2 * t) : 0;

  CopyK::start(raw_k, k_s, k, 0);
  CopyV::start(raw_v, v_s, v, 0);
  copy_commit();
  attention_stage<M, rows, N, threads>(q_s, q, i0);
  float out[groups][P / 8][4] = {}, largest[groups][2], sum[groups][2] = {};
#pragma unroll
  for (int m = 0; m < groups; ++m) largest[m][0] = largest[m][1] = -INFINITY;
  const int end = i0 + rows < length ? i0 + rows : length;
  for (int tile0 = 0, now = 0; tile0 < end; tile0 += keys, now ^= 1) {
    const Element *k_now = k_s + now * keys * np, *v_now = v_s + now * keys * pp;
    copy_wait<0>();
    CopyK::finish(raw_k, k_s + now * keys * np);
    CopyV::finish(raw_v, v_s + now * keys * pp);
    __syncthreads();  // this tile is there, and nobody reads the one before the last
    if (tile0 + keys < end) {
      CopyK::start(raw_k, k_s + (now ^ 1) * keys * np, k, tile0 + keys);
      CopyV::start(raw_v, v_s + (now ^ 1) * keys * pp, v, tile0 + keys);
    }
    copy_commit();
#pragma unroll 1
    for (int j0 = tile0; j0 < tile0 + keys && j0 < first + own_rows;
         j0 += part, k_now += part * np, v_now += part * pp) {
      float s[groups][tiles][4] = {};
      attention_row_products<M, N>(s, q_s + own * np, k_now);
      if (j0 + part - 1 > first) {
#pragma unroll
        for (int m = 0; m < groups; ++m)
#pragma unroll
          for (int c = 0; c < tiles; ++c)
#pragma unroll
            for (int e = 0; e < 4; ++e)
              if (j0 + 8 * c + 2 * t + e % 2 > first + 16 * m + g + e / 2 * 8) s[m][c][e] = -INFINITY;
      }
      bool grown = false;
      float fade[groups][2];
#pragma unroll
      for (int m = 0; m < groups; ++m)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float top = s[m][0][2 * r], total = 0;
#pragma unroll
          for (int c = 0; c < tiles; ++c) top = fmaxf(top, fmaxf(s[m][c][2 * r], s[m][c][2 * r + 1]));
          top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, 1));
          top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, 2));
          const float growth = (top - largest[m][r]) * factor;
          const bool grows = growth > attention_slack;
          fade[m][r] = grows ? attention_exp2(-growth) : 1.0f;
          largest[m][r] = grows ? top : largest[m][r];
          grown = grown || grows;
          const float shift = -largest[m][r] * factor;
#pragma unroll
          for (int c = 0; c < tiles; ++c)
#pragma unroll
            for (int e = 2 * r; e < 2 * r + 2; ++e)
              total += s[m][c][e] = attention_exp2(fmaf(s[m][c][e], factor, shift));
          sum[m][r] = sum[m][r] * fade[m][r] + total;
        }
      if (__any_sync(0xFFFFFFFFu, grown)) {
#pragma unroll
        for (int m = 0; m < groups; ++m)
#pragma unroll
          for (int c = 0; c < P / 8; ++c)
#pragma unroll
            for (int e = 0; e < 4; ++e) out[m][c][e] *= fade[m][e / 2];
      }
      if constexpr (drops) {
        constexpr int pairs = tiles / 2;
        int64_t block[groups * pairs];
        Philox4 w[groups * pairs];
#pragma unroll
        for (int u = 0; u < groups * pairs; ++u)
          block[u] = mask_block + u / pairs * (mask.blocks * 32) + 2 * j0 + u % pairs * 32;
        mask.words(w, block);
#pragma unroll
        for (int u = 0; u < groups * pairs; ++u)
          attention_drop(s[u / pairs][u % pairs * 2], s[u / pairs][u % pairs * 2 + 1], mask, w[u]);
      }
      typename M::Fragment p_left[groups][tiles / 2];
      attention_fragments<M>(p_left, s);
      attention_add_rows<M, P>(out, p_left, v_now);
    }
  }

  const AttentionRows y(a.y, b, h, length, a.size.P, access.y);
#pragma unroll
  for (int m = 0; m < groups; ++m)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float total = sum[m][r];
      total += __shfl_xor_sync(0xFFFFFFFFu, total, 1);
      total += __shfl_xor_sync(0xFFFFFFFFu, total, 2);
      const int i = first + 16 * m + g + 8 * r;
      const float inverse = (drops ? static_cast<float>(a.mask.keep_scale) : 1.0f) / total;
      if (t == 0 && i < length)
        a.lse[(b * length + i) * a.size.H + h] = largest[m][r] * a.scale + logf(total);
      y.store(i, out[m], 2 * r, inverse);
    }
}

template <class M>
void attention_mma(const Context& ctx, const AttentionPlan& plan, const AttentionOperands<float>& a) {
  with_attention_sizes(plan, [&]<int N, int P>() {
    constexpr AttentionShape shape = AttentionShapes<M, N, P>::forward;
    const int64_t blocks = a.size.B * a.size.H * ((a.size.T + shape.rows() - 1) / shape.rows());
    launch(ctx, a.drops ? attention_mma_kernel<M, N, P, true> : attention_mma_kernel<M, N, P, false>,
           static_cast<unsigned>(blocks), shape.threads(), attention_forward_bytes(shape, M::precision, N, P),
           a, access_of(a, {}));
  });
}

}  // namespace eigentrace::kernels
#endif
