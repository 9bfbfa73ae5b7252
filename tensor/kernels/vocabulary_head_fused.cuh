#pragma once
// The vocabulary head on tensor cores in three passes over the logits. Equations: vocabulary_head.cu.
//   z = x Wᵀ + b, written; each tile leaves (max, Σ exp(z − max), argmax) of its 128 columns of a row
//   a warp a row joins these: loss, argmax, and what dz is a function of: max, w / (count Σ), w / count,
//   label dx = dz W and dW = dzᵀ x, db = Σ dz read z and make dz = w/(count Σ) exp(z − max) − w/count onehot
//   on the way into shared memory: dz is never written, and no product needs a softmax before it.
// 4096 labels, V 8192, D 128: z is 134 MB and passes memory three times, 403 MB: 0.10 ms at 4.2 TB/s; three
// products of 8.6 GFLOP, 0.11 ms at 230 TFLOP/s.
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/gemm_tensor_cores.cuh"
#include "tensor/kernels/head_blocks.h"
#include "tensor/kernels/labelled_rows.cuh"

namespace eigentrace::kernels {
namespace {

/// The softmax of some columns of a row: largest value, Σ exp(z − largest), first column of the largest.
struct alignas(16) RowPart {
  float largest, sum;
  int index, unused;

  __device__ void join(const RowPart& other) {
    const float top = fmaxf(largest, other.largest);
    // A factor of 1 and not exp(0) keeps −∞ − (−∞) out; a sum that is NaN stays.
    sum = sum * (largest == top ? 1.0f : fast_exp(largest - top)) +
          other.sum * (other.largest == top ? 1.0f : fast_exp(other.largest - top));
    if (other.largest > largest || (other.largest == largest && other.index < index)) index = other.index;
    largest = top;
  }
};
/// What dz of a row is a function of. A row that does not count: largest = ∞, factor = c = 0.
struct alignas(16) RowGradient {
  float largest, factor, c;
  int label;
};

/// z = d + bias, stored if z is not null, and the parts of the softmax; block (tile, rows).
struct HeadLogits {
  float* z;
  int64_t ld;
  const float* bias;
  const int32_t* labels;  ///< of the block of rows
  RowPart* parts;         ///< [rows, tiles]
  float* at_label;        ///< [rows]
  __device__ void operator()(float (&d)[4][4][4], int row, int column, const TcProduct& p,
                             float* shared) const {
    auto* warps = reinterpret_cast<RowPart*>(shared);  // [4][tile]
    const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
    const int i0 = static_cast<int>(blockIdx.y) * tc_tile, tiles = static_cast<int>(gridDim.x);
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int i = row + 16 * m + 8 * half + lane / 4;
        const int label = i < p.M ? labels[i] : -1;
        Largest<float> best{-INFINITY, INT_MAX};
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
          for (int side = 0; side < 2; ++side) {
            const int j = column + 8 * n + lane % 4 * 2 + side;
            float& value = d[m][n][2 * half + side];
            if (bias && j < p.N) value += bias[j];
            if (j < p.N) best.join({value, j});
            if (j == label && j < p.N) at_label[i] = value;
          }
#pragma unroll
        for (int step = 1; step < 4; step *= 2)
          best.join({__shfl_xor_sync(0xFFFFFFFFu, best.value, step),
                     __shfl_xor_sync(0xFFFFFFFFu, best.index, step)});
        float sum = 0;
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
          for (int side = 0; side < 2; ++side)
            if (column + 8 * n + lane % 4 * 2 + side < p.N)
              sum += fast_exp(d[m][n][2 * half + side] - best.value);
#pragma unroll
        for (int step = 1; step < 4; step *= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, step);
        if (lane % 4 == 0) warps[warp % 4 * tc_tile + i - i0] = {best.value, sum, best.index, 0};
      }
    if (z)
      tc_visit(d, row, column,
               [&](int i, int j, float x, float y) {  // ld is even and at least N + 1 if N is odd
                 if (i < p.M && j < p.N) *reinterpret_cast<float2*>(z + i * ld + j) = make_float2(x, y);
               });
    __syncthreads();
    const int i = static_cast<int>(threadIdx.x);
    if (i >= tc_tile || i0 + i >= p.M) return;
    RowPart all = warps[i];
    for (int w = 1; w < 4; ++w) all.join(warps[w * tc_tile + i]);
    parts[static_cast<int64_t>(i0 + i) * tiles + blockIdx.x] = all;
  }
};

/// A warp a row: the parts joined, each lane's in order, then lanes.
template <class T>
__global__ void __launch_bounds__(row_threads)
    join_parts_kernel(const RowPart* parts, int tiles, const T* at_label, DeviceLabels labels, int64_t first,
                      int rows, int32_t* argmax, double* losses, RowGradient* gradients) {
  const int r = static_cast<int>(blockIdx.x) * (row_threads / 32) + static_cast<int>(threadIdx.x / 32);
  if (r >= rows) return;
  const int64_t m = first + r;
  const int lane = static_cast<int>(threadIdx.x % 32);
  RowPart all{-INFINITY, 0, INT_MAX, 0};
  for (int t = lane; t < tiles; t += 32) all.join(parts[static_cast<int64_t>(r) * tiles + t]);
  for (int step = 1; step < 32; step *= 2)
    all.join({__shfl_xor_sync(0xFFFFFFFFu, all.largest, step), __shfl_xor_sync(0xFFFFFFFFu, all.sum, step),
              __shfl_xor_sync(0xFFFFFFFFu, all.index, step), 0});
  if (lane > 0) return;
  const bool used = labels.used(m);
  if (!used || !labels.valid(m)) {
    argmax[m] = -1, losses[m] = used ? NAN : 0;
    gradients[r] = {INFINITY, 0, 0, -1};
    return;
  }
  const double sum = all.sum, weight = labels.weights[m] * labels.per_count();
  argmax[m] = all.index == INT_MAX ? 0 : all.index;
  losses[m] = static_cast<double>(all.largest - at_label[r]) + log(sum);
  gradients[r] = {all.largest, static_cast<float>(weight / sum), static_cast<float>(weight),
                  labels.labels[m]};
}

/// Logits as they are read → dz.
template <int Parts>
struct LogitsToGradient {
  static constexpr bool changes = true;
  const RowGradient* rows;
  int count, columns;
  __device__ void operator()(float (&values)[4], int row, int column) const {
    const RowGradient g = row < count ? rows[row] : RowGradient{INFINITY, 0, 0, -1};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float shifted = values[i] - g.largest, e = Parts == 1 ? __expf(shifted) : fast_exp(shifted);
      const float dz = g.factor * e - (column + i == g.label ? g.c : 0.0f);
      values[i] = column + i < columns ? dz : 0.0f;
    }
  }
};

