// y = x + a ∘ b, b broadcast over rows: the direct term of a recurrence, D u.
//   da = dy ∘ b (+ what others have sent),  db = Σ_rows dy ∘ a, in a fixed order
// On CUDA the backward pass is one: dy, a (and sent) are read once, da written, db's parts summed on the way.
#include <algorithm>

#include "tensor/column_sums.h"
#include "tensor/elements.h"
#include "tensor/kernels.h"

namespace eigentrace::kernels {
namespace {

struct AddProduct {
  template <class T>
  ET_HD T operator()(T x, T a, T b) const {
    return x + a * b;
  }
};

/// The same elements as [rows, columns].
Tensor matrix_of(const Tensor& x, int64_t columns) {
  return x.reshape({columns == 0 ? 0 : x.numel() / columns, columns});
}

#ifdef EIGENTRACE_WITH_CUDA
template <class T>
struct ProductOperands {
  Rows<T> dy, a, sent, da;  ///< data null: absent
  const T* b;
  int64_t group;
  T* partial;  ///< [chunks, C] or null
  int64_t chunk;
};

/// Block: 32 packs of columns, 8 rows at a time.
template <int width, class T>
__global__ void __launch_bounds__(256) add_product_kernel(const __grid_constant__ ProductOperands<T> p) {
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x) * width;
  const int64_t begin = blockIdx.y * p.chunk, end = begin + p.chunk < p.dy.rows ? begin + p.chunk : p.dy.rows;
  const bool inside = column < p.dy.cols;
  Vec<T, width> sum, b;
  if (inside) {
#pragma unroll
    for (int i = 0; i < width; ++i) b.x[i] = p.b[(column + i) / p.group];
#pragma unroll 2
    for (int64_t r = begin + threadIdx.y; r < end; r += 8) {
      const Vec<T, width> dy = load_vec<width>(p.dy.data + r * p.dy.stride + column);
      if (p.partial) {
        const Vec<T, width> a = load_vec<width>(p.a.data + r * p.a.stride + column);
#pragma unroll
        for (int i = 0; i < width; ++i) sum.x[i] += dy.x[i] * a.x[i];
      }
      if (!p.da.data) continue;
      Vec<T, width> da;
      if (p.sent.data) da = load_vec<width>(p.sent.data + r * p.sent.stride + column);
#pragma unroll
      for (int i = 0; i < width; ++i) da.x[i] += dy.x[i] * b.x[i];
      store_vec(p.da.data + r * p.da.stride + column, da);
    }
  }
  if (!p.partial) return;
  Vec<T, width>* shared = dynamic_shared<Vec<T, width>>();
  shared[threadIdx.y * 32 + threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || !inside) return;
  for (int y = 1; y < 8; ++y)
#pragma unroll
    for (int i = 0; i < width; ++i) sum.x[i] += shared[y * 32 + threadIdx.x].x[i];
  store_vec(p.partial + blockIdx.y * p.dy.cols + column, sum);
}

template <class T>
Rows<T> rows_or_none(const Tensor& x, int64_t columns) {
  if (!x.defined()) return {nullptr, 0, 0, 0};
  return rows_of<T>(matrix_of(x, columns), "add_product_backward");
}
#endif

}  // namespace

void add_product(Context& ctx, const Tensor& x, const Tensor& a, const Tensor& b, Tensor& y) {
  if (!(x.shape() == y.shape() && a.shape() == y.shape() && b.shape() == y.shape()))
    fail("add_product: operands are " + to_string(x) + ", " + to_string(a) + ", " + to_string(b) + " and " +
         to_string(y) + "; equal shapes expected");
  dispatch_floating(ctx, "add_product", y.dtype(), [&]<class T>() {
    map_elements<T>(ctx, AddProduct{}, std::array{x, a, b}, y);
  });
}

void add_product_backward(Context& ctx, const Tensor& dy, const Tensor& a, const Tensor& b, int64_t group,
                          const Tensor& sent, Tensor& da, Tensor& db) {
  const int64_t columns = b.numel() * group, rows = columns == 0 ? 0 : dy.numel() / columns;
  const bool cuda = ctx.device().is_cuda();
  const int64_t tiles = std::max<int64_t>(1, (columns + 127) / 128),
                wanted = std::max<int64_t>(1, 528 / tiles);
  const int64_t chunk = std::max<int64_t>(32, (rows + wanted - 1) / wanted),
                chunks = (rows + chunk - 1) / chunk;
  Tensor partial, sums = db;
  if (db.defined()) partial = ctx.empty(cuda ? Shape{chunks, columns} : dy.shape(), dy.dtype());
  if (db.defined() && group > 1) sums = ctx.empty({columns}, dy.dtype());
#ifdef EIGENTRACE_WITH_CUDA
  if (cuda)
    dispatch_floating(ctx, "add_product_backward", dy.dtype(), [&]<class T>() {
      const ProductOperands<T> p{rows_or_none<T>(dy, columns),
                                 rows_or_none<T>(db.defined() ? a : Tensor{}, columns),
                                 rows_or_none<T>(sent, columns),
                                 rows_or_none<T>(da, columns),
                                 b.data<T>(),
                                 group,
                                 db.defined() ? partial.data<T>() : nullptr,
                                 chunk};
      const auto fits = [](const Rows<T>& x) {
        return !x.data || (aligned_for_vec(x.data) && x.stride % vec_width<T> == 0);
      };
      const auto start = [&]<int width>() {
        launch(ctx, add_product_kernel<width, T>,
               dim3(blocks_for(columns, 32 * width), static_cast<unsigned>(chunks)), dim3(32, 8),
               256 * width * sizeof(T), p);
      };
      if (rows > 0 && columns % vec_width<T> == 0 && fits(p.dy) && fits(p.a) && fits(p.sent) && fits(p.da))
        start.template operator()<vec_width<T>>();
      else if (rows > 0)
        start.template operator()<1>();
      if (db.defined()) sum_rows(ctx, p.partial, 1, chunks, columns, DenseSink<T>{sums.data<T>()});
    });
#endif
  if (!cuda && db.defined()) {
    binary(ctx, Binary::mul, dy, a, partial);
    sum(ctx, matrix_of(partial, columns), 0, sums);
  }
  if (db.defined() && group > 1) {
    Tensor flat = db.reshape({b.numel()});
    sum(ctx, sums.reshape({b.numel(), group}), 1, flat);
  }
  if (cuda || !da.defined()) return;
  const Tensor wide = b.reshape({1, b.numel(), 1}).expand({rows, b.numel(), group});
  const auto groups = [&](const Tensor& x) { return x.reshape({rows, b.numel(), group}); };
  Tensor to = groups(da);
  if (sent.defined())
    add_product(ctx, groups(sent), groups(dy), wide, to);
  else
    binary(ctx, Binary::mul, groups(dy), wide, to);
}

}  // namespace eigentrace::kernels
