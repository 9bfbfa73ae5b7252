#pragma once
// The vocabulary head whose logits never reach memory. Equations: vocabulary_head.cu.
//   pack        x of the labels and W as tiles of 64 rows, as they lie and turned, rounded to TF32
//   statistics  z = x Wᵀ + b, a block 192 rows of x against a part of W: largest, Σ exp, argmax, z[label]
//   join        loss, argmax, lse of a row
//   gradient    p = exp(z − lse) − onehot, made from z computed again, is at once a left operand:
//               dx = c (p W), and by the same kernel, x and W exchanged, dW = pᵀ (c x), db = pᵀ c; c = w /
//               count
// A warpgroup owns 64 rows, which stay in registers as fragments, and meets tiles that a warp fetches by bulk
// copies. What z's accumulators hold of columns 2t, 2t + 1 are p's columns
// t, t + 4 as a left operand: turned tiles have their rows in that order.
//
// 4096 labels, V 8192, D 128: five products of 8.6 GFLOP, 0.11 ms at cuBLAS's 390 TFLOP/s; a tile of 64 keeps
// the tensor cores busy for 2048 clocks, shared memory for 1024 (reads) and 512 (copies), exponentials for
// 512. From the L2 cache come 268 MB a gradient and 134 MB for statistics.
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/kernels/loss_cuda.cuh"
#include "tensor/launch.h"
#include "tensor/mma.h"
#include "tensor/wgmma.h"