/// Memory of the fused head's blocks.
struct FusedScratch {
  int64_t rows;  ///< of a block
  Tensor losses, gathered, logits, parts, at_label, gradients, products;
};

template <int Parts>
void fused_head_body(Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias,
                     const LabelledRows& labelled, LossResults results, FusedScratch& scratch, Tensor& dx,
                     Tensor& dweight, Tensor& dbias) {
  const Rows<float> in = rows_of<float>(x, "vocabulary_head: x");
  const Matrix<const float> w = matrix_of<float>(weight, "vocabulary_head: weight");
  const int64_t V = weight.dim(0), D = weight.dim(1), M = labelled.labels.numel();
  const int64_t ld = scratch.logits.dim(1);
  const DeviceLabels labels(labelled, in.rows, V);
  float* z = scratch.logits.data<float>();
  const Matrix<const float> gathered = gathered_rows(ctx, in, labels, scratch.gathered);
  float* products = scratch.products.data<float>();
  auto* parts = reinterpret_cast<RowPart*>(scratch.parts.data<float>());
  auto* gradients = reinterpret_cast<RowGradient*>(scratch.gradients.data<float>());
  const bool wants_gradient = dx.defined() || dweight.defined() || dbias.defined();
  for (int64_t first = 0; first < M; first += scratch.rows) {
    const int64_t rows = std::min(scratch.rows, M - first);
    const Matrix<const float> x_block = gathered.at(first, 0), z_block{z, ld};
    const HeadLogits finish{
        wants_gradient ? z : nullptr, ld,    bias.defined() ? bias.data<float>() : nullptr,
        labels.labels + first,        parts, scratch.at_label.data<float>()};
    const TcProduct forward = tc_product({rows, V, D, x_block, w.t(), Matrix<float>{z, ld}}, tc_round_up(D));
    tc_launch<Parts>(ctx, forward, true, !w.transposed, 1, AsRead{}, finish, nullptr);
    launch(ctx, join_parts_kernel<float>, blocks_for(rows, row_threads / 32), row_threads, 0, parts,
           static_cast<int>(blocks_for(V, tc_tile)), scratch.at_label.data<float>(), labels, first,
           static_cast<int>(rows), results.argmax.data<int32_t>(), scratch.losses.data<double>(), gradients);
    const LogitsToGradient<Parts> change{gradients, static_cast<int>(rows), static_cast<int>(V)};
    if (dx.defined())
      tc_long<Parts>(ctx, {rows, D, V, z_block, w, Matrix<float>{dx.data<float>() + first * D, D}}, change,
                     nullptr, 0, false, products);
    if (dweight.defined() || dbias.defined()) {
      const Matrix<float> dw = dweight.defined() ? matrix_of<float>(dweight, "vocabulary_head: dweight")
                                                 : Matrix<float>{nullptr, D};
      tc_long<Parts>(ctx, {V, D, rows, z_block.t(), x_block, dw}, change,
                     dbias.defined() ? dbias.data<float>() : nullptr, dbias.defined() ? dbias.stride(0) : 0,
                     first > 0, products);
    }
  }
  sum_losses_cuda<float>(ctx, labels, scratch.losses.data<double>(), results);
}

