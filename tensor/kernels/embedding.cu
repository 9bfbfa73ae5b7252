// y[b,t] = table[ids[b,t]] + positions[t] + bias.
//   dtable[v] = Σ dy[k] over the positions k with ids[k] = v, taken in the order of a stable sort by token:
//   one fixed order for a device, without atomics. The CUDA bodies are in embedding_cuda.cuh.
#include <algorithm>
#include <cmath>

#include "tensor/dispatch.h"
#include "tensor/float32_copies.h"
#include "tensor/kernels.h"
#include "tensor/kernels/embedding_cuda.cuh"

namespace eigentrace::kernels {
namespace {

template <class T>
struct LookUp {
  const int32_t* ids;
  const T *table, *positions, *bias;
  T* y;
  int64_t vocabulary, time, width, table_stride, position_stride;
  ET_HD void operator()(int64_t row, int64_t i) const {
    const int64_t id = ids[row];
    // out of range (the host refuses such ids; a device cannot): NaN, not somebody's memory
    T value = id >= 0 && id < vocabulary ? table[id * table_stride + i] : T(NAN);
    if (positions) value += positions[row % time * position_stride + i];
    if (bias) value += bias[i];
    y[row * width + i] = value;
  }
};

template <class T>
void embedding_backward_cpu(const int32_t* ids, const int32_t* order, const Rows<T>& dy,
                            const Rows<T>& dtable) {
  constexpr int64_t block = 256;  // positions whose runs one item sums
  parallel_items((dy.rows + block - 1) / block, [&](int64_t item) {
    const int64_t width = dy.cols;
    for (int64_t k = item * block; k < std::min(dy.rows, (item + 1) * block);) {
      const int32_t id = ids[order[k]];
      int64_t end = k + 1;
      while (end < dy.rows && ids[order[end]] == id) ++end;
      if (k > 0 && ids[order[k - 1]] == id) {  // the run began in an earlier block, which sums it
        k = end;
        continue;
      }
      T* to = dtable.data + id * dtable.stride;
      const T* first = dy.data + order[k] * dy.stride;
      std::copy(first, first + width, to);
      for (int64_t j = k + 1; j < end; ++j) {
        const T* from = dy.data + order[j] * dy.stride;
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) to[i] += from[i];
      }
      const int64_t next = end < dy.rows ? ids[order[end]] : dtable.rows;
      for (int64_t absent = id + 1; absent < next; ++absent)
        std::fill_n(dtable.data + absent * dtable.stride, width, T(0));
      k = end;
    }
  });
  const int64_t first = dy.rows > 0 ? ids[order[0]] : dtable.rows;
  for (int64_t absent = 0; absent < first; ++absent)
    std::fill_n(dtable.data + absent * dtable.stride, dtable.cols, T(0));
}

void check_ids(const char* kernel, const Context& ctx, const Tensor& ids, int64_t vocabulary) {
  if (ids.dtype() != DType::i32 || !ids.contiguous())
    fail(std::string(kernel) + ": contiguous i32 ids expected, found " + to_string(ids));
  if (ctx.dry() || ctx.device().is_cuda()) return;
  const int32_t* id = ids.data<int32_t>();
  for (int64_t k = 0; k < ids.numel(); ++k)
    if (id[k] < 0 || id[k] >= vocabulary)
      fail(std::string(kernel) + ": token " + std::to_string(id[k]) + " at position " + std::to_string(k) +
           " lies outside the vocabulary of " + std::to_string(vocabulary));
}

}  // namespace

void embedding(Context& ctx, const Tensor& ids, const Tensor& table, const Tensor& positions,
               const Tensor& bias, Tensor& y) {
  if (in_float32(ctx, embedding, ids, table, positions, bias, y)) return;
  check_ids("embedding", ctx, ids, table.dim(0));
  dispatch_floating(ctx, "embedding", table.dtype(), [&]<class T>() {
    const int64_t width = table.dim(1);
#ifdef EIGENTRACE_WITH_CUDA
    if (ctx.device().is_cuda()) return embedding_cuda<T>(ctx, ids, table, positions, bias, y);
#endif
    const LookUp<T> look_up{ids.data<int32_t>(),
                            table.data<T>(),
                            positions.defined() ? positions.data<T>() : nullptr,
                            bias.defined() ? bias.data<T>() : nullptr,
                            y.data<T>(),
                            table.dim(0),
                            ids.dim(-1),
                            width,
                            rows_of<T>(table, "embedding: table").stride,
                            positions.defined() ? rows_of<T>(positions, "embedding: positions").stride : 0};
    for_each_in_rows(ctx, ids.numel(), width, look_up);
  });
}

void embedding_backward(Context& ctx, const Tensor& ids, const Tensor& order, const Tensor& dy,
                        Tensor& dtable) {
  if (in_float32(ctx, embedding_backward, ids, order, dy, dtable)) return;
  if (order.dtype() != DType::i32 || !order.contiguous() || order.numel() != ids.numel())
    fail("embedding_backward: `order` of " + std::to_string(ids.numel()) + " i32 positions expected, found " +
         to_string(order));
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda()) return embedding_backward_cuda(ctx, ids, order, dy, dtable);
#endif
  dispatch_floating(ctx, "embedding_backward", dy.dtype(), [&]<class T>() {
    require_cpu(ctx, "embedding_backward");
    embedding_backward_cpu(ids.data<int32_t>(), order.data<int32_t>(),
                           rows_of<T>(dy, "embedding_backward: dy"),
                           rows_of<T>(dtable, "embedding_backward: dtable"));
  });
}

}  // namespace eigentrace::kernels
