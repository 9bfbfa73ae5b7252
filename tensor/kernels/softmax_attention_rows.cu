// y of softmax attention at a loss's labelled rows, and the gradients of q, k and v from dy of these rows
// alone: what softmax_attention_backward gives for a dy that is zero in all others.
//
// In general y is gathered, and dy is spread among rows of zeros. Where the wgmma kernels run on heads 128
// wide (softmax_attention_picks.cuh), tiles of queries are made of each sequence's labelled rows instead, in
// both passes: the other queries are not read, and dq is zero there. A row's y and lse have the bits of a
// pass over all queries. How many rows a sequence has is known on the device alone, which counts first
// (AttentionPicks::spans).
//
// MQAR (64, 512, 128, 128; 64 labels a sequence): forward, k and v are read once, 38 MB, a floor of 9 µs on
// an H200; backward, they are read and dq, dk, dv written once, 84 MB, 20 µs.
#include "tensor/dispatch.h"
#include "tensor/kernels.h"
#include "tensor/kernels/labelled_rows.cuh"
#include "tensor/kernels/softmax_attention_cuda.cuh"
#include "tensor/labelled_rows.h"

namespace eigentrace::kernels {
namespace {

Tensor as_rows(const Tensor& x) {
  const int64_t rows = x.dim(0) * x.dim(1);
  return x.reshape({rows, rows == 0 ? 0 : x.numel() / rows});
}

void check(const Tensor& v, const Tensor& of_rows, const LabelledRows& labelled, const char* what) {
  check_labelled(what, labelled);
  const bool good = v.rank() == 4 && of_rows.rank() == 4 && of_rows.dtype() == v.dtype() &&
                    of_rows.shape() == Shape{1, labelled.labels.numel(), v.dim(2), v.dim(3)};
  if (!good)
    fail(std::string(what) + ": v [B, T, H, P] and [1, M, H, P] of labelled rows expected, found " +
         to_string(v) + ", " + to_string(of_rows));
}

#ifdef EIGENTRACE_WITH_CUDA
constexpr int queries = attention_wgmma_queries, row_warps = 8;
/// Of dq's parts: 512 MB.
constexpr int64_t most_part_elements = int64_t{1} << 27;

/// A warp a label, and one more: of the boundaries b T + 64 c between the label before and this one, that as
/// many labels lie before them; its row of y and lse, if there is a y; zeros where it does not count.
template <int width>
__global__ void attended_rows_kernel(Rows<float> y, const float* lse, DeviceLabels labels, float* gathered,
                                     float* gathered_lse, int64_t heads, int length, int pieces, int* spans) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t m = static_cast<int64_t>(blockIdx.x) * row_warps + threadIdx.x / 32, all = labels.row_count;
  if (m > labels.size) return;
  const auto row_of = [&](int64_t i) {  // −1 before all of them, `all` behind
    if (i < 0) return int64_t{-1};
    if (i >= labels.size || !labels.used(i)) return all;
    const int64_t row = labels.row(i);
    return row < 0 ? 0 : row < all ? row : all - 1;
  };
  const auto boundaries_to = [&](int64_t row) { return row / length * pieces + row % length / queries + 1; };
  const int64_t before = row_of(m - 1), own = row_of(m), begin = before < 0 ? 0 : boundaries_to(before),
                end = before < all ? boundaries_to(own) : begin;
  for (int64_t i = begin + lane; i < end; i += 32) spans[i] = static_cast<int>(m);
  if (m == labels.size) return;
  const bool counts = labels.used(m) && labels.valid(m);
  if (counts && !y.data) return;
  for (int64_t j = lane * width; j < y.cols; j += 32 * width) {
    Vec<float, width> pack;
    if (counts) pack = load_vec<width>(y.data + labels.row(m) * y.stride + j);
    store_vec(gathered + m * y.cols + j, pack);
  }
  for (int64_t h = lane; h < heads; h += 32)
    gathered_lse[m * heads + h] = counts ? lse[labels.row(m) * heads + h] : 0.0f;
}

/// dq = scale Σ parts of the blocks of `keys` keys, in their order, at picked rows. A warp: a row of a head.
template <bool vectors>
__global__ void __launch_bounds__(32 * row_warps)
    attention_sum_picks_kernel(AttentionOperands<float> a, Heads<float> dq, AttentionParts parts, int width,
                               int keys, AttentionPicks picks) {
  constexpr int together = 4;  // reads under way
  const int length = static_cast<int>(a.size.T), heads = static_cast<int>(a.size.H),
            N = static_cast<int>(a.size.N), lane = static_cast<int>(threadIdx.x) % 32;
  const int index = static_cast<int>(blockIdx.x) * row_warps + static_cast<int>(threadIdx.x) / 32,
            m = index / heads, h = index % heads;
  if (m >= picks.size || m >= picks.before(static_cast<int>(a.size.B), 0)) return;
  const int row = picks.rows ? picks.rows[m] : m, b = row / length, i = row % length;
  if (row < 0 || b >= a.size.B) return;
  const int begin = picks.before(b, 0), blocks = i / keys + 1;
  if (m < begin) return;  // rows that do not ascend
  const int64_t step = int64_t{heads} * picks.capacity * queries * width;
  const float* const from =
      parts.data + ((int64_t{h} * picks.capacity + begin / queries + b) * queries + m - begin) * width;
  float* const to = dq.row(b, h, i);
  for (int column = lane * 4; column < N; column += 128) {
    Vec<float, 4> sum;
    for (int c = 0; c < blocks; c += together) {
      Vec<float, 4> part[together];
#pragma unroll
      for (int u = 0; u < together; ++u)
        if (c + u < blocks) part[u] = load_vec<4>(from + (c + u) * step + column);
#pragma unroll
      for (int u = 0; u < together; ++u)
#pragma unroll
        for (int e = 0; e < 4; ++e) sum.x[e] += part[u].x[e];
    }
#pragma unroll
    for (float& x : sum.x) x *= a.scale;
    if constexpr (vectors)
      store_vec(to + column, sum);
    else
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (column + e < N) to[column + e] = sum.x[e];
  }
}

struct Sizes {
  int64_t capacity, packs, parts;  // tiles of a head; elements
};
Sizes sizes_of(const AttentionPlan& plan, const Tensor& q, int64_t labels) {
  const int64_t capacity = labels / queries + q.dim(0), H = q.dim(2),
                blocks = (q.dim(1) + plan.rows - 1) / plan.rows;
  return {capacity, H * capacity * attention_pack_bytes(plan.N, plan.P, true) / 4,
          H * capacity * queries * plan.N * blocks};
}

AttentionPlan picks_plan(const Context& ctx, const Tensor& q, const Tensor& v, double scale, double dropout,
                         int64_t labels) {
  if (!ctx.device().is_cuda() || dropout > 0 || q.dtype() != DType::f32 || q.numel() == 0 || labels == 0 ||
      q.dim(0) * q.dim(1) >= int64_t{1} << 30)
    return {};
  const AttentionPlan plan = attention_plan(ctx, q, v, scale);
  return attention_picks_exist(plan) && sizes_of(plan, q, labels).parts <= most_part_elements
             ? plan
             : AttentionPlan{};
}

AttentionOperands<float> operands(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& y,
                                  const Tensor& lse, double scale) {
  return {{q.dim(0), q.dim(1), q.dim(2), q.dim(3), v.dim(3)},
          heads_of<float>(q, "attended_rows: q"),
          heads_of<float>(k, "attended_rows: k"),
          heads_of<float>(v, "attended_rows: v"),
          heads_of<float>(y, "attended_rows: y"),
          lse.data<float>(),
          static_cast<float>(scale),
          {},
          false};
}
AttentionPicks picks_of(const LabelledRows& labelled, const Tensor& spans, const Tensor& q) {
  return {labelled.rows.defined() ? labelled.rows.data<int32_t>() : nullptr, spans.data<int32_t>(),
          static_cast<int>(labelled.labels.numel()), static_cast<int>((q.dim(1) + queries - 1) / queries),
          static_cast<int>(labelled.labels.numel() / queries + q.dim(0))};
}
#endif

}  // namespace

