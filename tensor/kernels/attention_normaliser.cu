// The normaliser of linear attention, apart from its products, in running sums of the element type:
//   z_i = Σ_{j≤i} k_j,  log η_i = log(q_i·z_i)
//   dη_i = dlog_η_i / η_i,  dq_i = dη_i z_i,  dk_j = Σ_{i≥j} dη_i q_i
// and the division by it: out_i = y_i exp(−log η_i),  dy_i = dout_i exp(−log η_i),  dlog_η_i = −dout_i·out_i.
#include "tensor/dispatch.h"
#include "tensor/float32_copies.h"
#include "tensor/heads.h"
#include "tensor/kernels.h"
#include "tensor/kernels/attention_normaliser_cuda.cuh"
#include "tensor/math.h"

namespace eigentrace::kernels {
namespace {

template <class T>
T dot(const T* x, const T* y, int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) sum += x[j] * y[j];
  return sum;
}

/// body(b, h) for each sequence.
template <class Body>
void for_each_head(const Tensor& q, const Body& body) {
  const int64_t H = q.dim(2);
  parallel_rows(q.dim(0) * H, [&](int64_t item) { body(item / H, item % H); });
}

template <class T>
void forward_cpu(const Tensor& q, const Tensor& k, Tensor& log_eta, Tensor& sums) {
  const Heads<T> queries = heads_of<T>(q, "attention_normaliser: q"),
                 keys = heads_of<T>(k, "attention_normaliser: k");
  const PerStep<T> out(log_eta);
  const int64_t length = q.dim(1), N = q.dim(3);
  const ThreadScratch<T> scratch{sums.data<T>(), N};
  for_each_head(q, [&](int64_t b, int64_t h) {
    T* z = scratch.mine();
    for (int64_t n = 0; n < N; ++n) z[n] = 0;
    for (int64_t i = 0; i < length; ++i) {
      const T* key = keys.rows(b, h, i).data;
#pragma omp simd
      for (int64_t n = 0; n < N; ++n) z[n] += key[n];
      out.at(b, i, h) = std::log(dot(queries.rows(b, h, i).data, z, N));
    }
  });
}

template <class T>
void backward_cpu(const Tensor& q, const Tensor& k, const Tensor& log_eta, const Tensor& dlog_eta, Tensor& dq,
                  Tensor& dk, Tensor& sums) {
  const Heads<T> queries = heads_of<T>(q, "attention_normaliser: q"),
                 keys = heads_of<T>(k, "attention_normaliser: k");
  const PerStep<const T> eta(log_eta), cotangent(dlog_eta);
  const int64_t length = q.dim(1), N = q.dim(3);
  const ThreadScratch<T> scratch{sums.data<T>(), N};
  if (dq.defined()) {
    const Heads<T> to = heads_of<T>(dq, "attention_normaliser: dq");
    for_each_head(q, [&](int64_t b, int64_t h) {
      T* z = scratch.mine();
      for (int64_t n = 0; n < N; ++n) z[n] = 0;
      for (int64_t i = 0; i < length; ++i) {
        const T deta = cotangent.at(b, i, h) * fast_exp(-eta.at(b, i, h)), *key = keys.rows(b, h, i).data;
        T* row = to.rows(b, h, i).data;
#pragma omp simd
        for (int64_t n = 0; n < N; ++n) {
          z[n] += key[n];
          row[n] = deta * z[n];
        }
      }
    });
  }
  if (dk.defined()) {
    const Heads<T> to = heads_of<T>(dk, "attention_normaliser: dk");
    for_each_head(q, [&](int64_t b, int64_t h) {
      T* sum = scratch.mine();
      for (int64_t n = 0; n < N; ++n) sum[n] = 0;
      for (int64_t i = length - 1; i >= 0; --i) {
        const T deta = cotangent.at(b, i, h) * fast_exp(-eta.at(b, i, h)),
                *query = queries.rows(b, h, i).data;
        T* row = to.rows(b, h, i).data;
#pragma omp simd
        for (int64_t n = 0; n < N; ++n) {
          sum[n] += deta * query[n];
          row[n] = sum[n];
        }
      }
    });
  }
}

/// body(b, i, h) for each step of each head, blocks of steps on threads.
template <class Body>
void for_each_step(const Tensor& y, const Body& body) {
  const int64_t T = y.dim(1), H = y.dim(2);
  parallel_rows(y.dim(0) * T, [&](int64_t bt) {
    for (int64_t h = 0; h < H; ++h) body(bt / T, bt % T, h);
  });
}

template <class T>
void divide_cpu(const Tensor& y, const Tensor& log_eta, Tensor& out) {
  const Heads<T> from = heads_of<T>(y, "divide_by_eta: y"), to = heads_of<T>(out, "divide_by_eta: out");
  const PerStep<const T> eta(log_eta);
  for_each_step(y, [&](int64_t b, int64_t i, int64_t h) {
    const T factor = fast_exp(-eta.at(b, i, h)), *x = from.rows(b, h, i).data;
    T* row = to.rows(b, h, i).data;
#pragma omp simd
    for (int64_t p = 0; p < y.dim(3); ++p) row[p] = factor * x[p];
  });
}

template <class T>
void divide_backward_cpu(const Tensor& out, const Tensor& log_eta, const Tensor& dout, Tensor& dy,
                         Tensor& dlog_eta) {
  if (dy.defined()) divide_cpu<T>(dout, log_eta, dy);
  if (!dlog_eta.defined()) return;
  const Heads<T> y = heads_of<T>(out, "divide_by_eta: out"),
                 cotangent = heads_of<T>(dout, "divide_by_eta: dout");
  const PerStep<T> to(dlog_eta);
  for_each_step(out, [&](int64_t b, int64_t i, int64_t h) {
    to.at(b, i, h) = -dot(cotangent.rows(b, h, i).data, y.rows(b, h, i).data, out.dim(3));
  });
}

void check(const char* what, bool good, const Tensor& a, const Tensor& b, const Tensor& steps) {
  if (!good || !(a.shape() == b.shape()) || a.rank() != 4 || !(steps.shape() == a.shape().without(3)) ||
      a.dtype() != b.dtype() || a.dtype() != steps.dtype())
    fail(std::string(what) + ": operands [B, T, H, N] and log eta [B, T, H] of one type expected, found " +
         to_string(a) + ", " + to_string(b) + ", " + to_string(steps));
}

#ifdef EIGENTRACE_WITH_CUDA
int64_t sums_chunks(const Tensor& q) { return (q.dim(1) + sums_chunk - 1) / sums_chunk; }

template <class T>
SumsOperands<T> sums_operands(const Tensor& x, const Tensor& q, const Tensor& to, const Tensor& eta,
                              const Tensor& cotangent, const Tensor& log_eta, const Tensor& sums) {
  return {static_cast<int>(q.dim(1)),
          static_cast<int>(q.dim(2)),
          static_cast<int>(q.dim(3)),
          static_cast<int>(sums_chunks(q)),
          heads_of<T>(x, "attention_normaliser"),
          heads_of<T>(q, "attention_normaliser: q"),
          to.defined() ? heads_of<T>(to, "attention_normaliser_backward") : Heads<T>{},
          PerStep<const T>(eta),
          PerStep<const T>(cotangent),
          PerStep<T>(log_eta),
          sums.data<T>()};
}
#endif

}  // namespace

