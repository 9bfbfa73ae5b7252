// y = x Wᵀ + b and its gradients:
//   dx = dy W          by tiles of rows, added to what other consumers of x have sent
//   dW = dyᵀ x         a sum over all rows, cut into pieces added in order
//   db = Σ_rows dy     likewise
#include "tensor/blas.h"
#include "tensor/cuda_blas.h"
#include "tensor/dispatch.h"
#include "tensor/float32_copies.h"
#include "tensor/kernels.h"
#include "tensor/kernels/column_sum.cuh"
#include "tensor/kernels/linear_add.h"
#include "tensor/kernels/linear_one.cuh"
#include "tensor/kernels/turn.cuh"
#include "tensor/launch.h"

namespace eigentrace::kernels {
namespace {

constexpr int64_t bias_rows = 512;  // rows of dy that one partial sum of db covers

template <class T>
Matrix<const T> matrix(const Rows<T>& x) {
  return {x.data, std::max<int64_t>(x.rows <= 1 ? x.cols : x.stride, 1)};
}

template <class T>
void linear_cpu(const Tensor& x, const Tensor& weight, const Tensor& bias, Tensor& y, bool add = false) {
  const Rows<T> in = rows_of<T>(x, "linear: x"), out = rows_of<T>(y, "linear: y");
  const Matrix<const T> a = matrix(in), w = matrix_of<T>(weight, "linear: weight");
  const T* b = bias.defined() ? bias.data<T>() : nullptr;
  const int64_t b_stride = bias.defined() ? bias.stride(0) : 0;
  const Tiling tiling(out.rows, out.cols);
  parallel_items(tiling.count(), [&](int64_t i) {
    const Tiling::Tile t = tiling[i];
    const Matrix<T> c{out.data + t.row * out.stride + t.col,
                      std::max<int64_t>(out.rows <= 1 ? out.cols : out.stride, 1)};
    if (b)
      for (int64_t r = 0; r < t.rows; ++r) {
        T* row = c.data + r * c.ld;
#pragma omp simd
        for (int64_t j = 0; j < t.cols; ++j) row[j] = b[(t.col + j) * b_stride];
      }
    gemm<T>(t.rows, t.cols, in.cols, 1, a.at(t.row, 0), w.t().at(0, t.col), b || add ? T(1) : T(0), c);
  });
}

template <class T>
void bias_cpu(const Tensor& dy, Tensor& db, Tensor& scratch) {
  const Rows<T> in = rows_of<T>(dy, "linear_backward_bias: dy");
  const int64_t blocks = scratch.dim(0);
  T* partial = scratch.data<T>();
  parallel_rows(blocks, [&](int64_t block) {
    T* sum = partial + block * in.cols;
    const int64_t end = std::min((block + 1) * bias_rows, in.rows);
    for (int64_t j = 0; j < in.cols; ++j) sum[j] = 0;
    for (int64_t r = block * bias_rows; r < end; ++r) {
      const T* row = in.data + r * in.stride;
#pragma omp simd
      for (int64_t j = 0; j < in.cols; ++j) sum[j] += row[j];
    }
  });
  T* out = db.data<T>();
  const int64_t stride = db.stride(0);
  for (int64_t j = 0; j < in.cols; ++j) out[j * stride] = 0;
  for (int64_t block = 0; block < blocks; ++block)
    for (int64_t j = 0; j < in.cols; ++j) out[j * stride] += partial[block * in.cols + j];
}

/// True iff bf16 operands can go to the library as they are: rows of whole 16-byte pieces.
bool rows_of_bf16(const Tensor& x) {
  if (!is_bf16(x) || !collapses_to_rows(x) || reinterpret_cast<uintptr_t>(x.raw()) % 16 != 0) return false;
  for (int axis = 0; axis < x.rank(); ++axis)
    if (x.dim(axis) > 1 && x.stride(axis) != 1 && x.stride(axis) % 8 != 0) return false;
  return true;
}
bool native_bf16(const Tensor& a, const Tensor& b, const Tensor& c) {
  const auto fits = [](const Tensor& t) {
    return rows_of_bf16(t.rank() == 2 && t.stride(0) == 1 ? t.transpose(0, 1) : t);
  };
  return fits(a) && fits(b) && (fits(c) || c.dtype() == DType::f32);
}

#ifdef EIGENTRACE_WITH_CUDA
template <class T>
void linear_cuda(Context& ctx, const Rows<T>& in, const Matrix<const T>& weight, const Tensor& bias,
                 const Rows<T>& out, const Tensor& sent = {}) {
  Product<T> product{out.rows,   out.cols,   in.cols,
                     matrix(in), weight.t(), Matrix<T>{out.data, matrix(out).ld}};
  if (bias.defined()) product.bias = bias.data<T>(), product.bias_stride = bias.stride(0);
  if (sent.defined()) {
    const Rows<T> start = rows_of<T>(sent, "linear_backward_input: sent");
    product.beta = 1;
    if (start.data != out.data) product.from = start.data, product.from_ld = matrix(start).ld;
  }
  cuda_gemm(ctx, product);
}

/// True iff x is one column that one_column can take (rows a launch can count).
bool is_one_column(const Context& ctx, const Tensor& x, int64_t rows) {
  return ctx.device().is_cuda() && x.dim(-1) == 1 && rows <= 65535 * one_rows;
}
template <class T>
OneColumn<T> one_column_of(const Tensor& x, const Tensor& y) {
  const Rows<T> in = rows_of<T>(x, "linear: x");
  return {rows_of<T>(y, "linear: y"), in.data, in.stride};
}
#endif

int64_t row_count(const Tensor& x) { return x.dim(-1) == 0 ? 0 : x.numel() / x.dim(-1); }

void check(const char* what, const Tensor& x, const Tensor& weight, const Tensor& y) {
  const bool good =
      x.rank() >= 1 && y.rank() == x.rank() && weight.rank() == 2 && weight.dim(1) == x.dim(-1) &&
      weight.dim(0) == y.dim(-1) && x.shape().without(x.rank() - 1) == y.shape().without(y.rank() - 1) &&
      x.dtype() == y.dtype() && (x.dtype() == weight.dtype() || weight.dtype() == arithmetic_type(x.dtype()));
  if (!good)
    fail(std::string(what) + ": x [..., in], weight [out, in] and y [..., out] of one type expected, found " +
         to_string(x) + ", " + to_string(weight) + ", " + to_string(y));
}

void check_bias(const char* what, const Tensor& dy, const Tensor& dbias) {
  if (!(dbias.shape() == Shape{dy.dim(-1)}) || dbias.dtype() != arithmetic_type(dy.dtype()))
    fail(std::string(what) + ": dbias [out] expected for dy " + to_string(dy) + ", found " +
         to_string(dbias));
}

}  // namespace

void linear(Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias, Tensor& y) {
  check("linear", x, weight, y);
  if (bias.defined() && !(bias.shape() == Shape{weight.dim(0)} && bias.dtype() == arithmetic_type(x.dtype())))
    fail("linear: bias [out] expected for weight " + to_string(weight) + ", found " + to_string(bias));
  if (!native_bf16(x, weight, y) && in_float32(ctx, linear, x, weight, bias, y)) return;
  Tensor added = bias;
  if (bias.defined() && is_bf16(y)) {
    added = ctx.empty(bias.shape(), DType::bf16);
    cast(ctx, bias, added);
  }
#ifdef EIGENTRACE_WITH_CUDA
  const Tensor across = weight.transpose(0, 1);  // a kernel [in, out] as it lies
  const bool one = is_one_column(ctx, x, row_count(x));
  const bool turns = !one && turns_weight(ctx, across, row_count(x));
  Tensor turned_copy = turns ? ctx.empty(weight.shape(), weight.dtype()) : Tensor();
#endif
  dispatch_stored(ctx, "linear", x.dtype(), [&]<class T>() {
#ifdef EIGENTRACE_WITH_CUDA
    if (one) {
      OneColumn<T> o = one_column_of<T>(x, y);
      o.w = weight.data<T>(), o.w_stride = weight.stride(0);
      if (added.defined()) o.bias = added.data<T>(), o.bias_stride = added.stride(0);
      return one_column(ctx, o);
    }
    if (ctx.device().is_cuda())
      return linear_cuda<T>(
          ctx, rows_of<T>(x, "linear: x"),
          turns ? turned<T>(ctx, across, turned_copy) : matrix_of<T>(weight, "linear: weight"), added,
          rows_of<T>(y, "linear: y"));
#endif
    require_cpu(ctx, "linear");
    if constexpr (!std::is_same_v<T, BFloat16>) linear_cpu<T>(x, weight, bias, y);
  });
}

void linear_backward_input(Context& ctx, const Tensor& dy, const Tensor& weight, Tensor& dx) {
  linear_backward_input_add(ctx, dy, weight, Tensor(), dx);
}

void linear_backward_input_add(Context& ctx, const Tensor& dy, const Tensor& weight, const Tensor& sent,
                               Tensor& dx) {
  check("linear_backward_input", dx, weight, dy);
  if (sent.defined() && !(sent.shape() == dx.shape() && sent.dtype() == dx.dtype()))
    fail("linear_backward_input: sent: " + to_string(dx) + " expected, found " + to_string(sent));
  if (!(native_bf16(dy, weight, dx) && (!sent.defined() || rows_of_bf16(sent))) &&
      in_float32(ctx, linear_backward_input_add, dy, weight, sent, dx))
    return;
#ifdef EIGENTRACE_WITH_CUDA
  const bool turns = turns_weight(ctx, weight, row_count(dy));
  Tensor turned_copy = turns ? ctx.empty({weight.dim(1), weight.dim(0)}, weight.dtype()) : Tensor();
#endif
  dispatch_stored(ctx, "linear_backward_input", dy.dtype(), [&]<class T>() {
#ifdef EIGENTRACE_WITH_CUDA
    if (ctx.device().is_cuda())
      return linear_cuda<T>(ctx, rows_of<T>(dy, "linear_backward_input: dy"),
                            turns ? turned<T>(ctx, weight, turned_copy)
                                  : matrix_of<T>(weight, "linear_backward_input: weight").t(),
                            Tensor(), rows_of<T>(dx, "linear_backward_input: dx"), sent);
#endif
    require_cpu(ctx, "linear_backward_input");
    if constexpr (!std::is_same_v<T, BFloat16>) {
      if (sent.defined() && sent.raw() != dx.raw()) copy(ctx, sent, dx);
      linear_cpu<T>(dy, weight.transpose(0, 1), Tensor(), dx, sent.defined());
    }
  });
}

void linear_backward_weight(Context& ctx, const Tensor& dy, const Tensor& x, Tensor& dweight, Tensor& dbias) {
  check("linear_backward_weight", x, dweight, dy);
  if (!native_bf16(dy, x, dweight) && in_float32(ctx, linear_backward_weight, dy, x, dweight, dbias)) return;
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda()) {
    if (dbias.defined()) check_bias("linear_backward_weight", dy, dbias);
    const int64_t M = dweight.dim(0), N = dweight.dim(1), K = row_count(dy);
    const bool dense = dweight.stride(0) == 1 && (!dbias.defined() || dbias.stride(0) == 1);
    if (dense && is_one_column(ctx, x, K)) {
      Tensor sums = ctx.empty({one_column_scratch(K, M)}, dweight.dtype());
      return dispatch_stored(ctx, "linear_backward_weight", x.dtype(), [&]<class T>() {
        using Out = Arithmetic<T>;
        one_column_sums(ctx, one_column_of<T>(x, dy), dweight.data<Out>(),
                        dbias.defined() ? dbias.data<Out>() : nullptr, sums.data<Out>());
      });
    }
    Tensor scratch =
        ctx.empty({cuda_long_scratch(ctx, dy.dtype(), M, N, K, dbias.defined())}, dweight.dtype());
    return dispatch_stored(ctx, "linear_backward_weight", x.dtype(), [&]<class T>() {
      using Out = Arithmetic<T>;
      const Product<T, Out> product{M,
                                    N,
                                    K,
                                    matrix(rows_of<T>(dy, "linear_backward_weight: dy")).t(),
                                    matrix(rows_of<T>(x, "linear_backward_weight: x")),
                                    matrix_of<Out>(dweight, "linear_backward_weight: dweight")};
      cuda_gemm_long(ctx, product, dbias.defined() ? dbias.data<Out>() : nullptr,
                     dbias.defined() ? dbias.stride(0) : 0, scratch.data<Out>());
    });
  }
#endif
  const int64_t M = dweight.dim(0), N = dweight.dim(1), K = row_count(x);
  const int64_t pieces = k_pieces(M, N, K);
  Tensor scratch = ctx.empty({pieces == 1 ? 0 : pieces * M * N}, x.dtype());
  dispatch_floating(ctx, "linear_backward_weight", x.dtype(), [&]<class T>() {
    require_cpu(ctx, "linear_backward_weight");
    parallel_gemm_long<T>(M, N, K, matrix(rows_of<T>(dy, "linear_backward_weight: dy")).t(),
                          matrix(rows_of<T>(x, "linear_backward_weight: x")),
                          matrix_of<T>(dweight, "linear_backward_weight: dweight"), scratch.data<T>());
  });
  if (dbias.defined()) linear_backward_bias(ctx, dy, dbias);
}

