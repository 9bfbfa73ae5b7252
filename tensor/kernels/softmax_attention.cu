// Causal softmax attention in blocks: memory linear in T, work in matrix products.
//   s_ij = scale q_i·k_j,  lse_i = log Σ_{j≤i} exp(s_ij),  p_ij = exp(s_ij − lse_i),  y_i = Σ_{j≤i} m_ij p_ij
//   v_j δ_i = dy_i·y_i,  ds_ij = p_ij (m_ij dy_i·v_j − δ_i), dq_i = scale Σ_j ds_ij k_j,  dk_j = scale Σ_i
//   ds_ij q_i,  dv_j = Σ_i m_ij p_ij dy_i
// m is dropout's mask over 1 − p, a function of (b H + h, i, j). The running maximum and sum over
// blocks of keys are those of Milakov and Gimelshein (2018) and Dao et al. (2022). Row i reads nothing of
// rows after i: masked s enter neither the maximum nor the sum, and masked p are exact zeros, so a change of
// later inputs changes no bit of y_i or lse_i.
// CUDA bodies: softmax_attention_scalar.cu, softmax_attention_forward.cuh and softmax_attention_backward.cuh.
#include "tensor/float32_copies.h"
#include "tensor/kernels.h"
#include "tensor/kernels/softmax_attention_cuda.cuh"
#include "tensor/row_softmax.h"

namespace eigentrace::kernels {
namespace {

constexpr int64_t query_block = 64, key_block = 512;  // a block of s is 128 KB in float32
constexpr int64_t enough_items =
    8;  // batch · heads from which the backward pass is parallel over these alone

template <class T>
struct Attention : AttentionOperands<T> {
  using Base = AttentionOperands<T>;
  using Base::size, Base::q, Base::k, Base::v, Base::y, Base::lse, Base::scale, Base::mask, Base::drops;

  T& lse_of(int64_t b, int64_t h, int64_t i) const { return lse[(b * size.T + i) * size.H + h]; }

  /// s of queries i0.. (rows) and keys j0.. (cols)
  void scores(int64_t b, int64_t h, int64_t i0, int64_t rows, int64_t j0, int64_t cols, T* s) const {
    gemm<T>(rows, cols, size.N, scale, q.rows(b, h, i0), Matrix<const T>(k.rows(b, h, j0)).t(), 0,
            Matrix<T>{s, cols});
  }
  /// Mask factors of row i, keys j0.. (cols), in `room` of cols + 15.
  const T* factors(int64_t b, int64_t h, int64_t i, int64_t j0, int64_t cols, T* room) const {
    dropout_weight_factors(mask, size.T, b * size.H + h, i, j0, cols, room);
    return room;
  }

  void forward(int64_t b, int64_t h, int64_t i0, T* s) const {
    const int64_t rows = std::min(query_block, size.T - i0);
    const Matrix<T> out = y.rows(b, h, i0);
    T largest[query_block], sum[query_block], room[key_block + 16];
    for (int64_t r = 0; r < rows; ++r) largest[r] = -INFINITY, sum[r] = 0;
    for (int64_t j0 = 0; j0 < i0 + rows; j0 += key_block) {
      const int64_t cols = std::min(key_block, i0 + rows - j0);
      scores(b, h, i0, rows, j0, cols, s);
      for (int64_t r = 0; r < rows; ++r) {
        T* row = s + r * cols;
        const int64_t seen = std::min(cols, i0 + r + 1 - j0);
        const T top = std::max(largest[r], row_max(row, seen));
        const T fade = fast_exp(largest[r] - top);
        sum[r] = sum[r] * fade + row_exp(row, row, seen, top);
        largest[r] = top;
        for (int64_t j = seen; j < cols; ++j) row[j] = 0;
        if (drops) {
          const T* m = factors(b, h, i0 + r, j0, seen, room);
#pragma omp simd
          for (int64_t j = 0; j < seen; ++j) row[j] *= m[j];
        }
        if (j0 > 0) {
          T* old = out.data + r * out.ld;
#pragma omp simd
          for (int64_t p = 0; p < size.P; ++p) old[p] *= fade;
        }
      }
      gemm<T>(rows, size.P, cols, 1, Matrix<const T>{s, cols}, v.rows(b, h, j0), j0 == 0 ? T(0) : T(1), out);
    }
    for (int64_t r = 0; r < rows; ++r) {
      T* row = out.data + r * out.ld;
      const T inverse = T(1) / sum[r];
#pragma omp simd
      for (int64_t p = 0; p < size.P; ++p) row[p] *= inverse;
      lse_of(b, h, i0 + r) = largest[r] + std::log(sum[r]);
    }
  }
};

template <class T>
struct AttentionBackward : Attention<T>, AttentionGradients<T> {
  using Attention<T>::size;
  using Base = AttentionGradients<T>;
  using Base::dy, Base::dq, Base::dk, Base::dv, Base::wants_q, Base::wants_k, Base::wants_v, Base::delta;

