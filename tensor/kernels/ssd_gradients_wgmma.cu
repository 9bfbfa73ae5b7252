// ssd_gradients_kernel by wgmma, which sm_90a alone has: TF32, N = P = 128, a head for each q and k.
// Equations: ssd_chunks.h.
//
// wgmma takes TF32 operands from shared memory along k only, so dq, dk and dv are made lying down, a
// warpgroup each, from what lies in memory as it is: left operands that would have to be turned come through
// registers.
//   dqᵀ = S dyᵀ + kᵀ Wᵀ        dkᵀ = R vᵀ + qᵀ W        dvᵀ = Rᵀ kᵀ + dyᵀ M
// The third warpgroup also makes A = q kᵀ, G = dy vᵀ and of them W and M, as right operands of the others.
// A warp's rows of a left operand read from S, k, R, dy are placed so that a thread has four columns side by
// side of each of its steps, read and written 16 bytes at once.
//
// Shared memory is full: the second half of R waits in registers until S is used up, W comes where S's second
// half was, M where R's first half was. While a block has all it needs, it asks for what the block after it
// wants. Sums of E over rows and columns are made of float32 within a warp: its products have 10 bits.
//
// MQAR, 64 sequences of 512 steps: 134 MB read, 50 written, 44 µs at 4.2 TB/s; tensor cores 20. Takes 71 µs
// on an H200 for linear attention, 85 where there are decays (by mma.sync 110, 107): all blocks load at the
// same time (8 of 21 µs of a block's life), then wait for the chain A, G, W, products, stores.
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/gemm_outer_wgmma.h"
#include "tensor/kernels/row_scale.cuh"
#include "tensor/kernels/ssd_wgmma.cuh"
#include "tensor/launch.h"

namespace eigentrace::kernels {
namespace {

constexpr int threads = 3 * group_threads;
[[maybe_unused]] constexpr int q_at = 0, k_at = tile_bytes, v_at = 2 * tile_bytes, dy_at = 3 * tile_bytes,
                               before_at = 4 * tile_bytes, after_at = 6 * tile_bytes,
                               small_at = 7 * tile_bytes;
[[maybe_unused]] constexpr int last_after_at = before_at, w_at = before_at + tile_bytes,
                               w_turned_at = w_at + pairs_bytes, m_at = after_at,
                               sums_at = after_at + pairs_bytes;
constexpr size_t bytes = small_at + sizeof(Small);
static_assert(sizeof(Sums) <= pairs_bytes);

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// Named barriers: W and M are there; the steps' factors are; q and k; v and dy; S; R's first half; halves are
// used up; R's second half is there. Those that a warpgroup only arrives at are for products alone. Straight
// behind another of all threads racecheck (CUDA 13.0) does not always count one: there is work between two.
enum Barrier { pairs_there, of_steps, of_q_k, of_v_dy, of_before, of_after, used_up, last_after };
#endif

/// Blocks [chunks B H]: early chunks first, since ssd_states_kernel has left them in the cache.
__global__ void __launch_bounds__(threads, 1)
    ssd_gradients_wgmma_kernel([[maybe_unused]] const __grid_constant__ SsdPass s,
                               [[maybe_unused]] int processors) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  unsigned char* const shared = tiles_shared();
  const auto base = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  Small& f = *reinterpret_cast<Small*>(shared + small_at);
  Sums& sums = *reinterpret_cast<Sums*>(shared + sums_at);
  const int sequences = s.B * s.H, c = static_cast<int>(blockIdx.x) / sequences;
  const int sequence = static_cast<int>(blockIdx.x) % sequences, b = sequence / s.H, h = sequence % s.H;
  const int64_t t0 = int64_t{c} * ssd_chunk, item = int64_t{sequence} * s.chunks + c;
  const int n = s.steps - t0 < ssd_chunk ? static_cast<int>(s.steps - t0) : ssd_chunk;
  const bool has_before = c > 0 && s.states, has_after = c + 1 < s.chunks && s.later;
  const bool flows = s.dlog_a.data, factors = s.decays || s.weighs;
  const float *before = s.states + item * s.elements, *after = s.later + item * width * width;
  const int group = __shfl_sync(0xFFFFFFFFu, static_cast<int>(threadIdx.x) / group_threads, 0);
  const int tid = static_cast<int>(threadIdx.x) % group_threads, lane = tid % 32, g = lane / 4, t = lane % 4;
  const int warp = __shfl_sync(0xFFFFFFFFu, tid / 32, 0);
  // A thread's four columns, and where they are in a row of a tile that is `phase` past a multiple of 8.
  const int order = g / 2 + g % 2 * 4, column = 32 * warp + 4 * order;
  const auto fours = [&](int row, int phase) {
    return warp * part_bytes + row * 128 + ((order ^ phase) << 4);
  };
  const int low = fours(t, t), high = fours(t + 4, t + 4);

