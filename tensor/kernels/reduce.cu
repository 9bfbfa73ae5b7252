// y[o, i] = Σ_r x[o, r, i], the sum over one axis, in a fixed order: blocks of r whose size depends on the
// shape only, each summed on its own, then the blocks' sums in order.
#include <algorithm>

#include "tensor/dispatch.h"
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
struct SumBlock {  // CUDA: one thread an (o, k, i)
  const T* x;
  T* partial;
  Plan plan;
  ET_HD void operator()(int64_t at) const {
    const int64_t i = at % plan.inner, k = at / plan.inner % plan.blocks, o = at / plan.inner / plan.blocks;
    const int64_t begin = k * plan.block;
    const int64_t end = begin + plan.block < plan.reduced ? begin + plan.block : plan.reduced;
    T total = 0;
    for (int64_t r = begin; r < end; ++r) total += x[(o * plan.reduced + r) * plan.inner + i];
    partial[at] = total;
  }
};

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

}  // namespace

void sum(Context& ctx, const Tensor& x, int axis, Tensor& y) {
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
  const Plan plan = plan_of(outer, x.dim(axis), inner);
  const Tensor partial = plan.blocks > 1 ? ctx.empty({outer, plan.blocks, inner}, x.dtype()) : y;
  if (y.numel() == 0) return;
  const auto run = [&]<class T>(const Tensor& from, const Tensor& to, const Plan& p) {
    if (ctx.device().is_cuda())
      for_each_index(ctx, p.outer * p.blocks * p.inner, SumBlock<T>{from.data<T>(), to.data<T>(), p});
    else
      sum_blocks_cpu(from.data<T>(), to.data<T>(), p);
  };
  dispatch_floating(ctx, "sum", x.dtype(), [&]<class T>() {
    run.template operator()<T>(dense, partial, plan);
    if (plan.blocks > 1)
      run.template operator()<T>(partial, y, Plan{outer, plan.blocks, inner, plan.blocks, 1});
  });
}

}  // namespace eigentrace::kernels
