// C = A B for every index of the leading axes. A and B may be transposed views, so the gradients are products
// too: dA = dC Bᵀ, dB = Aᵀ dC.
#include "tensor/blas.h"
#include "tensor/cuda_blas.h"
#include "tensor/dispatch.h"
#include "tensor/float32_copies.h"
#include "tensor/kernels.h"

namespace eigentrace::kernels {
namespace {

/// Offset of the i-th matrix: the leading axes of a tensor counted in row-major order.
int64_t batch_offset(const Tensor& x, int64_t i) {
  int64_t at = 0;
  for (int axis = x.rank() - 3; axis >= 0; --axis) {
    at += i % x.dim(axis) * x.strides()[axis];
    i /= x.dim(axis);
  }
  return at;
}

template <class T>
void matmul_cpu(const Tensor& a, const Tensor& b, Tensor& c, int64_t batch) {
  const Matrix<const T> a0 = matrix_of<T>(a, "matmul: a"), b0 = matrix_of<T>(b, "matmul: b");
  const Matrix<T> c0 = matrix_of<T>(c, "matmul: c");
  const int64_t K = a.dim(-1);
  const Tiling tiling(c.dim(-2), c.dim(-1));
  parallel_items(batch * tiling.count(), [&](int64_t item) {
    const int64_t i = item / tiling.count();
    const Tiling::Tile t = tiling[item % tiling.count()];
    Matrix<const T> a_i = a0, b_i = b0;
    Matrix<T> c_i = c0;
    a_i.data += batch_offset(a, i), b_i.data += batch_offset(b, i), c_i.data += batch_offset(c, i);
    gemm<T>(t.rows, t.cols, K, 1, a_i.at(t.row, 0), b_i.at(0, t.col), 0, c_i.at(t.row, t.col));
  });
}

#ifdef EIGENTRACE_WITH_CUDA
/// One batched product for as many trailing leading axes as collapse in all three tensors, a loop over the
/// others.
template <class T>
void matmul_cuda(Context& ctx, const Tensor& a, const Tensor& b, Tensor& c, int64_t batch) {
  int64_t together = 1, steps[3] = {0, 0, 0};
  const Tensor* tensors[3] = {&a, &b, &c};
  bool collapses = true;
  for (int axis = c.rank() - 3; axis >= 0 && collapses; --axis) {
    if (c.dim(axis) == 1) continue;
    for (int t = 0; t < 3 && together > 1; ++t)
      collapses = collapses && tensors[t]->strides()[axis] == steps[t] * together;
    if (!collapses) break;
    if (together == 1)
      for (int t = 0; t < 3; ++t) steps[t] = tensors[t]->strides()[axis];
    together *= c.dim(axis);
  }
  Product<T> product{c.dim(-2),
                     c.dim(-1),
                     a.dim(-1),
                     matrix_of<T>(a, "matmul: a"),
                     matrix_of<T>(b, "matmul: b"),
                     matrix_of<T>(c, "matmul: c")};
  product.batch = together, product.a_step = steps[0], product.b_step = steps[1], product.c_step = steps[2];
  for (int64_t i = 0; i < batch; i += together) {
    Product<T> p = product;
    p.a.data += batch_offset(a, i), p.b.data += batch_offset(b, i), p.c.data += batch_offset(c, i);
    cuda_gemm(ctx, p);
  }
}
#endif

}  // namespace

void matmul(Context& ctx, const Tensor& a, const Tensor& b, Tensor& c) {
  if (in_float32(ctx, matmul, a, b, c)) return;
  const auto bad = [&] {
    fail("matmul: a [..., M, K], b [..., K, N] and c [..., M, N] with equal leading axes expected, found " +
         to_string(a) + ", " + to_string(b) + ", " + to_string(c));
  };
  if (a.rank() < 2 || a.rank() != b.rank() || a.rank() != c.rank()) bad();
  if (a.dtype() != b.dtype() || a.dtype() != c.dtype()) bad();
  if (a.dim(-1) != b.dim(-2) || a.dim(-2) != c.dim(-2) || b.dim(-1) != c.dim(-1)) bad();
  int64_t batch = 1;
  for (int axis = 0; axis < a.rank() - 2; ++axis) {
    if (a.dim(axis) != b.dim(axis) || a.dim(axis) != c.dim(axis)) bad();
    batch *= a.dim(axis);
  }
  dispatch_floating(ctx, "matmul", a.dtype(), [&]<class T>() {
#ifdef EIGENTRACE_WITH_CUDA
    if (ctx.device().is_cuda()) return matmul_cuda<T>(ctx, a, b, c, batch);
#endif
    require_cpu(ctx, "matmul");
    matmul_cpu<T>(a, b, c, batch);
  });
}

}  // namespace eigentrace::kernels