void attention_normaliser(Context& ctx, const Tensor& q, const Tensor& k, Tensor& log_eta) {
  if (in_float32(ctx, attention_normaliser, q, k, log_eta)) return;
  check("attention_normaliser", true, q, k, log_eta);
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda()) {
    const Tensor sums = ctx.empty({q.dim(0), q.dim(2), sums_chunks(q), q.dim(3)}, q.dtype());
    return dispatch_floating(ctx, "attention_normaliser", q.dtype(), [&]<class T>() {
      running_sums<T, SumsResult::log_eta>(ctx, q.dim(0), sums_operands<T>(k, q, {}, {}, {}, log_eta, sums));
    });
  }
#endif
  require_cpu(ctx, "attention_normaliser");
  Tensor sums = ctx.empty({omp_get_max_threads(), q.dim(3)}, q.dtype());
  dispatch_floating(ctx, "attention_normaliser", q.dtype(),
                    [&]<class T>() { forward_cpu<T>(q, k, log_eta, sums); });
}

void attention_normaliser_backward(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& log_eta,
                                   const Tensor& dlog_eta, Tensor& dq, Tensor& dk) {
  if (in_float32(ctx, attention_normaliser_backward, q, k, log_eta, dlog_eta, dq, dk)) return;
  check("attention_normaliser_backward", dlog_eta.shape() == log_eta.shape(), dq.defined() ? dq : q,
        dk.defined() ? dk : k, log_eta);
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda()) {
    const Tensor sums = ctx.empty({q.dim(0), q.dim(2), sums_chunks(q), q.dim(3)}, q.dtype());
    return dispatch_floating(ctx, "attention_normaliser_backward", q.dtype(), [&]<class T>() {
      const int64_t B = q.dim(0);
      if (dq.defined())
        running_sums<T, SumsResult::scaled>(ctx, B, sums_operands<T>(k, q, dq, log_eta, dlog_eta, {}, sums));
      if (dk.defined())
        running_sums<T, SumsResult::suffix>(ctx, B, sums_operands<T>(q, q, dk, log_eta, dlog_eta, {}, sums));
    });
  }