  // Each warpgroup copies up to three tiles, warp w rows w, w + 4, …. S's are permuted: its half i has in row
  // 16 w + g + 8 e what a thread (w, g) has of its four columns.
  const int copied_part = lane / 8 * part_bytes + warp * 128;
  const int copied[2] = {copied_part + ((lane % 8 ^ warp) << 4),
                         copied_part + ((lane % 8 ^ (warp + 4)) << 4)};
  const auto copy_tile = [&](int at, const float* from, int64_t stride, bool permuted, int rows) {
    const int64_t step = (permuted ? 8 : 4) * stride, step_2 = (permuted ? 1 : 8) * stride,
                  step_4 = (permuted ? 32 : 16) * stride;
    const float* x = from + (permuted ? warp / 2 * 4 + warp % 2 * 16 + 2 * group : warp) * stride + 4 * lane;
    unsigned char* const to = shared + at;
    if (rows == ssd_chunk) {
      const float* four[4] = {x, x + step, x + step_2, x + step + step_2};
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        copy_async_16(to + i * 512 + copied[i % 2], four[i % 4]);
        four[i % 4] += step_4;
      }
    } else {
#pragma unroll 1
      for (int i = 0; i < 16; ++i, x += step) {
        const bool valid = 4 * i + warp < rows;
        copy_async_16(to + i * 512 + (i % 2 ? copied[1] : copied[0]), valid ? x : from, valid);
      }
    }
  };
  const auto copy_tiles = [&](const Heads<float>& first, const Heads<float>& second) {
#pragma unroll 1
    for (int turn = 0; turn < 3; ++turn) {
      const Heads<float>& x = turn == 0 ? first : second;
      if (turn < 2)
        copy_tile((2 * turn + group) * tile_bytes, x.row(b, h, t0), x.time, false, n);
      else if (has_before)
        copy_tile(before_at + group * tile_bytes, before, width, true, ssd_chunk);
      copy_commit();
    }
  };
  const auto hand_on_tiles = [&] {  // as they arrive
    named_sync(of_steps, threads);
    copy_wait<2>();
    fence_for_async();
    named_arrive(of_q_k, threads);
    copy_wait<1>();
    fence_for_async();
    named_arrive(of_v_dy, threads);
    copy_wait<0>();
    fence_for_async();
    named_sync(of_before, 2 * group_threads);
  };
  // Fragments of a left operand that lies in a tile turned; rounded, unless that is done.
  const auto turned = [&]<bool rounds>(const unsigned char* tile) {
    return [=](uint32_t(&a)[4], uint32_t(&other)[4], int step) {
      const float4 x = four_at(tile + step * 1024 + low), y = four_at(tile + step * 1024 + high);
      const auto as_tf32 = [](float value) { return rounds ? to_tf32(value) : __float_as_uint(value); };
      a[0] = as_tf32(x.x), a[1] = as_tf32(x.y), a[2] = as_tf32(y.x), a[3] = as_tf32(y.y);
      other[0] = as_tf32(x.z), other[1] = as_tf32(x.w), other[2] = as_tf32(y.z), other[3] = as_tf32(y.w);
    };
  };
  const auto store_fours = [&](const float(&d)[2][32], const Heads<float>& to) {
    float* x = to.row(b, h, t0 + 2 * t) + column;
#pragma unroll
    for (int j = 0; j < 8; ++j, x += 8 * to.time)
#pragma unroll
      for (int e = 0; e < 2; ++e)
        if (8 * j + 2 * t + e < n)
          *reinterpret_cast<float4*>(x + e * to.time) = {d[0][4 * j + e], d[0][4 * j + 2 + e],
                                                         d[1][4 * j + e], d[1][4 * j + 2 + e]};
  };

