#pragma once
// The CUDA side of ssd: which kernels, and the memory they need.
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/kernels/ssd_fast.cuh"
#include "tensor/kernels/ssd_general.cuh"

namespace eigentrace::kernels {
namespace {

template <class T>
SsdOperands<T> ssd_operands(const SsdTensors& x, const Tensor& states, const Tensor& later,
                            const Tensor& decays, const Tensor& flow) {
  const auto heads = [](const Tensor& t, const char* what) {
    return t.defined() ? heads_of<T>(t, what) : Heads<T>{};
  };
  return {static_cast<int>(x.q.dim(0)),
          static_cast<int>(x.q.dim(1)),
          static_cast<int>(x.q.dim(2)),
          static_cast<int>(x.v.dim(2)),
          static_cast<int>(x.q.dim(3)),
          static_cast<int>(x.v.dim(3)),
          static_cast<int>((x.q.dim(1) + ssd_chunk - 1) / ssd_chunk),
          heads(x.q, "ssd: q"),
          heads(x.k, "ssd: k"),
          heads(x.v, "ssd: v"),
          heads(x.y, "ssd: y"),
          heads(x.dy, "ssd_backward: dy"),
          heads(x.dq, "ssd_backward: dq"),
          heads(x.dk, "ssd_backward: dk"),
          heads(x.dv, "ssd_backward: dv"),
          PerStep<const T>(x.log_a),
          PerStep<const T>(x.w),
          PerStep<T>(x.dw),
          PerStep<T>(x.dlog_a),
          states.data<T>(),
          later.data<T>(),
          decays.data<T>(),
          flow.numel() > 0 ? flow.data<double>() : nullptr};
}

inline void run_cuda(Context& ctx, const SsdTensors& x, const Tensor& kept) {
  const int64_t B = x.q.dim(0), T = x.q.dim(1), H = x.v.dim(2), N = x.q.dim(3), P = x.v.dim(3);
  if (x.v.numel() == 0 || N == 0) return;
  if (ssd_is_fast(x.q.dtype(), N, P)) return run_fast(ctx, x, {}, kept);
  const int64_t chunks = (T + ssd_chunk - 1) / ssd_chunk, all = B * H * chunks * N * P;
  const bool backward = x.dy.defined();
  const Tensor states = ctx.empty({all}, x.q.dtype()), later = ctx.empty({backward ? all : 0}, x.q.dtype()),
               decays = ctx.empty({B * H * chunks}, x.q.dtype()),
               flow = ctx.empty({x.dlog_a.defined() && x.dlog_a.rank() == 1 ? B * T * H : 0}, DType::f64);
  dispatch_floating(ctx, "ssd", x.q.dtype(), [&]<class E>() {
    const SsdOperands<E> s = ssd_operands<E>(x, states, later, decays, flow);
    if (backward)
      ssd_backward_general(ctx, s);
    else
      ssd_general(ctx, s);
  });
}

}  // namespace
}  // namespace eigentrace::kernels
#endif