bool attends_rows_alone(const Context& ctx, const Tensor& q, const Tensor& v, double scale, double dropout,
                        int64_t labels) {
#ifdef EIGENTRACE_WITH_CUDA
  return picks_plan(ctx, q, v, scale, dropout, labels).exists();
#else
  return false;
#endif
}

AttendedRows attended_rows(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, double scale,
                           double dropout, const Tensor& y, const Tensor& lse, const LabelledRows& labelled,
                           Tensor& rows) {
  check(v, rows, labelled, "attended_rows");
  const int64_t M = labelled.labels.numel();
  if (!attends_rows_alone(ctx, q, v, scale, dropout, M)) {
    Tensor to = as_rows(rows);
    gather_labelled(ctx, as_rows(y), labelled, to);
    return {y, lse, {}};
  }
  AttendedRows kept{rows, {}, {}};
#ifdef EIGENTRACE_WITH_CUDA
  const int64_t B = q.dim(0), T = q.dim(1), H = q.dim(2), pieces = (T + queries - 1) / queries;
  kept.lse = ctx.empty({M, H}, DType::f32), kept.spans = ctx.empty({B * pieces + 1}, DType::i32);
  if (ctx.dry()) return kept;
  Rows<float> from{nullptr, B * T, H * v.dim(3), 0};
  if (y.defined()) from = rows_of<float>(as_rows(y), "attended_rows: y");
  float *const to = rows.data<float>(), *const row_lse = kept.lse.data<float>();
  const bool in_fours = from.cols % 4 == 0 && aligned_for_vec(to) && (!y.defined() || in_packs(from));
  launch(ctx, in_fours ? attended_rows_kernel<4> : attended_rows_kernel<1>, blocks_for(M + 1, row_warps),
         32 * row_warps, 0, from, y.defined() ? lse.data<float>() : nullptr,
         DeviceLabels(labelled, from.rows, INT32_MAX), to, row_lse, H, static_cast<int>(T),
         static_cast<int>(pieces), kept.spans.data<int32_t>());
  if (!y.defined())
    attention_tensor_cores_picks(ctx, operands(q, k, v, rows, kept.lse, scale),
                                 picks_of(labelled, kept.spans, q));
#endif
  return kept;
}