  T* delta_of(int64_t b, int64_t h) const { return delta + (b * size.H + h) * size.T; }

  void fill_delta(int64_t b, int64_t h) const {
    for (int64_t i = 0; i < size.T; ++i) {
      const T *a = dy.rows(b, h, i).data, *c = this->y.rows(b, h, i).data;
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t p = 0; p < size.P; ++p) sum += a[p] * c[p];
      delta_of(b, h)[i] = sum;
    }
  }

  static void clear(Matrix<T> x, int64_t rows, int64_t cols) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < cols; ++c) x.data[r * x.ld + c] = 0;
  }

  /// The part of queries i0.. and keys j0.. in dq (if to_q), dk and dv (if to_kv); `scratch` holds two
  /// blocks.
  void block(int64_t b, int64_t h, int64_t i0, int64_t j0, bool to_q, bool to_kv, T* scratch) const {
    const int64_t rows = std::min(query_block, size.T - i0), cols = std::min(key_block, i0 + rows - j0);
    T *s = scratch, *ds = scratch + query_block * key_block, room[key_block + 16];
    const Matrix<const T> dy_block = dy.rows(b, h, i0);
    const Matrix<const T> s_view{s, cols}, ds_view{ds, cols};
    this->scores(b, h, i0, rows, j0, cols, s);
    gemm<T>(rows, cols, size.P, 1, dy_block, Matrix<const T>(this->v.rows(b, h, j0)).t(), 0,
            Matrix<T>{ds, cols});
    for (int64_t r = 0; r < rows; ++r) {
      T *p = s + r * cols, *d = ds + r * cols;
      const int64_t seen = std::min(cols, i0 + r + 1 - j0);
      const T shift = this->lse_of(b, h, i0 + r), own = delta_of(b, h)[i0 + r], scale = this->scale;
      if (this->drops) {
        const T* m = this->factors(b, h, i0 + r, j0, seen, room);
#pragma omp simd
        for (int64_t j = 0; j < seen; ++j) {
          const T kept = fast_exp(p[j] - shift);
          p[j] = kept * m[j];
          d[j] = scale * kept * (d[j] * m[j] - own);
        }
      } else {
#pragma omp simd
        for (int64_t j = 0; j < seen; ++j) {
          p[j] = fast_exp(p[j] - shift);
          d[j] = scale * p[j] * (d[j] - own);
        }
      }
      for (int64_t j = seen; j < cols; ++j) p[j] = 0, d[j] = 0;
    }
    if (to_q && wants_q)
      gemm<T>(rows, size.N, cols, 1, ds_view, this->k.rows(b, h, j0), j0 == 0 ? T(0) : T(1),
              dq.rows(b, h, i0));
    if (to_kv && wants_k)
      gemm<T>(cols, size.N, rows, 1, ds_view.t(), this->q.rows(b, h, i0), 1, dk.rows(b, h, j0));
    if (to_kv && wants_v) gemm<T>(cols, size.P, rows, 1, s_view.t(), dy_block, 1, dv.rows(b, h, j0));
  }

  void clear_keys(int64_t b, int64_t h, int64_t j0, int64_t count) const {
    if (wants_k) clear(dk.rows(b, h, j0), count, size.N);
    if (wants_v) clear(dv.rows(b, h, j0), count, size.P);
  }

  void run(ThreadScratch<T> scratch) const {
    const int64_t items = size.B * size.H, queries = (size.T + query_block - 1) / query_block,
                  keys = (size.T + key_block - 1) / key_block;
    if (items >= enough_items || queries == 1) {
      parallel_items(items, [&](int64_t item) {
        const int64_t b = item / size.H, h = item % size.H;
        fill_delta(b, h);
        clear_keys(b, h, 0, size.T);
        for (int64_t i0 = 0; i0 < size.T; i0 += query_block)
          for (int64_t j0 = 0; j0 < i0 + query_block && j0 < size.T; j0 += key_block)
            block(b, h, i0, j0, true, true, scratch.mine());
      });
      return;
    }
    // Few, long sequences: once for the queries and once for the keys, s and p computed twice.
    parallel_items(items, [&](int64_t item) { fill_delta(item / size.H, item % size.H); });
    parallel_items(items * queries, [&](int64_t item) {
      const int64_t b = item / queries / size.H, h = item / queries % size.H;
      const int64_t i0 = (queries - 1 - item % queries) * query_block;
      for (int64_t j0 = 0; j0 < i0 + query_block && j0 < size.T && wants_q; j0 += key_block)
        block(b, h, i0, j0, true, false, scratch.mine());
    });
    parallel_items(items * keys, [&](int64_t item) {
      const int64_t b = item / keys / size.H, h = item / keys % size.H, j0 = item % keys * key_block;
      clear_keys(b, h, j0, std::min(key_block, size.T - j0));
      for (int64_t i0 = j0; i0 < size.T && (wants_k || wants_v); i0 += query_block)
        block(b, h, i0, j0, false, true, scratch.mine());
    });
  }
};

