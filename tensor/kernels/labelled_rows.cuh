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

constexpr int scatter_rows = 64, scatter_threads = 256;

/// A block writes its rows of y: zeros, then c x_m at the rows of labels, which ascend; those that do not
/// count come last.
template <class T, int width>
__global__ void __launch_bounds__(scatter_threads)
    scatter_kernel(const Arithmetic<T>* c, Rows<T> x, DeviceLabels labels, Rows<T> y) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * scatter_rows;
  const int rows = y.rows - begin < scatter_rows ? static_cast<int>(y.rows - begin) : scatter_rows;
  const int packs = static_cast<int>(y.cols) / width, lane = static_cast<int>(threadIdx.x % 32),
            warp = static_cast<int>(threadIdx.x / 32), warps = scatter_threads / 32;
  for (int row = warp; row < rows; row += warps)
    for (int j = lane; j < packs; j += 32)
      store_as(y.data + (begin + row) * y.stride + j * width, Vec<Arithmetic<T>, width>());
  int64_t first = 0, end = labels.size;  // the first label from row `begin` on lies in between
  while (first < end) {
    const int64_t middle = (first + end) / 2;
    if (labels.used(middle) && labels.row(middle) < begin)
      first = middle + 1;
    else
      end = middle;
  }
  const Arithmetic<T> factor = c ? *c : Arithmetic<T>(1);
  __syncthreads();  // zeros are there
  for (int64_t m = first + warp; m < labels.size && labels.used(m); m += warps) {
    const int64_t row = labels.row(m);
    if (row >= begin + rows) break;
    for (int j = lane; j < packs; j += 32) {
      Vec<Arithmetic<T>, width> pack = load_as<Arithmetic<T>, width>(x.data + m * x.stride + j * width);
#pragma unroll
      for (int e = 0; e < width; ++e) pack.x[e] *= factor;
      store_as(y.data + row * y.stride + j * width, pack);
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
