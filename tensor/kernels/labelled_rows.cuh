#pragma once
// Rows that carry labels, gathered, and their gradient on its way back among rows of zeros.
#ifdef EIGENTRACE_WITH_CUDA
#include <algorithm>

#include "tensor/blas.h"
#include "tensor/kernels/loss_cuda.cuh"
#include "tensor/vec.h"

namespace eigentrace::kernels {
namespace {

constexpr int labelled_warps = 8;

/// A warp a label: its row of x, zeros where it does not count.
template <class T, int width>
__global__ void gather_kernel(Rows<T> x, DeviceLabels labels, T* gathered) {
  const int64_t m = static_cast<int64_t>(blockIdx.x) * labelled_warps + threadIdx.x / 32;
  if (m >= labels.size) return;
  const T* source = labels.used(m) && labels.valid(m) ? x.data + labels.row(m) * x.stride : nullptr;
  for (int64_t j = threadIdx.x % 32 * width; j < x.cols; j += 32 * width) {
    Vec<T, width> pack;
    if (source) pack = load_vec<width>(source + j);
    store_vec(gathered + m * x.cols + j, pack);
  }
}

/// A warp a label: its row of y, to which x_m is added. Rows ascend: each has one label.
template <class T, int width>
__global__ void add_kernel(Rows<T> x, DeviceLabels labels, Rows<T> y) {
  const int64_t m = static_cast<int64_t>(blockIdx.x) * labelled_warps + threadIdx.x / 32;
  if (m >= labels.size || !labels.used(m)) return;
  const int64_t row = labels.row(m);
  if (row < 0 || row >= labels.row_count) return;
  for (int64_t j = threadIdx.x % 32 * width; j < x.cols; j += 32 * width) {
    T* const to = y.data + row * y.stride + j;
    Vec<Arithmetic<T>, width> sum = load_as<Arithmetic<T>, width>(to);
    const Vec<Arithmetic<T>, width> own = load_as<Arithmetic<T>, width>(x.data + m * x.stride + j);
#pragma unroll
    for (int e = 0; e < width; ++e) sum.x[e] += own.x[e];
    store_as(to, sum);
  }
}

constexpr int scatter_rows = 64, scatter_threads = 256;

/// A block writes its rows of y, each once: c x_m at the rows of labels, which ascend, zeros elsewhere;
/// labels that do not count come last. All threads search together: 256 labels a round, one round for each
/// factor of 256 in their number.
template <class T, int width>
__global__ void __launch_bounds__(scatter_threads)
    scatter_kernel(const Arithmetic<T>* c, Rows<T> x, DeviceLabels labels, Rows<T> y) {
  constexpr int warps = scatter_threads / 32, together = 4;
  __shared__ int label_of[scatter_rows];
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * scatter_rows;
  const int rows = y.rows - begin < scatter_rows ? static_cast<int>(y.rows - begin) : scatter_rows;
  const int packs = static_cast<int>(y.cols) / width, lane = static_cast<int>(threadIdx.x % 32),
            warp = static_cast<int>(threadIdx.x / 32);
  const Arithmetic<T> factor = c ? *c : Arithmetic<T>(1);
  if (threadIdx.x < scatter_rows) label_of[threadIdx.x] = -1;
  __syncthreads();
  int64_t first = 0, unknown = labels.size;  // labels before `first` lie before `begin`, the next ones may
  while (unknown > scatter_threads - scatter_rows) {
    const int64_t step = (unknown + scatter_threads - 1) / scatter_threads,
                  at = first + (threadIdx.x + 1) * step - 1;
    const bool before = at < first + unknown && labels.used(at) && labels.row(at) < begin;
    const int64_t known = __syncthreads_count(before) * step;
    first += known;
    unknown = unknown - known < step - 1 ? unknown - known : step - 1;
  }
  if (const int64_t m = first + threadIdx.x; m < labels.size && labels.used(m)) {
    const int64_t row = labels.row(m) - begin;
    if (row >= 0 && row < rows) label_of[row] = static_cast<int>(m);
  }
  __syncthreads();
  for (int j = lane; j < packs; j += 32)
    for (int row0 = warp; row0 < rows; row0 += warps * together) {
      Vec<Arithmetic<T>, width> pack[together];
#pragma unroll
      for (int u = 0; u < together; ++u) {
        const int row = row0 + u * warps, m = row < rows ? label_of[row] : -1;
        if (m >= 0) pack[u] = load_as<Arithmetic<T>, width>(x.data + m * x.stride + j * width);
      }
#pragma unroll
      for (int u = 0; u < together; ++u) {
        const int row = row0 + u * warps;
        if (row >= rows) break;
#pragma unroll
        for (int e = 0; e < width; ++e) pack[u].x[e] *= factor;
        store_as(y.data + (begin + row) * y.stride + j * width, pack[u]);
      }
    }
}

template <class T>
bool in_packs(const Rows<T>& x) {
  return aligned_for_vec(x.data) && x.stride % vec_width<T> == 0 && x.cols % vec_width<T> == 0;
}

template <class T>
void gather_cuda(const Context& ctx, const Rows<T>& x, const DeviceLabels& labels, T* gathered) {
  if (labels.size == 0 || x.cols == 0) return;
  const bool packs = in_packs(x) && aligned_for_vec(gathered);
  launch(ctx, packs ? gather_kernel<T, vec_width<T>> : gather_kernel<T, 1>,
         blocks_for(labels.size, labelled_warps), 32 * labelled_warps, 0, x, labels, gathered);
}

/// The labelled rows, in `memory` unless they lie as they should.
template <class T>
Matrix<const T> gathered_rows(const Context& ctx, const Rows<T>& x, const DeviceLabels& labels,
                              const Tensor& memory) {
  const int64_t width = std::max<int64_t>(x.cols, 1);
  if (!labels.rows) return {x.data, x.rows <= 1 ? width : x.stride};
  gather_cuda(ctx, x, labels, memory.data<T>());
  return {memory.data<T>(), width};
}

}  // namespace
}  // namespace eigentrace::kernels
#endif