template <class T>
AttentionOperands<T> operands(const Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                              const Tensor& y, const Tensor& lse, double scale, double dropout, uint32_t op) {
  return {{q.dim(0), q.dim(1), q.dim(2), q.dim(3), v.dim(3)},
          heads_of<T>(q, "softmax_attention: q"),
          heads_of<T>(k, "softmax_attention: k"),
          heads_of<T>(v, "softmax_attention: v"),
          heads_of<T>(y, "softmax_attention: y"),
          lse.data<T>(),
          static_cast<T>(scale),
          dropout_stream(ctx, dropout, op),
          dropout > 0};
}

void check(const char* what, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& y,
           const Tensor& lse) {
  const bool good = q.rank() == 4 && v.rank() == 4 && q.shape() == k.shape() && v.shape() == y.shape() &&
                    q.shape().without(3) == v.shape().without(3) && lse.shape() == q.shape().without(3) &&
                    lse.contiguous() && q.dtype() == k.dtype() && q.dtype() == v.dtype() &&
                    q.dtype() == y.dtype() && q.dtype() == lse.dtype();
  if (!good)
    fail(std::string(what) +
         ": q, k [B, T, H, N], v, y [B, T, H, P], lse [B, T, H] of one type expected, found " + to_string(q) +
         ", " + to_string(k) + ", " + to_string(v) + ", " + to_string(y) + ", " + to_string(lse));
}

}  // namespace

