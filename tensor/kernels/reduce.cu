// y[o, i] = Σ_r x[o, r, i], the sum over one axis, in a fixed order: blocks of r whose size depends on the
// shape only, each summed on its own, then the blocks' sums in order.
#include <algorithm>

#include "tensor/column_sums.h"
#include "tensor/dispatch.h"
#include "tensor/float32_copies.h"
#include "tensor/kernels.h"

namespace eigentrace::kernels {
namespace {

struct Plan {
  int64_t outer, reduced, inner, block, blocks;
};

Plan plan_of(int64_t outer, int64_t reduced, int64_t inner) {
  // Enough outer rows keep all threads busy; else at most 64 blocks of at least 16 Ki elements.
  int64_t block = std::max<int64_t>(reduced, 1);
  if (outer < 64) block = std::max((reduced + 63) / 64, 16384 / std::max<int64_t>(inner, 1) + 1);
  return {outer, reduced, inner, block, std::max<int64_t>((reduced + block - 1) / block, 1)};
}

/// partial[o, k, i] = Σ over block k.
template <class T>
void sum_blocks_cpu(const T* x, T* partial, const Plan& plan) {
  const int64_t inner = plan.inner;
  constexpr int64_t strip = 512;  // columns whose running sums stay in the first-level cache
  const int64_t strips = (inner + strip - 1) / strip;
  parallel_rows(plan.outer * plan.blocks * strips, [&](int64_t item) {
    const int64_t ok = item / strips, column = item % strips * strip;
    const int64_t n = std::min(strip, inner - column);
    const int64_t begin = ok % plan.blocks * plan.block, end = std::min(begin + plan.block, plan.reduced);
    const T* from = x + (ok / plan.blocks * plan.reduced) * inner;
    T* to = partial + ok * inner + column;
    if (inner == 1) {
      T total = 0;
#pragma omp simd reduction(+ : total)
      for (int64_t r = begin; r < end; ++r) total += from[r];
      *to = total;
      return;
    }
    T sums[strip] = {};
    for (int64_t r = begin; r < end; ++r) {
      const T* row = from + r * inner + column;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) sums[i] += row[i];
    }
    std::copy(sums, sums + n, to);
  });
}

#ifdef EIGENTRACE_WITH_CUDA
template <class T>
struct SumFew {  // a thread a sum
  const T* x;
  T* y;
  int64_t reduced, inner;
  ET_HD void operator()(int64_t at) const {
    const T* from = x + at / inner * reduced * inner + at % inner;
    T total = 0;
    for (int64_t r = 0; r < reduced; ++r) total += from[r * inner];
    y[at] = total;
  }
};

void sum_cuda(Context& ctx, const Tensor& x, int64_t outer, int64_t reduced, int64_t inner, Tensor& y) {
  const ColumnPlan plan = x.dtype() == DType::f64 ? column_plan<double>(outer, reduced, inner)
                                                  : column_plan<float>(outer, reduced, inner);
  const Tensor partial = plan.chunks > 1 ? ctx.empty({outer, plan.chunks, inner}, x.dtype()) : y;
  dispatch_floating(ctx, "sum", x.dtype(), [&]<class T>() {
    if (plan.chunks == 1 && reduced <= 32)
      return for_each_index(ctx, outer * inner, SumFew<T>{x.data<T>(), y.data<T>(), reduced, inner});
    sum_chunks(ctx, x.data<T>(), plan, DenseSink<T>{partial.data<T>()});
    if (plan.chunks > 1)
      sum_rows(ctx, partial.data<T>(), outer, plan.chunks, inner, DenseSink<T>{y.data<T>()});
  });
}
#endif

}  // namespace

void sum(Context& ctx, const Tensor& x, int axis, Tensor& y) {
  if (in_float32(ctx, sum, x, axis, y)) return;
  if (axis < 0) axis += x.rank();
  if (axis < 0 || axis >= x.rank() || y.numel() * x.dim(axis) != x.numel() || !y.contiguous())
    fail("sum: axis " + std::to_string(axis) + " of " + to_string(x) + " into " + to_string(y) +
         " (which must be contiguous)");
  Tensor dense = x;
  if (!x.contiguous()) {
    dense = ctx.empty_like(x);
    copy(ctx, x, dense);
  }
  int64_t outer = 1, inner = 1;
  for (int a = 0; a < axis; ++a) outer *= x.dim(a);
  for (int a = axis + 1; a < x.rank(); ++a) inner *= x.dim(a);
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda()) return sum_cuda(ctx, dense, outer, x.dim(axis), inner, y);
#endif
  const Plan plan = plan_of(outer, x.dim(axis), inner);
  const Tensor partial = plan.blocks > 1 ? ctx.empty({outer, plan.blocks, inner}, x.dtype()) : y;
  if (y.numel() == 0) return;
  dispatch_floating(ctx, "sum", x.dtype(), [&]<class T>() {
    require_cpu(ctx, "sum");
    sum_blocks_cpu(dense.data<T>(), partial.data<T>(), plan);
    if (plan.blocks > 1)
      sum_blocks_cpu(partial.data<T>(), y.data<T>(), Plan{outer, plan.blocks, inner, plan.blocks, 1});
  });
}

}  // namespace eigentrace::kernels
