#pragma once
// The CUDA side of ssd and ssd_backward: which kernels, and the memory they need.
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/kernels/ssd_fast.cuh"
#include "tensor/kernels/ssd_general.cuh"

namespace eigentrace::kernels {
namespace {

template <class T>
Heads<T> heads_or_none(const Tensor& x, const char* what) {
  return x.defined() ? heads_of<T>(x, what) : Heads<T>{};
}

/// Forward (dy undefined) or backward on CUDA. y, or the gradients, some of them undefined.
void run_cuda(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_a,
              const Tensor& w, const Tensor& y, const Tensor& dy, const Tensor& dq, const Tensor& dk,
              const Tensor& dv, const Tensor& dlog_a, const Tensor& dw) {
  const int64_t B = q.dim(0), T = q.dim(1), H = v.dim(2), N = q.dim(3), P = v.dim(3);
  if (v.numel() == 0 || N == 0) return;
  const int64_t chunks = (T + ssd_chunk - 1) / ssd_chunk;
  const bool fast = ssd_is_fast(q.dtype(), N, P), backward = dy.defined();
  const WalkNeeds needs = walk_needs(B, T, q.dim(2), H, N, P, backward, dlog_a.defined(), dw.defined());
  const int64_t all = B * H * chunks * N * P;
  const Tensor states = ctx.empty({fast ? needs.states : all}, q.dtype()),
               later = ctx.empty({!fast && backward ? all : 0}, q.dtype()),
               decays = ctx.empty({fast ? needs.decays : B * H * chunks}, q.dtype()),
               sums = ctx.empty({fast ? needs.sums : 0}, DType::f64),
               head_dq = ctx.empty({fast && dq.defined() ? needs.shared_heads : 0}, q.dtype()),
               head_dk = ctx.empty({fast && dk.defined() ? needs.shared_heads : 0}, q.dtype()),
               flow = ctx.empty({dlog_a.defined() && dlog_a.rank() == 1 ? B * T * H : 0}, DType::f64);
  dispatch_floating(ctx, "ssd", q.dtype(), [&]<class E>() {
    const SsdOperands<E> s{static_cast<int>(B),
                           static_cast<int>(T),
                           static_cast<int>(q.dim(2)),
                           static_cast<int>(H),
                           static_cast<int>(N),
                           static_cast<int>(P),
                           static_cast<int>(chunks),
                           heads_of<E>(q, "ssd: q"),
                           heads_of<E>(k, "ssd: k"),
                           heads_of<E>(v, "ssd: v"),
                           heads_or_none<E>(y, "ssd: y"),
                           heads_or_none<E>(dy, "ssd_backward: dy"),
                           heads_or_none<E>(dq, "ssd_backward: dq"),
                           heads_or_none<E>(dk, "ssd_backward: dk"),
                           heads_or_none<E>(dv, "ssd_backward: dv"),
                           PerStep<const E>(log_a),
                           PerStep<const E>(w),
                           PerStep<E>(dw),
                           PerStep<E>(dlog_a),
                           states.data<E>(),
                           later.data<E>(),
                           decays.data<E>(),
                           flow.numel() > 0 ? flow.data<double>() : nullptr};
    if constexpr (std::is_same_v<E, float>)
      if (fast) {
        const WalkRoom room{states, decays, sums, head_dq, head_dk};
        return backward ? ssd_backward_fast(ctx, s, room) : ssd_fast(ctx, s, room);
      }
    if (backward)
      ssd_backward_general(ctx, s);
    else
      ssd_general(ctx, s);
  });
}

}  // namespace
}  // namespace eigentrace::kernels
#endif
