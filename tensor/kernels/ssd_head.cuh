#pragma once
// What a block of ssd_gradients.cuh has in shared memory of its heads: factors, sums, and where the rest
// lies.
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/kernels/ssd_tiles.cuh"

namespace eigentrace::kernels {
namespace {

/// What a head leaves for one warp to add up while the next head is worked on.
struct HeadSums {
  double ends[2][ssd_chunk], starts[4][ssd_chunk];   // of D A G off the diagonal: w_j times it over rows of
                                                     // column parts; over columns of row tiles
  double passed[8], skipped[4];                      // ⟨S, R⟩ a warp; Σ G_ii a row tile
  float diagonal[ssd_chunk];                         // A_ii G_ii
  float from_state[ssd_chunk], to_state[ssd_chunk];  // q_i·(S's part of dq_i), k_j·(R's part of dk_j)
};

/// Factors of a head's steps, copied as they lie in memory.
struct HeadSteps {
  float2 sum[ssd_chunk];
  float weight[ssd_chunk], fade[ssd_chunk], to_end[ssd_chunk], decay, unused[3];

  /// Threads 0 to 80 ask for what has factors; 0 to 63 put what has none.
  __device__ __forceinline__ void issue(const SsdPass& s, int64_t item, int i) {
    const int64_t at = item * ssd_chunk;
    if (i < 32)
      copy_async_16(sum + 2 * i, s.f.sum + at + 2 * i);
    else if (i < 48)
      copy_async_16(weight + 4 * (i - 32), s.f.weight + at + 4 * (i - 32));
    else if (i < 64)
      copy_async_16(fade + 4 * (i - 48), s.f.fade + at + 4 * (i - 48));
    else if (i < 80)
      copy_async_16(to_end + 4 * (i - 64), s.f.to_end + at + 4 * (i - 64));
    else if (i == 80)
      copy_async_4(&decay, s.f.decay + item, true);
  }
  __device__ __forceinline__ void put_ones(int i) {
    if (i < ssd_chunk) sum[i] = {0, 0}, weight[i] = fade[i] = to_end[i] = 1;
    if (i == 0) decay = 1;
  }
  /// exp(A_i − A_j)
  __device__ __forceinline__ float between(int i, int j) const {
    const float2 own = sum[i], other = sum[j];
    return exp2f((own.x - other.x) + (own.y - other.y));
  }
};

/// Shared memory of a block: sums and factors of as many heads as are under way, q and k, one or two
/// M, and `stages` slices of dy, v, S, R. W goes where M of the head
/// before was, or to a slice that has been used.
template <int Np, int slice, int stages, bool grouped>
struct GradientPlan {
  static constexpr int warps = 8, threads = 32 * warps, ld = Np;
  static constexpr int heads = grouped ? 2 : 1, ring = grouped ? stages + 2 : 1;
  static constexpr int pairs = ssd_chunk * ssd_chunk;
  static constexpr int v_at = ssd_chunk * slice, before_at = 2 * v_at, after_at = before_at + Np * slice,
                       stage = after_at + Np * slice;
  static constexpr int k_at = ssd_chunk * ld, m_at = k_at + ssd_chunk * ld, stages_at = m_at + heads * pairs;
  static constexpr int floats = stages_at + stages * stage;
  static_assert(stage >= pairs);

  struct Shared {
    HeadSums sums[heads];
    HeadSteps steps[ring];
    float row[ssd_chunk], deta[ssd_chunk], delta[2][ssd_chunk];
  };
  static constexpr size_t bytes = sizeof(Shared) + sizeof(float) * floats;
};

/// dlog_a_t = Σ_{i≥t} (ends − starts + from state) + Σ_{j<t} to state + passed, by one warp.
__device__ __forceinline__ void assemble_flow(const HeadSums& f, const HeadSteps& steps, const SsdPass& s,
                                              int part_width, int warps, int b, int h, int c, int n) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  double net[2], passed[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int i = 2 * lane + e;
    double ends = 0, starts = 0;
    for (int part = 0; part * part_width <= i / 16 * 16; ++part) ends += f.ends[part][i];
    for (int tile = i / 16; tile < 4; ++tile) starts += f.starts[tile][i];
    const auto weight = static_cast<double>(steps.weight[i]);
    net[e] = i < n ? ends - weight * starts + static_cast<double>(f.from_state[i]) : 0;
    passed[e] = i < n ? weight * static_cast<double>(f.to_state[i]) : 0;
  }
  double over = 0;
  for (int w = 0; w < warps; ++w) over += f.passed[w];
  store_flow(s, net, passed, static_cast<double>(steps.decay) * over, b, h, c, n);
}

}  // namespace
}  // namespace eigentrace::kernels
#endif