void softmax_attention(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, double scale,
                       double dropout, uint32_t op, Tensor& y, Tensor& lse) {
  if (in_float32(ctx, softmax_attention, q, k, v, scale, dropout, op, y, lse)) return;
  check("softmax_attention", q, k, v, y, lse);
  const bool cuda = ctx.device().is_cuda();
  const int64_t block = query_block * key_block;
  Tensor scratch;
  if (!cuda) scratch = ctx.empty({omp_get_max_threads(), block}, q.dtype());
#ifdef EIGENTRACE_WITH_CUDA
  const AttentionPlan plan = cuda ? attention_plan(ctx, q, v, scale) : AttentionPlan{};
#endif
  if (lse.numel() == 0 || v.dim(3) == 0) return;
  dispatch_floating(ctx, "softmax_attention", q.dtype(), [&]<class T>() {
    const Attention<T> a{operands<T>(ctx, q, k, v, y, lse, scale, dropout, op)};
#ifdef EIGENTRACE_WITH_CUDA
    if constexpr (std::is_same_v<T, float>)
      if (plan.exists()) return attention_tensor_cores(ctx, plan, a);
    if (cuda) return attention_scalar<T>(ctx, a);
#endif
    require_cpu(ctx, "softmax_attention");
    const ThreadScratch<T> blocks{scratch.data<T>(), block};
    const int64_t items = a.size.B * a.size.H, queries = (a.size.T + query_block - 1) / query_block;
    parallel_items(items * queries, [&](int64_t item) {  // the longest rows first
      const int64_t i0 = (queries - 1 - item % queries) * query_block, bh = item / queries;
      a.forward(bh / a.size.H, bh % a.size.H, i0, blocks.mine());
    });
  });
}

void softmax_attention_backward(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                                const Tensor& y, const Tensor& lse, const Tensor& dy, double scale,
                                double dropout, uint32_t op, Tensor& dq, Tensor& dk, Tensor& dv) {
  if (in_float32(ctx, softmax_attention_backward, q, k, v, y, lse, dy, scale, dropout, op, dq, dk, dv))
    return;
  check("softmax_attention_backward", q, k, v, y, lse);
  check("softmax_attention_backward", dq.defined() ? dq : q, dk.defined() ? dk : k, dv.defined() ? dv : v, dy,
        lse);
  const bool cuda = ctx.device().is_cuda();
  const int64_t blocks = 2 * query_block * key_block;
  Tensor scratch;
  if (!cuda) scratch = ctx.empty({omp_get_max_threads(), blocks}, q.dtype());
  Tensor delta = ctx.empty({q.dim(0), q.dim(2), q.dim(1)}, q.dtype());
#ifdef EIGENTRACE_WITH_CUDA
  const AttentionPlan plan = cuda ? attention_plan(ctx, q, v, scale) : AttentionPlan{};
  Tensor memory;
  if (const int64_t n = plan.exists() ? attention_backward_elements(plan, q, dq.defined()) : 0)
    memory = ctx.empty({n}, q.dtype());
#endif
  if (lse.numel() == 0) return;
  dispatch_floating(ctx, "softmax_attention_backward", q.dtype(), [&]<class T>() {
    const auto out = [](const Tensor& x, const char* what) {
      return x.defined() ? heads_of<T>(x, what) : Heads<T>{};
    };
    const AttentionBackward<T> a{
        {operands<T>(ctx, q, k, v, y, lse, scale, dropout, op)},
        {heads_of<T>(dy, "softmax_attention_backward: dy"), out(dq, "softmax_attention_backward: dq"),
         out(dk, "softmax_attention_backward: dk"), out(dv, "softmax_attention_backward: dv"), dq.defined(),
         dk.defined(), dv.defined(), delta.data<T>()}};
#ifdef EIGENTRACE_WITH_CUDA
    if (cuda) {
      if (!plan.wgmma && (dq.defined() || dk.defined())) attention_delta<T>(ctx, a, a);
      if constexpr (std::is_same_v<T, float>)
        if (plan.exists())
          return attention_tensor_cores_backward(ctx, plan, a, a,
                                                 memory.defined() ? memory.data<T>() : nullptr);
      return attention_scalar_backward<T>(ctx, a, a);
    }
#endif
    require_cpu(ctx, "softmax_attention_backward");
    a.run({scratch.data<T>(), blocks});
  });
}

}  // namespace eigentrace::kernels