void linear_backward_bias(Context& ctx, const Tensor& dy, Tensor& dbias) {
  check_bias("linear_backward_bias", dy, dbias);
  int64_t pieces = (row_count(dy) + bias_rows - 1) / bias_rows;
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda()) pieces = column_sum_pieces(row_count(dy));
#endif
  Tensor scratch = ctx.empty({pieces, dy.dim(-1)}, dbias.dtype());
  dispatch_stored(ctx, "linear_backward_bias", dy.dtype(), [&]<class T>() {
#ifdef EIGENTRACE_WITH_CUDA
    using Sum = Arithmetic<T>;
    if (ctx.device().is_cuda())
      return column_sum(ctx, rows_of<T>(dy, "linear_backward_bias: dy"), dbias.data<Sum>(), dbias.stride(0),
                        scratch.data<Sum>());
#endif
    require_cpu(ctx, "linear_backward_bias");
    if constexpr (!std::is_same_v<T, BFloat16>) bias_cpu<T>(dy, dbias, scratch);
  });
}

Tensor empty_rows(Context& ctx, const Shape& shape, DType dtype) {
  constexpr int64_t multiple = 8, least = 32;  // short rows: more padding than they are worth
  const int64_t width = shape.rank() == 0 ? 0 : shape[-1], piece = 16 / static_cast<int64_t>(size_of(dtype));
  if (!ctx.device().is_cuda() || width % piece == 0 || width < least) return ctx.empty(shape, dtype);
  Shape wide = shape;
  wide[-1] = (width + multiple - 1) / multiple * multiple;
  return ctx.empty(wide, dtype).slice(shape.rank() - 1, 0, width);
}

}  // namespace eigentrace::kernels