namespace eigentrace::kernels {

constexpr int head_tile = 64, head_width = 128, head_pack_threads = 256;
/// A tile of rows in memory: turned [2 parts of 32 rows][128 columns], as it lies [4 parts of 32 columns][64
/// rows], both in swizzled rows of 128 bytes; then what goes with rows.
struct HeadRecord {
  static constexpr int turned = 0, rows = 32768, extra = 65536, bytes = 66560;
  struct Extra {
    float first[head_tile];  ///< of W: bias; of x: lse log₂e, ∞ where a row does not count
    int label[head_tile];    ///< of x; −1 where a row does not count
    float c[head_tile];      ///< of x: w / count
    float unused[head_tile];
  };
  static_assert(extra + sizeof(Extra) == bytes);
  __device__ static int lies(int row, int column) {
    return rows + column / 32 * 8192 + row * 128 + ((column % 32 / 4 ^ row % 8) << 4) + column % 4 * 4;
  }
};

struct HeadPack {
  Rows<float> x;
  DeviceLabels labels;
  unsigned char* x_records;
  int x_tiles;
  const float* weight;
  int64_t row_step, column_step;
  const float* bias;
  int V;
  unsigned char* w_records;
};

/// A block a tile, those of x first.
__global__ void __launch_bounds__(head_pack_threads) head_pack_kernel(HeadPack p) {
  constexpr float never = -1e30f;  // the logit of what fills W's last tile
  __shared__ float tile[head_tile][head_width + 1];
  __shared__ const float* source[head_tile];
  __shared__ float scale[head_tile];
  const int me = static_cast<int>(threadIdx.x), at = static_cast<int>(blockIdx.x);
  const bool of_x = at < p.x_tiles;
  unsigned char* const record =
      (of_x ? p.x_records + static_cast<int64_t>(at) * HeadRecord::bytes
            : p.w_records + static_cast<int64_t>(at - p.x_tiles) * HeadRecord::bytes);
  auto* const extra = reinterpret_cast<HeadRecord::Extra*>(record + HeadRecord::extra);
  if (me < head_tile && of_x) {
    const int64_t m = static_cast<int64_t>(at) * head_tile + me;
    const bool counts = m < p.labels.size && p.labels.used(m) && p.labels.valid(m);
    const float c = counts ? static_cast<float>(p.labels.weights[m] * p.labels.per_count()) : 0;
    source[me] = counts ? p.x.data + p.labels.row(m) * p.x.stride : nullptr;
    scale[me] = c;
    extra->label[me] = counts ? p.labels.labels[m] : -1;
    extra->c[me] = c;
  } else if (me < head_tile) {
    const int j = (at - p.x_tiles) * head_tile + me;
    source[me] = j < p.V ? p.weight + j * p.row_step : nullptr;
    scale[me] = 1;
    extra->first[me] = j >= p.V ? never : p.bias ? p.bias[j] : 0;
  }
  __syncthreads();
  const int64_t step = of_x ? 1 : p.column_step;
  const int column = me % head_width, first = me / head_width;
  float values[head_tile / 2];  // all asked for before the first is written
#pragma unroll
  for (int n = 0; n < head_tile / 2; ++n) {
    const float* const from = source[2 * n + first];
    values[n] = from ? __ldg(from + column * step) : 0;
  }
#pragma unroll
  for (int n = 0; n < head_tile / 2; ++n) {
    const int row = 2 * n + first;
    *reinterpret_cast<uint32_t*>(record + HeadRecord::lies(row, column)) = to_tf32(values[n]);
    tile[row][column] = values[n] * scale[row];
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const int q = n * head_pack_threads + me, piece = q % 8, d = q / 8 % head_width, part = q / 1024;
    const int row = part * 32 + piece / 2 * 8 + piece % 2;
    *reinterpret_cast<uint4*>(record + HeadRecord::turned + part * 16384 + d * 128 + ((piece ^ d % 8) << 4)) =
        make_uint4(to_tf32(tile[row][d]), to_tf32(tile[row + 2][d]), to_tf32(tile[row + 4][d]),
                   to_tf32(tile[row + 6][d]));
  }
}

constexpr float head_log2e = 1.4426950408889634f;
constexpr int head_join_threads = 128;
/// 2^x, 2 units in the last place; what is not normal is 0.
__device__ __forceinline__ float exp2_quick(float x) {
#ifdef EIGENTRACE_EMULATE
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

/// What rounding of large logits would lift above 0 is 0; NaN stays.
__device__ __forceinline__ float at_most_0(float x) {
#ifdef EIGENTRACE_EMULATE
  return x > 0 ? 0 : x;
#elif __CUDA_ARCH__ >= 800
  asm("min.NaN.f32 %0, %0, 0f00000000;" : "+f"(x));
  return x;
#endif
}

/// The softmax of some columns of a row: largest value, Σ exp(z − largest), first column of the largest.
struct alignas(16) HeadPart {
  float largest, sum;
  int index, unused;

  __device__ void join(const HeadPart& other) {
    const float top = fmaxf(largest, other.largest);
    // A factor of 1 and not exp(0) keeps −∞ − (−∞) out; a sum that is NaN stays.
    sum = sum * (largest == top ? 1.0f : exp2_quick((largest - top) * head_log2e)) +
          other.sum * (other.largest == top ? 1.0f : exp2_quick((other.largest - top) * head_log2e));
    if (other.largest > largest || (other.largest == largest && other.index < index)) index = other.index;
    largest = top;
  }
};

/// A thread a row of x's tiles.
__global__ void __launch_bounds__(head_join_threads)
    head_join_kernel(const HeadPart* parts, int pieces, int rows, const float* at_label, DeviceLabels labels,
                     int32_t* argmax, double* losses, unsigned char* x_records) {
  const int m = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (m >= rows) return;
  auto* const extra = reinterpret_cast<HeadRecord::Extra*>(
      x_records + static_cast<int64_t>(m / head_tile) * HeadRecord::bytes + HeadRecord::extra);
  const bool exists = m < labels.size, used = exists && labels.used(m);
  float& lse = extra->first[m % head_tile];
  if (!used || !labels.valid(m)) {
    lse = INFINITY;
    if (exists) argmax[m] = -1, losses[m] = used ? NAN : 0;
    return;
  }
  HeadPart all = parts[m];
  for (int i = 1; i < pieces; ++i) all.join(parts[static_cast<int64_t>(i) * rows + m]);
  const double log_sum = log(static_cast<double>(all.sum));
  argmax[m] = all.index < labels.classes ? all.index : 0;
  losses[m] = static_cast<double>(all.largest - at_label[m]) + log_sum;
  lse = static_cast<float>((static_cast<double>(all.largest) + log_sum) * double{head_log2e});
}

enum class HeadMode { statistics, of_x, of_weight, of_weight_and_bias };

/// The rows of `own` against the tiles of `stream`, `length` of them a piece.
struct HeadPass {
  const unsigned char *own, *stream;
  int stream_tiles, length;
  int own_rows;     ///< that exist
  float* products;  ///< [pieces, own_rows, 128]
  float* sums;      ///< [pieces, own_rows]
  HeadPart* parts;  ///< [pieces, rows of the blocks]
  float* at_label;  ///< [rows of the blocks]
  bool biased;      ///< there is a bias
};

template <HeadMode mode>
struct HeadStages {
  static constexpr bool statistics = mode == HeadMode::statistics;
  static constexpr int groups = statistics ? 3 : 2, threads = 128 * (groups + 1),  // and one that fetches
      registers = statistics ? 160 : 240;
  static constexpr int from = statistics ? HeadRecord::rows : 0, bytes = HeadRecord::extra - from,
                       count = statistics ? 6 : 3, rows = HeadRecord::rows - from, extras = count * bytes,
                       barriers = extras + (statistics ? 0 : 4 * groups * int{sizeof(HeadRecord::Extra)}),
                       shared_bytes = barriers + 16 * count + 1024;
};

/// Grid: blocks of 64 rows a group, pieces.
template <HeadMode mode>
__global__ void __launch_bounds__(HeadStages<mode>::threads, 1)
    head_wgmma_kernel([[maybe_unused]] const __grid_constant__ HeadPass p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Stages = HeadStages<mode>;
  unsigned char* const shared =
      dynamic_shared<unsigned char>() +
      (1024 - __cvta_generic_to_shared(dynamic_shared<unsigned char>()) % 1024) % 1024;
  const auto base = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const int warp = __shfl_sync(0xFFFFFFFFu, static_cast<int>(threadIdx.x) / 32, 0);
  const auto full = [&](int stage) { return base + static_cast<uint32_t>(Stages::barriers + 16 * stage); };
  const auto empty = [&](int stage) { return full(stage) + 8; };
  const int begin = static_cast<int>(blockIdx.y) * p.length,
            depth = p.stream_tiles - begin < p.length ? p.stream_tiles - begin : p.length;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Stages::count; ++stage)
      bulk_barrier_init(full(stage)), bulk_barrier_init(empty(stage), 4 * Stages::groups);
    fence_for_async();
  }
  __syncthreads();