#endif
  require_cpu(ctx, "attention_normaliser_backward");
  Tensor sums = ctx.empty({omp_get_max_threads(), q.dim(3)}, q.dtype());
  dispatch_floating(ctx, "attention_normaliser_backward", q.dtype(),
                    [&]<class T>() { backward_cpu<T>(q, k, log_eta, dlog_eta, dq, dk, sums); });
}

void divide_by_eta(Context& ctx, const Tensor& y, const Tensor& log_eta, Tensor& out) {
  if (in_float32(ctx, divide_by_eta, y, log_eta, out)) return;
  check("divide_by_eta", true, y, out, log_eta);
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda())
    return dispatch_floating(ctx, "divide_by_eta", y.dtype(), [&]<class T>() {
      row_scale<T>(ctx, y.dim(0), y.dim(1), y.dim(2), y.dim(3), heads_of<T>(y, "divide_by_eta: y"), {},
                   heads_of<T>(out, "divide_by_eta: out"),
                   DivideByEta<T>{{}, PerStep<const T>(log_eta), PerStep<T>{}});
    });
#endif
  require_cpu(ctx, "divide_by_eta");
  dispatch_floating(ctx, "divide_by_eta", y.dtype(), [&]<class T>() { divide_cpu<T>(y, log_eta, out); });
}

void divide_by_eta_backward(Context& ctx, const Tensor& out, const Tensor& log_eta, const Tensor& dout,
                            Tensor& dy, Tensor& dlog_eta) {
  if (in_float32(ctx, divide_by_eta_backward, out, log_eta, dout, dy, dlog_eta)) return;
  check("divide_by_eta_backward", !dlog_eta.defined() || dlog_eta.shape() == log_eta.shape(),
        dy.defined() ? dy : out, dout, log_eta);
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda())
    return dispatch_floating(ctx, "divide_by_eta_backward", out.dtype(), [&]<class T>() {
      const char* name = "divide_by_eta_backward";
      row_scale<T>(ctx, out.dim(0), out.dim(1), out.dim(2), out.dim(3), heads_of<T>(dout, name),
                   dlog_eta.defined() ? heads_of<T>(out, name) : Heads<T>{},
                   dy.defined() ? heads_of<T>(dy, name) : Heads<T>{},
                   DivideByEta<T>{{}, PerStep<const T>(log_eta), PerStep<T>(dlog_eta)});
    });
#endif
  require_cpu(ctx, "divide_by_eta_backward");
  dispatch_floating(ctx, "divide_by_eta_backward", out.dtype(),
                    [&]<class T>() { divide_backward_cpu<T>(out, log_eta, dout, dy, dlog_eta); });
}

}  // namespace eigentrace::kernels