  if (group == 0) {  // dq
    fewer_registers<144>();
    copy_tiles(s.q, s.v);
    float4 keys{0, 0, 0, 0};  // their sum before the chunk
    if (s.linear && has_before) keys = *reinterpret_cast<const float4*>(before + width * width + column);
    hand_on_tiles();
    float d[2][32] = {};
    if (has_before) {
      start_products<2>(d, {base + before_at, base + before_at + tile_bytes}, base + dy_at);
      finish_products(d);
    }
    float dots[16];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float2 fade = two_at(f.fade + 8 * j + 2 * t);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float4 own = four_at(shared + q_at + fours(8 * j + 2 * t + e, 2 * t + e));
        const float factor = e ? fade.y : fade.x;
        float &x0 = d[0][4 * j + e], &x1 = d[0][4 * j + 2 + e], &x2 = d[1][4 * j + e],
              &x3 = d[1][4 * j + 2 + e];
        x0 *= factor, x1 *= factor, x2 *= factor, x3 *= factor;
        dots[2 * j + e] = x0 * own.x + x1 * own.y + x2 * own.z + x3 * own.w;
      }
    }
    share_sums(dots, lane);
    *reinterpret_cast<float2*>(f.from_state[warp] + 8 * g + 2 * t) = {dots[0], dots[1]};
    named_sync(used_up, threads);