void attended_rows_backward(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                            const AttendedRows& kept, const Tensor& dy, const LabelledRows& labelled,
                            double scale, double dropout, uint32_t op, Tensor& dq, Tensor& dk, Tensor& dv) {
  check(v, dy, labelled, "attended_rows_backward");
#ifdef EIGENTRACE_WITH_CUDA
  if (kept.spans.defined()) {
    const AttentionPlan plan = picks_plan(ctx, q, v, scale, dropout, labelled.labels.numel());
    const Sizes sizes = sizes_of(plan, q, labelled.labels.numel());
    const Tensor packs = ctx.empty({sizes.packs}, DType::f32),
                 sums = ctx.empty({dq.defined() ? sizes.parts : 0}, DType::f32);
    if (ctx.dry()) return;
    const auto out = [](const Tensor& x, const char* what) {
      return x.defined() ? heads_of<float>(x, what) : Heads<float>{};
    };
    const AttentionOperands<float> a = operands(q, k, v, kept.y, kept.lse, scale);
    const AttentionGradients<float> g{heads_of<float>(dy, "attended_rows: dy"),
                                      out(dq, "attended_rows: dq"),
                                      out(dk, "attended_rows: dk"),
                                      out(dv, "attended_rows: dv"),
                                      dq.defined(),
                                      dk.defined(),
                                      dv.defined(),
                                      nullptr};
    const AttentionPicks picks = picks_of(labelled, kept.spans, q);
    const AttentionParts parts{dq.defined() ? sums.data<float>() : nullptr, 0,
                               static_cast<int>((a.size.T + plan.rows - 1) / plan.rows)};
    attention_pack_picks(ctx, a, g, picks, packs.data<float>());
    attention_wgmma_backward_picks(ctx, a, g, parts, picks, packs.data<float>());
    if (!dq.defined()) return;
    const bool vectors =
        aligned_for_vec(g.dq.data) && (g.dq.batch % 4 | g.dq.time % 4 | g.dq.head % 4 | a.size.N % 4) == 0;
    return launch(ctx, vectors ? attention_sum_picks_kernel<true> : attention_sum_picks_kernel<false>,
                  blocks_for(picks.size * a.size.H, row_warps), 32 * row_warps, 0, a, g.dq, parts, plan.N,
                  plan.rows, picks);
  }
#endif
  Tensor all = ctx.empty(kept.y.shape(), kept.y.dtype()), to = as_rows(all);
  scatter_labelled(ctx, {}, as_rows(dy), labelled, to);
  softmax_attention_backward(ctx, q, k, v, kept.y, kept.lse, all, scale, dropout, op, dq, dk, dv);
}

}  // namespace eigentrace::kernels