  if (warp >= 4 * Stages::groups) {
    fewer_registers<24>();
    if (threadIdx.x == 128 * Stages::groups) {
      const unsigned char* from = p.stream + static_cast<int64_t>(begin) * HeadRecord::bytes + Stages::from;
      int stage = 0, parity = 1;
      for (int it = 0; it < depth; ++it, from += HeadRecord::bytes) {
        const uint32_t to = base + static_cast<uint32_t>(stage * Stages::bytes);
        bulk_wait(empty(stage), parity);
        bulk_copy(to, from, Stages::bytes, full(stage));
        if (++stage == Stages::count) stage = 0, parity ^= 1;
      }
    }
    return;
  }

  more_registers<Stages::registers>();
  // This thread's rows of the block's: low and low + 8 of tile own_tile.
  const int own_tile = static_cast<int>(blockIdx.x) * Stages::groups + warp / 4, low = warp % 4 * 16 + g;
  const int row = own_tile * head_tile + low;
  const unsigned char* const own = p.own + static_cast<int64_t>(own_tile) * HeadRecord::bytes;
  const auto* const own_extra = reinterpret_cast<const HeadRecord::Extra*>(own + HeadRecord::extra);
  uint32_t a[16][4];
#pragma unroll
  for (int k = 0; k < 16; ++k)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      a[k][e] = __ldg(
          reinterpret_cast<const uint32_t*>(own + HeadRecord::lies(low + e % 2 * 8, 8 * k + e / 2 * 4 + t)));
  float first[2];
  int label[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    first[h] = mode == HeadMode::statistics ? 0 : own_extra->first[low + 8 * h];
    label[h] = mode == HeadMode::of_weight || mode == HeadMode::of_weight_and_bias
                   ? row + 8 * h
                   : own_extra->label[low + 8 * h] - begin * head_tile - 2 * t;  // its place from here on
  }
  // Rows of 128 bytes, eight of them 1024 bytes apart, swizzled.
  const auto descriptor = [](uint32_t place) {
    return static_cast<uint64_t>(place >> 4) | uint64_t{1} << 16 | uint64_t{64} << 32 | uint64_t{1} << 62;
  };
  int issued = 0, issued_parity = 0, freed = 0;
  const auto release = [&] {
    __syncwarp();
    if (lane == 0) bulk_arrive(empty(freed));
    freed = freed + 1 == Stages::count ? 0 : freed + 1;
  };
  // What goes with a tile's rows.
  const auto extra_of = [&](int it) {
    return reinterpret_cast<const HeadRecord::Extra*>(
        p.stream + static_cast<int64_t>(begin + it) * HeadRecord::bytes + HeadRecord::extra);
  };
  // z of the next tile; its stage.
  const auto issue = [&](float(&z)[32]) {
    const int stage = issued;
    bulk_wait(full(stage), issued_parity);
    if (++issued == Stages::count) issued = 0, issued_parity ^= 1;
    wgmma_fence();
    const uint64_t right = descriptor(base + static_cast<uint32_t>(stage * Stages::bytes + Stages::rows));
#pragma unroll
    for (int k = 0; k < 16; ++k) wgmma_tf32<64>(z, a[k], right + k / 4 * 512 + k % 4 * 2, k > 0);
    wgmma_commit();
    return stage;
  };

