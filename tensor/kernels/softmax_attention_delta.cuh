#pragma once
// delta_i = dy_i·y_i of softmax attention's backward pass, in one pass over both.
#include "tensor/kernels/softmax_attention_cuda.cuh"

#ifdef EIGENTRACE_WITH_CUDA
namespace eigentrace::kernels {

constexpr int attention_delta_threads = 256, attention_delta_rows = 4;

/// `lanes` lanes a row, 4 elements each at a time, and several rows, so that enough loads are under way;
/// block y: batch entry.
template <class T, int lanes>
__global__ void __launch_bounds__(attention_delta_threads)
    attention_delta_kernel(AttentionOperands<T> a, AttentionGradients<T> g, bool vectors) {
  struct alignas(16) Four {
    T x[4];
  };
  constexpr int each = attention_delta_rows, together = attention_delta_threads / lanes;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const unsigned H = static_cast<unsigned>(a.size.H), rows = static_cast<unsigned>(a.size.T) * H;
  const unsigned first = blockIdx.x * (together * each) + threadIdx.x / lanes;
  const int64_t b = blockIdx.y;
  const T *y[each], *dy[each];
  T* to[each];
  T sum[each] = {};
#pragma unroll
  for (int u = 0; u < each; ++u) {  // rows after the last: the last one again, not written
    const unsigned row = first + u * together, at = row < rows ? row : rows - 1, i = at / H, h = at % H;
    y[u] = a.y.data + b * a.y.batch + h * a.y.head + i * a.y.time;
    dy[u] = g.dy.data + b * g.dy.batch + h * g.dy.head + i * g.dy.time;
    to[u] = row < rows ? g.delta + (b * a.size.H + h) * a.size.T + i : nullptr;
  }
  if (vectors) {
    for (int64_t p = 4 * lane; p < a.size.P; p += 4 * lanes) {
      Four x[each], z[each];
#pragma unroll
      for (int u = 0; u < each; ++u) {
        x[u] = *reinterpret_cast<const Four*>(y[u] + p);
        z[u] = *reinterpret_cast<const Four*>(dy[u] + p);
      }
#pragma unroll
      for (int u = 0; u < each; ++u)
#pragma unroll
        for (int c = 0; c < 4; ++c) sum[u] += x[u].x[c] * z[u].x[c];
    }
  } else {
    for (int64_t p = lane; p < a.size.P; p += lanes)
#pragma unroll
      for (int u = 0; u < each; ++u) sum[u] += y[u][p] * dy[u][p];
  }
#pragma unroll
  for (int u = 0; u < each; ++u) {
#pragma unroll
    for (int m = lanes / 2; m > 0; m /= 2) sum[u] += __shfl_xor_sync(0xFFFFFFFFu, sum[u], m);
    if (lane == 0 && to[u]) *to[u] = sum[u];
  }
}

}  // namespace eigentrace::kernels
#endif