#pragma unroll
    for (int j = 0; j < 8; ++j) {  // while the third warpgroup makes the pairs
      const float2 rows = two_at(f.row + 8 * j + 2 * t);
#pragma unroll
      for (int i = 0; i < 8; ++i) d[i / 4][4 * j + i % 4] *= i % 2 ? rows.y : rows.x;
    }
    named_sync(pairs_there, threads);
    multiply_turned(d, turned.template operator()<true>(shared + k_at), base + w_at, 0, true);
    if (s.linear)
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float2 deta = two_at(f.deta + 8 * j + 2 * t);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float of_keys_sum = e ? deta.y : deta.x;
          d[0][4 * j + e] += of_keys_sum * keys.x, d[0][4 * j + 2 + e] += of_keys_sum * keys.y;
          d[1][4 * j + e] += of_keys_sum * keys.z, d[1][4 * j + 2 + e] += of_keys_sum * keys.w;
        }
      }
    if (s.of_elu)
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float4 own = four_at(shared + q_at + fours(8 * j + 2 * t + e, 2 * t + e));
          d[0][4 * j + e] *= fminf(own.x, 1), d[0][4 * j + 2 + e] *= fminf(own.y, 1);
          d[1][4 * j + e] *= fminf(own.z, 1), d[1][4 * j + 2 + e] *= fminf(own.w, 1);
        }
    if (s.dq.data) store_fours(d, s.dq);
    if (!factors && !s.dskip) return;
    const auto to_state = [&](int i) {
      return factors ? sums.to_state[0][i] + sums.to_state[1][i] + sums.to_state[2][i] + sums.to_state[3][i]
                     : 0.0f;
    };
    const auto starts = [&](int i) {
      double sum = 0;
#pragma unroll
      for (int part = 0; part < 4; ++part) sum += static_cast<double>(sums.starts[part][i]);
      return sum;
    };
    if (s.dw.data && tid < n)
      s.dw.at(b, t0 + tid, h) = static_cast<float>(starts(tid)) + f.diagonal[tid] + to_state(tid);
    if (s.dskip && tid == 0)
      s.dskip[item] = sums.skipped[0] + sums.skipped[1] + sums.skipped[2] + sums.skipped[3];
    if (flows && warp == 2) {
      double net[2], gone[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int i = 2 * lane + e;
        const auto weight = static_cast<double>(f.weight[i]);
        net[e] = i < n ? static_cast<double>(sums.ends[i]) - weight * starts(i) +
                             static_cast<double>(sums.from_state[i])
                       : 0;
        gone[e] = i < n ? weight * static_cast<double>(to_state(i)) : 0;
      }
      const double over = sums.passed[0] + sums.passed[1] + sums.passed[2] + sums.passed[3];
      store_flow(s, net, gone, (s.f.decay ? static_cast<double>(s.f.decay[item]) : 1) * over, b, h, c, n);
    }
  } else if (group == 1) {  // dk
    fewer_registers<144>();
    copy_tiles(s.k, s.dy);
    float4 rest[16] = {};  // R's second half, until there is room
    if (has_after)
#pragma unroll
      for (int i = 0; i < 16; ++i)
        rest[i] = *reinterpret_cast<const float4*>(after + (ssd_chunk + 4 * i + warp) * width + 4 * lane);
    hand_on_tiles();
    if (const int next = static_cast<int>(blockIdx.x) + processors; next < static_cast<int>(gridDim.x)) {
      // What the block after this one wants, to the L2 cache, while memory has nothing else to do.
      const int next_sequence = next % sequences, next_b = next_sequence / s.H, next_h = next_sequence % s.H;
      const int64_t next_item = int64_t{next_sequence} * s.chunks + next / sequences,
                    step = int64_t{next / sequences} * ssd_chunk + tid % ssd_chunk;
      if (step < s.steps) {
        prefetch_bulk((tid < ssd_chunk ? s.q : s.k).row(next_b, next_h, step), 4 * width);
        prefetch_bulk((tid < ssd_chunk ? s.v : s.dy).row(next_b, next_h, step), 4 * width);
      }
      if (s.states) prefetch_bulk(s.states + next_item * s.elements + tid * width, 4 * width);
      if (s.later && next / sequences + 1 < s.chunks)
        prefetch_bulk(s.later + (next_item * width + tid) * width, 4 * width);
    }
    // Rows 16 w + g + 8 e of both halves: columns of k and q, in their rows `phase` past a multiple of 8.
    const auto one = [&](int half, int e, int row, int phase) {
      return (2 * half + warp / 2) * part_bytes + row * 128 +
             (((warp % 2 * 4 + 2 * e + g / 4) ^ phase) << 4) + g % 4 * 4;
    };
    float d[2][32] = {};
    named_sync(of_after, 2 * group_threads);
    if (has_after) start_products<1>(reinterpret_cast<float(&)[1][32]>(d[0]), {base + after_at}, base + v_at);
    double passed = 0;
    if (flows && has_before && has_after) {
      const int half = warp / 2, e = warp % 2;  // of S, where rows 4 i + warp are
      const auto add = [&](int i, const float4& y) {
        const int place = 2 * (i % 4) + i % 8 / 4;
        const float4 x = four_at(shared + before_at + half * tile_bytes + lane / 8 * part_bytes +
                                 (i / 8 * 16 + place + 8 * e) * 128 + ((lane % 8 ^ place) << 4));
        passed += static_cast<double>(x.x * y.x + x.y * y.y + x.z * y.z + x.w * y.w);
      };
#pragma unroll
      for (int i = 0; i < 16; ++i)
        add(i, four_at(shared + after_at + i * 512 + copied[i % 2])), add(i + 16, rest[i]);
      passed = sum_over_rows(sum_over_columns(passed));
    }
    finish_products(reinterpret_cast<float(&)[1][32]>(d[0]));
    named_sync(used_up, threads);
    if (has_after)
#pragma unroll
      for (int i = 0; i < 16; ++i)
        *reinterpret_cast<float4*>(shared + last_after_at + i * 512 + copied[i % 2]) = rest[i];
    fence_for_async();
    named_sync(last_after, group_threads);
    if (lane == 0) sums.passed[warp] = passed;
    if (has_after) {
      start_products<1>(reinterpret_cast<float(&)[1][32]>(d[1]), {base + last_after_at}, base + v_at);
      finish_products(reinterpret_cast<float(&)[1][32]>(d[1]));
    }
    if (factors) {
      float dots[16];
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int step = 8 * j + 2 * t + e;
          const float factor = f.to_end[step], weight = f.weight[step];
          dots[2 * j + e] = 0;
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float& x = d[i / 2][4 * j + i % 2 * 2 + e];
            x *= factor;
            dots[2 * j + e] +=
                x * *reinterpret_cast<const float*>(shared + k_at + one(i / 2, i % 2, step, 2 * t + e));
            x *= weight;
          }
        }
      share_sums(dots, lane);
      *reinterpret_cast<float2*>(sums.to_state[warp] + 8 * g + 2 * t) = {dots[0], dots[1]};
    }
    named_sync(pairs_there, threads);
    if (s.linear) {  // Σ_i dη_i q_i
      float tail = 0;
#pragma unroll 8
      for (int i = 0; i < ssd_chunk; ++i)
        tail += f.deta[i] * *reinterpret_cast<const float*>(shared + q_at + warp * part_bytes + i * 128 +
                                                            ((lane / 4 ^ i % 8) << 4) + lane % 4 * 4);
      s.tails[item * width + tid] = tail;
    }
    // Odd lanes of a row of four have their two rows of q in the other order: no bank twice.
    const int first = t ^ t % 2 * 4;
    multiply_turned(
        d,
        [&](uint32_t(&a)[4], uint32_t(&other)[4], int step) {
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            const int row = i % 4 < 2 ? first : first ^ 4;
            (i < 4 ? a : other)[i % 4] = to_tf32(
                *reinterpret_cast<const float*>(shared + q_at + step * 1024 + one(i / 4, i % 2, row, row)));
          }
        },
        base + w_turned_at, 0, true);
    if (s.of_elu)
