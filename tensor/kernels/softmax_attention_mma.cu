// Softmax attention on tensor cores, the host's side: which instance runs, and dq out of its parts.
#include "tensor/gemm_outer_wgmma.h"
#include "tensor/kernels/softmax_attention_fragments.cuh"
#include "tensor/vec.h"

#ifdef EIGENTRACE_WITH_CUDA
namespace eigentrace::kernels {
namespace {

/// 512 MB; on the emulated GPU so little that the tests' sequences take several launches.
constexpr int64_t most_part_elements = int64_t{1} << (cuda_is_emulated() ? 14 : 27);

struct Instance {
  int N, P;
};
constexpr Instance instances[] = {
    {16, 32}, {32, 32}, {64, 64}, {16, 128}, {128, 128}};  // in the order of cost

constexpr int attention_sum_threads = 256;

/// dq = scale Σ parts of one launch's blocks of keys, in their order; added to dq after the first launch.
/// `across`: blocks an item. Numbers of 32 bits, since six divisions of 64 bits took longer than the bytes.
__global__ void __launch_bounds__(attention_sum_threads)
    attention_sum_kernel(AttentionOperands<float> a, Heads<float> dq, AttentionParts parts, int width,
                         int rows, unsigned across, float factor) {
  constexpr int together = 4;  // reads under way
  const auto T = static_cast<unsigned>(a.size.T), N = static_cast<unsigned>(a.size.N), pieces = (N + 3) / 4;
  const unsigned item = blockIdx.x / across, e = blockIdx.x % across * attention_sum_threads + threadIdx.x,
                 i = e / pieces, column = e % pieces * 4;
  if (i >= T) return;
  const int last = static_cast<int>(i) / rows - parts.first_block;
  if (last < 0) return;
  const int blocks = last + 1 < parts.blocks ? last + 1 : parts.blocks;
  const int64_t step = a.size.B * a.size.H * a.size.T * width;
  const float* from = parts.data + (int64_t{item} * T + i) * width + column;
  float sum[4] = {};
  for (int c = 0; c < blocks; c += together, from += together * step) {
    Vec<float, 4> part[together];
#pragma unroll
    for (int u = 0; u < together; ++u)
      if (c + u < blocks) part[u] = load_vec<4>(from + u * step);
#pragma unroll
    for (int u = 0; u < together; ++u)
#pragma unroll
      for (int k = 0; k < 4; ++k) sum[k] += part[u].x[k];
  }
  const auto H = static_cast<unsigned>(a.size.H);
  float* to = dq.data + item / H * dq.batch + item % H * dq.head + int64_t{i} * dq.time + column;
  if (parts.first_block == 0 && column + 4 <= N && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
    Vec<float, 4> whole;
#pragma unroll
    for (int k = 0; k < 4; ++k) whole.x[k] = factor * sum[k];
    return store_vec(to, whole);
  }
#pragma unroll
  for (int k = 0; k < 4; ++k)
    if (column + static_cast<unsigned>(k) < N)
      to[k] = (parts.first_block > 0 ? to[k] : 0.0f) + factor * sum[k];
}

}  // namespace

AttentionPlan attention_plan(const Context& ctx, const Tensor& q, const Tensor& v, double scale) {
  const Precision precision = ctx.attention_precision.value_or(ctx.precision);
  const int64_t T = q.dim(1);
  if (precision == Precision::fp32 || q.dtype() != DType::f32 || !(scale > 0) || T >= int64_t{1} << 30)
    return {};
  int limit = 0;
  ET_CUDA(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, ctx.device().index));
  for (const Instance& x : instances) {
    const AttentionShape forward = attention_forward_shape(precision, x.N, x.P),
                         backward = attention_backward_shape(precision, x.N, x.P);
    const size_t bytes = std::max(attention_forward_bytes(forward, precision, x.N, x.P),
                                  attention_backward_bytes(backward, precision, x.N, x.P));
    if (q.dim(3) > x.N || v.dim(3) > x.P || bytes > static_cast<size_t>(limit)) continue;
    const bool wgmma = precision == Precision::bf16 && attention_wgmma_has(x.N, x.P) && wgmma_exists(ctx);
    const int rows = wgmma ? 64 * attention_wgmma_groups(x.N, x.P) : backward.rows();
    const int64_t part = std::max<int64_t>(q.dim(0) * q.dim(2) * T * x.N, 1);
    return {precision,
            x.N,
            x.P,
            rows,
            std::clamp<int64_t>(most_part_elements / part, 1, std::max<int64_t>((T + rows - 1) / rows, 1)),
            wgmma};
  }
  return {};
}

namespace {
int64_t pack_elements(const AttentionPlan& plan, int64_t items, int64_t T) {
  const int64_t tiles = (T + attention_wgmma_queries - 1) / attention_wgmma_queries;
  return plan.wgmma ? items * tiles * (attention_pack_bytes(plan.N, plan.P) / 4) : 0;
}
}  // namespace

int64_t attention_backward_elements(const AttentionPlan& plan, const Tensor& q, bool wants_q) {
  const int64_t items = q.dim(0) * q.dim(2), T = q.dim(1);
  return pack_elements(plan, items, T) + (wants_q ? plan.key_blocks * items * T * plan.N : 0);
}

void attention_tensor_cores(const Context& ctx, const AttentionPlan& plan,
                            const AttentionOperands<float>& a) {
  if (plan.precision == Precision::bf16) return attention_mma<AttentionBf16>(ctx, plan, a);
  if (plan.precision == Precision::tf32) return attention_mma<AttentionTf32>(ctx, plan, a);
  attention_mma<AttentionTf32x3>(ctx, plan, a);
}

void attention_tensor_cores_backward(const Context& ctx, const AttentionPlan& plan,
                                     const AttentionOperands<float>& a, const AttentionGradients<float>& g,
                                     float* memory) {
  const int64_t blocks = (a.size.T + plan.rows - 1) / plan.rows;
  const unsigned across = blocks_for(a.size.T * ((a.size.N + 3) / 4), attention_sum_threads);
  const float factor = a.drops ? a.scale * static_cast<float>(a.mask.keep_scale) : a.scale;
  if (plan.wgmma) attention_pack(ctx, plan, a, g, memory);
  float* const data = memory + pack_elements(plan, a.size.B * a.size.H, a.size.T);
  for (int64_t first = 0; first < blocks; first += plan.key_blocks) {
    const AttentionParts parts{data, static_cast<int>(first),
                               static_cast<int>(std::min(plan.key_blocks, blocks - first))};
    if (plan.wgmma)
      attention_wgmma_backward(ctx, plan, a, g, parts, memory);
    else if (plan.precision == Precision::bf16)
      attention_mma_backward<AttentionBf16>(ctx, plan, a, g, parts);
    else if (plan.precision == Precision::tf32)
      attention_mma_backward<AttentionTf32>(ctx, plan, a, g, parts);
    else
      attention_mma_backward<AttentionTf32x3>(ctx, plan, a, g, parts);
    if (g.wants_q)
      launch(ctx, attention_sum_kernel, static_cast<unsigned>(a.size.B * a.size.H) * across,
             attention_sum_threads, 0, a, g.dq, parts, plan.N, plan.rows, across, factor);
  }
}

}  // namespace eigentrace::kernels
#endif