/// True iff the fused head takes these sizes in the context's precision. Only where cuBLASLt has no product:
/// under TF32 its products and a softmax of their own took 0.23 ms on an H200 (4096 labels, V 8192, D 128),
/// this head 0.34 ms.
inline bool takes_fused_head(const Context& ctx, const Tensor& x, const Tensor& weight,
                             const LabelledRows& labelled) {
  constexpr int64_t most = 65535 * int64_t{tc_tile};
  return ctx.precision == Precision::tf32x3 && x.dtype() == DType::f32 && labelled.labels.numel() > 0 &&
         labelled.labels.numel() < most && weight.dim(0) > 0 && weight.dim(0) < most && weight.dim(1) > 0;
}

inline void fused_head(Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias,
                       const LabelledRows& labelled, LossResults results, Tensor& dx, Tensor& dweight,
                       Tensor& dbias) {
  const int64_t V = weight.dim(0), D = weight.dim(1), M = labelled.labels.numel(), ld = (V + 7) / 8 * 8;
  const int64_t rows = std::min(std::max<int64_t>(head_block_bytes / (ld * 4) / tc_tile, 1) * tc_tile, M);
  const bool wants_weight = dweight.defined() || dbias.defined(),
             wants_gradient = wants_weight || dx.defined();
  int64_t products = 0;
  for (const int64_t r : {rows, M % rows}) {
    if (r > 0 && dx.defined()) products = std::max(products, tc_long_scratch(r, D, V, false));
    if (r > 0 && wants_weight) products = std::max(products, tc_long_scratch(V, D, r, dbias.defined()));
  }
  FusedScratch scratch{.rows = rows,
                       .losses = ctx.empty({M}, DType::f64),
                       .gathered = ctx.empty({labelled.rows.defined() ? M : 0, D}, DType::f32),
                       .logits = ctx.empty({wants_gradient ? rows : 0, ld}, DType::f32),
                       .parts = ctx.empty({rows, (V + tc_tile - 1) / tc_tile, 4}, DType::f32),
                       .at_label = ctx.empty({rows}, DType::f32),
                       .gradients = ctx.empty({rows, 4}, DType::f32),
                       .products = ctx.empty({products}, DType::f32)};
  if (ctx.dry()) return;
  if (ctx.precision == Precision::tf32x3)
    fused_head_body<3>(ctx, x, weight, bias, labelled, results, scratch, dx, dweight, dbias);
  else
    fused_head_body<1>(ctx, x, weight, bias, labelled, results, scratch, dx, dweight, dbias);
}

}  // namespace
}  // namespace eigentrace::kernels
#endif