#pragma unroll
      for (int i = 0; i < 64; ++i) {
        const int step = 8 * (i / 8) + 2 * t + i % 2;
        d[i / 4 % 2][4 * (i / 8) + i % 4] *= fminf(
            *reinterpret_cast<const float*>(shared + k_at + one(i / 4 % 2, i / 2 % 2, step, 2 * t + i % 2)),
            1);
      }
    if (!s.dk.data) return;
    float* x = s.dk.row(b, h, t0 + 2 * t) + 16 * warp + g;
#pragma unroll
    for (int j = 0; j < 8; ++j, x += 8 * s.dk.time)
#pragma unroll
      for (int e = 0; e < 2; ++e)
        if (8 * j + 2 * t + e < n) {
          float* const row = x + e * s.dk.time;
          row[0] = d[0][4 * j + e], row[8] = d[0][4 * j + 2 + e];
          row[64] = d[1][4 * j + e], row[72] = d[1][4 * j + 2 + e];
        }
  } else {  // pairs and dv
    more_registers<216>();
    if (has_after) copy_tile(after_at, after, width, false, ssd_chunk);
    copy_commit();
    if (tid < ssd_chunk) {
      const int64_t at = item * ssd_chunk + tid;
      const float row = tid < n ? s.row.at(b, t0 + tid, h) : 0.0f;
      float2 sum{0, 0};
      float weight = 1, fade = 1, to_end = 1;
      if (factors) sum = s.f.sum[at], weight = s.f.weight[at], fade = s.f.fade[at], to_end = s.f.to_end[at];
      f.sum[tid] = sum, f.weight[tid] = weight, f.fade[tid] = fade, f.to_end[tid] = to_end, f.row[tid] = row;
    }
    named_sync(of_steps, threads);
    float m[1][32] = {}, w[1][32] = {};  // A, then M; G, then W
    named_sync(of_q_k, threads);
    start_products<1>(m, {base + q_at}, base + k_at);
    named_sync(of_v_dy, threads);
    start_products<1>(w, {base + dy_at}, base + v_at);
    copy_wait<0>();
    fence_for_async();
    named_sync(of_after, 2 * group_threads);
    finish_products(m), finish_products(w);
    const int rows[2] = {16 * warp + g, 16 * warp + g + 8};
    float ends[2] = {}, starts[16] = {};
    float delta[2] = {};
    const float row_factor[2] = {f.row[rows[0]], f.row[rows[1]]};
    float diagonal[2] = {}, skipped[2] = {};
    const auto make_pairs = [&]<bool decayed>() {
      const float2 ends_of[2] = {f.sum[rows[0]], f.sum[rows[1]]};
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float4 begin = *reinterpret_cast<const float4*>(f.sum + 8 * j + 2 * t);
        const float2 weights = two_at(f.weight + 8 * j + 2 * t);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int key = 8 * j + 2 * t + e;
          const float weight = decayed ? e ? weights.y : weights.x : 1.0f;
          float sum = 0;
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            float &own_m = m[0][4 * j + 2 * r + e], &own_w = w[0][4 * j + 2 * r + e];
            float decay = 1;
            if constexpr (decayed)
              decay =
                  exp2f((ends_of[r].x - (e ? begin.z : begin.x)) + (ends_of[r].y - (e ? begin.w : begin.y)));
            decay = key > rows[r] ? 0.0f : decay;
            skipped[r] = key == rows[r] ? own_w : skipped[r];
            const float a = own_m, gradient = decay * own_w;
            own_m = decay * a * row_factor[r], own_w = gradient * weight;
            if constexpr (decayed) {
              const float product = gradient * a;
              diagonal[r] = key == rows[r] ? product : diagonal[r];
              const float off = key < rows[r] ? product : 0.0f;
              ends[r] += weight * off, sum += off;
            }
            delta[r] += own_w * a;
          }
          if constexpr (decayed) starts[2 * j + e] = sum;
        }
      }
    };
    if (factors) {
      make_pairs.template operator()<true>();
      share_sums(starts, lane);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        ends[r] = sum_over_columns(ends[r]), diagonal[r] = sum_over_columns(diagonal[r]);
        if (t == 0) f.diagonal[rows[r]] = diagonal[r];
      }
    } else {
      make_pairs.template operator()<false>();
    }
    float u[2][32] = {};
    if (has_after)
      multiply_turned(u, turned.template operator()<false>(shared + after_at), base + k_at, 0, false);
    named_sync(used_up, threads);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int i = rows[r];
      const float from = f.from_state[0][i] + f.from_state[1][i] + f.from_state[2][i] + f.from_state[3][i];
      delta[r] = sum_over_columns(delta[r]) + from;
      const float deta = s.linear ? -row_factor[r] * row_factor[r] * delta[r] : 0.0f;
      if (t == 0) {
        f.deta[i] = deta, sums.from_state[i] = from, sums.ends[i] = ends[r];
        if (s.delta && i < n) s.delta[(int64_t{b} * s.steps + t0 + i) * s.H + h] = delta[r];
      }
      const int turned_i = i ^ g % 2 * 4;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        float pair[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int key = 8 * j + 2 * t + e, phase = 2 * t + e;
          const float value = key > i ? 0.0f : row_factor[r] * w[0][4 * j + 2 * r + e] + deta;
          pair[e] = __uint_as_float(to_tf32(value));
          const int at = i / 32 * part_bytes + key * 128;
          *reinterpret_cast<float*>(shared + w_turned_at + at + ((turned_i % 32 * 4) ^ (phase << 4))) =
              pair[e];
          *reinterpret_cast<uint32_t*>(shared + m_at + at + ((i % 32 * 4) ^ (phase << 4))) =
              to_tf32(m[0][4 * j + 2 * r + e]);
        }
        *reinterpret_cast<float2*>(shared + w_at + j / 4 * part_bytes + i * 128 +
                                   (((8 * j + 2 * t) % 32 * 4) ^ (g << 4))) = {pair[0], pair[1]};
      }
    }
    *reinterpret_cast<float2*>(sums.starts[warp] + 8 * g + 2 * t) = {starts[0], starts[1]};
    if (s.dskip) {
      const double skipped_sum =
          sum_over_rows(sum_over_columns(static_cast<double>(skipped[0] + skipped[1])));
      if (lane == 0) sums.skipped[warp] = skipped_sum;
    }
    fence_for_async();
    named_sync(pairs_there, threads);
    if (has_after) {
      multiply_turned(u, turned.template operator()<false>(shared + last_after_at), base + k_at, 8, true);
      if (factors)
#pragma unroll
        for (int j = 0; j < 8; ++j)
#pragma unroll
          for (int i = 0; i < 8; ++i) u[i / 4][4 * j + i % 4] *= f.to_end[8 * j + 2 * t + i % 2];
    }
    multiply_turned(u, turned.template operator()<true>(shared + dy_at), base + m_at, 0, true);
    const float skip = s.skip.data ? s.skip.at(0, 0, h) : 0.0f;
    if (factors || s.skip.data)
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float4 own = four_at(shared + dy_at + fours(8 * j + 2 * t + e, 2 * t + e));
          const float weight = f.weight[8 * j + 2 * t + e];
          float &x0 = u[0][4 * j + e], &x1 = u[0][4 * j + 2 + e], &x2 = u[1][4 * j + e],
                &x3 = u[1][4 * j + 2 + e];
          x0 = weight * x0 + skip * own.x, x1 = weight * x1 + skip * own.y;
          x2 = weight * x2 + skip * own.z, x3 = weight * x3 + skip * own.w;
        }
    if (s.dv.data) store_fours(u, s.dv);
  }
#endif
}

}  // namespace

bool launch_gradients_wgmma(const Context& ctx, const SsdPass& s) {
  const bool fits = s.N == width && s.P == width && s.G == s.H && s.aligned && rows_aligned(s.dq, 16) &&
                    rows_aligned(s.dv, 16) && bytes <= s.shared && wgmma_exists(ctx);
  if (!fits) return false;
  int processors = 0;
  ET_CUDA(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, ctx.device().index));
  launch(ctx, ssd_gradients_wgmma_kernel, static_cast<unsigned>(s.B * s.H * s.chunks), threads, bytes, s,
         processors);
  return true;
}

}  // namespace eigentrace::kernels
#endif