  // Warpgroups take turns with products, and each does the rest of its work beside the others'.
  const int group = warp / 4, turn = 1 + group, next = 1 + (group + 1) % Stages::groups;
  const bool is_last = group + 1 == Stages::groups;
  if (is_last) named_arrive(next, 256);
  const auto hand_over = [&](bool again) {  // again: the first one's turn will come
    if (!is_last || again) named_arrive(next, 256);
  };

  if constexpr (mode == HeadMode::statistics) {
    HeadPart so_far[2][2];  // of even and odd columns: shorter chains
#pragma unroll
    for (int e = 0; e < 4; ++e) so_far[e / 2][e % 2] = {-INFINITY, 0, INT_MAX, 0};
    float at_label[2] = {};
    int column = begin * head_tile + 2 * t;
    float z[32];
#pragma unroll 1
    for (int it = 0; it < depth; ++it) {
      named_sync(turn, 256);
      issue(z);
      hand_over(it + 1 < depth);
      wgmma_wait<0>();
      wgmma_pin(z);
      release();
      if (p.biased || begin + it + 1 == p.stream_tiles) {  // there may be columns that do not exist
#pragma unroll
        for (int c = 0; c < 8; ++c) {
          const float2 bias = __ldg(reinterpret_cast<const float2*>(extra_of(it)->first + 8 * c + 2 * t));
#pragma unroll
          for (int h = 0; h < 2; ++h) z[4 * c + 2 * h] += bias.x, z[4 * c + 2 * h + 1] += bias.y;
        }
      }
      const auto here = [](int place) { return static_cast<unsigned>(place) < unsigned{head_tile}; };
      if (__any_sync(0xFFFFFFFFu, here(label[0]) || here(label[1]))) {
#pragma unroll
        for (int c = 0; c < 8; ++c)
#pragma unroll
          for (int e = 0; e < 4; ++e)
            if (label[e / 2] == 8 * c + e % 2) at_label[e / 2] = z[4 * c + e];
      }
      float before[2][2];
#pragma unroll
      for (int e = 0; e < 4; ++e) before[e / 2][e % 2] = so_far[e / 2][e % 2].largest;
#pragma unroll
      for (int c = 0; c < 8; ++c)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          HeadPart& r = so_far[e / 2][e % 2];
          const float value = z[4 * c + e];
          r.index = value > r.largest ? column + 8 * c + e % 2 : r.index;
          r.largest = value > r.largest ? value : r.largest;
        }
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        HeadPart& r = so_far[e / 2][e % 2];
        r.sum *= exp2_quick((before[e / 2][e % 2] - r.largest) * head_log2e);
#pragma unroll
        for (int c = 0; c < 8; ++c) r.sum += exp2_quick((z[4 * c + e] - r.largest) * head_log2e);
      }
      label[0] -= head_tile, label[1] -= head_tile;
      column += head_tile;
    }
    const int all_rows = static_cast<int>(gridDim.x) * Stages::groups * head_tile;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      HeadPart part = so_far[h][0];
      part.join(so_far[h][1]);
      const int place = label[h] + depth * head_tile;  // as it was before the first tile
      if (place >= 0 && place < depth * head_tile && place % 8 < 2) p.at_label[row + 8 * h] = at_label[h];
