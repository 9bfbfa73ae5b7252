// AdamW (Loshchilov and Hutter, arXiv 1711.05101) over all parameters at once, and the global norm it clips
// by. The CUDA bodies are in optimiser_cuda.cuh.
#include <algorithm>
#include <cmath>
#include <vector>

#include "tensor/dispatch.h"
#include "tensor/kernels.h"
#include "tensor/kernels/optimiser_cuda.cuh"

namespace eigentrace::kernels {
namespace {

constexpr int64_t block = 16384;  // even: a complex pair never straddles two blocks

/// The blocks of a list of tensors: which tensor, from which element.
struct Piece {
  size_t tensor;
  int64_t begin, end;
};
std::vector<Piece> pieces_of(size_t count, const auto& elements_of) {
  std::vector<Piece> pieces;
  for (size_t i = 0; i < count; ++i)
    for (int64_t begin = 0; begin < elements_of(i); begin += block)
      pieces.push_back({i, begin, std::min(begin + block, elements_of(i))});
  return pieces;
}

template <class T>
double sum_of_squares(const T* x, int64_t n) {
  constexpr int64_t lanes = 8;  // in an order of our own, not the compiler's
  double sums[lanes] = {};
  const int64_t whole = n / lanes * lanes;
  for (int64_t i = 0; i < whole; i += lanes)
#pragma omp simd
    for (int64_t l = 0; l < lanes; ++l)
      sums[l] += static_cast<double>(x[i + l]) * static_cast<double>(x[i + l]);
  for (int64_t i = whole; i < n; ++i)
    sums[i - whole] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  double sum = 0;
  for (double s : sums) sum += s;
  return sum;
}

template <class T>
void update_cpu(const AdamUpdate<T>& u, bool is_complex, T* p, const T* g, T* m, T* v, int64_t n) {
  const AdamUpdate<T> update = u;
  if (is_complex) {
    for (int64_t i = 0; i < n; i += 2) update.complex(p + i, g + i, m + i, v + i);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) update.real(p[i], g[i], m[i], v[i]);
  }
}

}  // namespace

void global_norm(Context& ctx, const std::vector<Tensor>& gradients, Tensor& norm) {
  if (gradients.empty()) fail("global_norm: gradients: at least one expected, found none");
  for (const Tensor& g : gradients)
    if (!g.contiguous() || g.dtype() != gradients[0].dtype())
      fail("global_norm: gradients: dense tensors of one type expected, found " + to_string(g));
  const std::vector<Piece> pieces =
      pieces_of(gradients.size(), [&](size_t i) { return gradients[i].numel(); });
  Tensor partial = ctx.empty(
      {ctx.device().is_cuda() ? norm_chunks(gradients) : static_cast<int64_t>(pieces.size())}, DType::f64);
  dispatch_floating(ctx, "global_norm", gradients[0].dtype(), [&]<class T>() {
#ifdef EIGENTRACE_WITH_CUDA
    if (ctx.device().is_cuda()) return global_norm_cuda<T>(ctx, gradients, partial, norm);
#endif
    require_cpu(ctx, "global_norm");
    double* sums = partial.data<double>();
    parallel_rows(static_cast<int64_t>(pieces.size()), [&](int64_t i) {
      const Piece& piece = pieces[static_cast<size_t>(i)];
      sums[i] = sum_of_squares(gradients[piece.tensor].data<T>() + piece.begin, piece.end - piece.begin);
    });
    double sum = 0;
    for (size_t i = 0; i < pieces.size(); ++i) sum += sums[i];
    *norm.data<double>() = std::sqrt(sum);
  });
}

void adamw(Context& ctx, const std::vector<AdamTensors>& tensors, const std::vector<AdamGroup>& groups,
           const Tensor& rates, const Tensor& norm, double clip, bool published_complex) {
  if (tensors.empty()) fail("adamw: tensors: at least one expected, found none");
  for (const AdamTensors& t : tensors) {
    const DType type = tensors[0].value.dtype();
    for (const Tensor* x : {&t.value, &t.gradient, &t.m, &t.v})
      if (!x->contiguous() || !(x->shape() == t.value.shape()) || x->dtype() != type)
        fail("adamw: dense tensors of one shape and type expected, found " + to_string(*x) + " with " +
             to_string(t.value));
    if (t.group < 0 || t.group >= static_cast<int>(groups.size()))
      fail("adamw: group: there is no such group");
    if (t.is_complex && t.value.dim(-1) != 2) fail("adamw: a complex parameter ends in (re, im)");
  }
  const std::vector<Piece> pieces =
      pieces_of(tensors.size(), [&](size_t i) { return tensors[i].value.numel(); });
  dispatch_floating(ctx, "adamw", tensors[0].value.dtype(), [&]<class T>() {
#ifdef EIGENTRACE_WITH_CUDA
    if (ctx.device().is_cuda())
      return adamw_cuda<T>(ctx, tensors, groups, rates, norm, clip, published_complex);
#endif
    require_cpu(ctx, "adamw");
    const double n = *norm.data<double>(), *rate = rates.data<double>();
    if (!std::isfinite(n)) return;
    const double factor = clip_factor(clip, n);
    parallel_rows(static_cast<int64_t>(pieces.size()), [&](int64_t i) {
      const Piece& piece = pieces[static_cast<size_t>(i)];
      const AdamTensors& t = tensors[piece.tensor];
      const AdamGroup& group = groups[static_cast<size_t>(t.group)];
      const double* row = rate + 4 * t.group;
      T* g = t.gradient.data<T>() + piece.begin;
      const int64_t count = piece.end - piece.begin;
      if (row[3] != 0) {
        const AdamUpdate<T> update(group, row, factor, published_complex);
        update_cpu(update, t.is_complex, t.value.data<T>() + piece.begin, g, t.m.data<T>() + piece.begin,
                   t.v.data<T>() + piece.begin, count);
      }
      if (group.accumulates)
        for (int64_t k = 0; k < count; ++k) g[k] = row[3] != 0 ? T(0) : g[k] * T(factor);
    });
  });
}

}  // namespace eigentrace::kernels