#pragma unroll
      for (int lanes = 1; lanes < 4; lanes *= 2)
        part.join({__shfl_xor_sync(0xFFFFFFFFu, part.largest, lanes),
                   __shfl_xor_sync(0xFFFFFFFFu, part.sum, lanes),
                   __shfl_xor_sync(0xFFFFFFFFu, part.index, lanes), 0});
      if (t == 0) p.parts[static_cast<int64_t>(blockIdx.y) * all_rows + row + 8 * h] = part;
    }
  } else {
    float d[64], z[32], sums[2] = {};
    uint32_t left[8][4];
    // Every warp has its own copy of what goes with the rows of a tile, fetched a tile ahead: racecheck does
    // not know that bulk copies are waited for (tests/README.md), so threads read nothing of theirs.
    auto* const extra =
        reinterpret_cast<HeadRecord::Extra*>(shared + Stages::extras) + (warp % (4 * Stages::groups));
    float2 coming{}, coming_c{};
    int2 coming_label{};
    const auto ask = [&](int it) {
      if (it >= depth) return;
      const HeadRecord::Extra* const from = extra_of(it);
      coming = __ldg(reinterpret_cast<const float2*>(from->first + 2 * lane));
      if constexpr (mode != HeadMode::of_x)
        coming_label = __ldg(reinterpret_cast<const int2*>(from->label + 2 * lane));
      if constexpr (mode == HeadMode::of_weight_and_bias)
        coming_c = __ldg(reinterpret_cast<const float2*>(from->c + 2 * lane));
    };
    const auto keep = [&] {
      __syncwarp();  // the tile before has been read
      *reinterpret_cast<float2*>(extra->first + 2 * lane) = coming;
      if constexpr (mode != HeadMode::of_x) *reinterpret_cast<int2*>(extra->label + 2 * lane) = coming_label;
      if constexpr (mode == HeadMode::of_weight_and_bias)
        *reinterpret_cast<float2*>(extra->c + 2 * lane) = coming_c;
      __syncwarp();
    };
    const auto map = [&](int it) {  // z of tile `it` to p
      keep();
      ask(it + 1);
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        [[maybe_unused]] float2 factor{};
        [[maybe_unused]] int2 labels{};
        const float2 of_column = *reinterpret_cast<const float2*>(extra->first + 8 * c + 2 * t);
        if constexpr (mode != HeadMode::of_x) {
          labels = *reinterpret_cast<const int2*>(extra->label + 8 * c + 2 * t);
        }
        if constexpr (mode == HeadMode::of_weight_and_bias)
          factor = *reinterpret_cast<const float2*>(extra->c + 8 * c + 2 * t);
#pragma unroll
        for (int h = 0; h < 2; ++h)
#pragma unroll
          for (int s = 0; s < 2; ++s) {
            const float streamed = s == 0 ? of_column.x : of_column.y;
            const float bias = mode == HeadMode::of_x ? streamed : first[h],
                        lse = mode == HeadMode::of_x ? first[h] : streamed;
            const bool hit =
                mode == HeadMode::of_x ? label[h] == 8 * c + s : label[h] == (s == 0 ? labels.x : labels.y);
            float value = exp2_quick(at_most_0(fmaf(z[4 * c + 2 * h + s] + bias, head_log2e, -lse)));
            if (hit) value -= 1;
            if constexpr (mode == HeadMode::of_weight_and_bias)
              sums[h] = fmaf(value, s == 0 ? factor.x : factor.y, sums[h]);
            left[c][h + 2 * s] = to_tf32(value);
          }
      }
      if constexpr (mode == HeadMode::of_x) label[0] -= head_tile, label[1] -= head_tile;
      wgmma_pin(left);
    };
    const auto multiply = [&](int stage, bool adds) {
      wgmma_fence();
      const uint64_t right =
          descriptor(base + static_cast<uint32_t>(stage * Stages::bytes + HeadRecord::turned));
#pragma unroll
      for (int c = 0; c < 8; ++c)
        wgmma_tf32<128>(d, left[c], right + c / 4 * 1024 + c % 4 * 2, adds || c > 0);
      wgmma_commit();
    };
    ask(0);
    named_sync(turn, 256);
    int stage = issue(z);
    hand_over(depth > 1);
    wgmma_wait<0>();
    wgmma_pin(z);
#pragma unroll 1
    for (int it = 0; it + 1 < depth; ++it) {
      map(it);
      named_sync(turn, 256);
      multiply(stage, it > 0);
      stage = issue(z);
      hand_over(it + 2 < depth);
      wgmma_wait<1>();  // p's product: its tile is free, and so is `left`
      wgmma_pin(left);
      release();
      wgmma_wait<0>();
      wgmma_pin(z);
    }
    map(depth - 1);
    multiply(stage, depth > 1);
    wgmma_wait<0>();
    wgmma_pin(left), wgmma_pin(d);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int i = row + 8 * h;
      if constexpr (mode == HeadMode::of_weight_and_bias) {
#pragma unroll
        for (int lanes = 1; lanes < 4; lanes *= 2) sums[h] += __shfl_xor_sync(0xFFFFFFFFu, sums[h], lanes);
      }
      if (i >= p.own_rows) continue;
      const int64_t at = static_cast<int64_t>(blockIdx.y) * p.own_rows + i;
      const float scale = mode == HeadMode::of_x ? own_extra->c[low + 8 * h] : 1.0f;
      float* const to = p.products + at * head_width + 2 * t;
#pragma unroll
      for (int n = 0; n < 16; ++n)
        *reinterpret_cast<float2*>(to + 8 * n) =
            make_float2(scale * d[4 * n + 2 * h], scale * d[4 * n + 2 * h + 1]);
      if (mode == HeadMode::of_weight_and_bias && t == 0) p.sums[at] = sums[h];
    }
  }
#endif
}

}  // namespace eigentrace::kernels
#endif
