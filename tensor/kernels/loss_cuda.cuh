#pragma once
// What the losses share on CUDA: one block a row, sums in an order that the row's length fixes. A row or
// class out of range cannot be an error here, since the host does not see the labels: it gives a loss of NaN,
// which the step's guard reports.
#ifdef EIGENTRACE_WITH_CUDA
#include <algorithm>
#include <climits>

#include "tensor/dispatch.h"
#include "tensor/kernels.h"
#include "tensor/math.h"

namespace eigentrace::kernels {

constexpr int row_threads = 256;

struct DeviceLabels {
  const int32_t *rows, *labels;  ///< rows null: label m's row is m
  const float* weights;
  const double* count;
  int64_t size, row_count, classes;

  DeviceLabels(const LabelledRows& l, int64_t rows_in_all, int64_t class_count)
      : rows(l.rows.defined() ? l.rows.data<int32_t>() : nullptr),
        labels(l.labels.data<int32_t>()),
        weights(l.weights.data<float>()),
        count(l.count.data<double>()),
        size(l.labels.numel()),
        row_count(rows_in_all),
        classes(class_count) {}
  __device__ bool used(int64_t m) const { return weights[m] != 0; }
  __device__ int64_t row(int64_t m) const { return rows ? rows[m] : m; }
  __device__ bool valid(int64_t m) const {
    return row(m) >= 0 && row(m) < row_count && labels[m] >= 0 && labels[m] < classes;
  }
  __device__ double per_count() const { return *count == 0 ? 0 : 1 / *count; }
};

template <class T>
struct Largest {
  T value;
  int index;
  __device__ void join(const Largest& other) {
    if (other.value > value || (other.value == value && other.index < index)) *this = other;
  }
};

/// The largest value of the block's threads and its lowest index, to all of them. Every thread of the block.
template <class T>
__device__ Largest<T> block_largest(Largest<T> mine) {
  __shared__ T values[32];
  __shared__ int indices[32];
  for (int step = 16; step > 0; step /= 2) {
    const Largest<T> other{__shfl_xor_sync(0xFFFFFFFFu, mine.value, step),
                           __shfl_xor_sync(0xFFFFFFFFu, mine.index, step)};
    mine.join(other);
  }
  __syncthreads();  // an earlier call's readers
  if (threadIdx.x % 32 == 0) values[threadIdx.x / 32] = mine.value, indices[threadIdx.x / 32] = mine.index;
  __syncthreads();
  Largest<T> all{values[0], indices[0]};
  for (unsigned w = 1; w < (blockDim.x + 31) / 32; ++w) all.join({values[w], indices[w]});
  if (all.index == INT_MAX) all.index = 0;  // nothing but NaN
  return all;
}

/// Σ over the block's threads, the same bits in all of them.
template <class T>
__device__ T block_sum(T mine) {
  __shared__ T values[32];
  for (int step = 16; step > 0; step /= 2) mine += __shfl_xor_sync(0xFFFFFFFFu, mine, step);
  __syncthreads();
  if (threadIdx.x % 32 == 0) values[threadIdx.x / 32] = mine;
  __syncthreads();
  T sum = values[0];
  for (unsigned w = 1; w < (blockDim.x + 31) / 32; ++w) sum += values[w];
  return sum;
}

template <class T>
__device__ Largest<T> row_largest(const T* z, int n) {
  Largest<T> mine{static_cast<T>(-INFINITY), INT_MAX};
  for (int j = static_cast<int>(threadIdx.x); j < n; j += static_cast<int>(blockDim.x)) mine.join({z[j], j});
  return block_largest(mine);
}

template <class T>
__device__ T row_exp_sum_cuda(const T* z, int n, T shift) {
  T sum = 0;
  for (int j = static_cast<int>(threadIdx.x); j < n; j += static_cast<int>(blockDim.x))
    sum += fast_exp(z[j] - shift);
  return block_sum(sum);
}

/// Threads for a row of n elements: whole warps.
inline unsigned threads_of_row(int64_t n) {
  return n >= row_threads ? row_threads : static_cast<unsigned>((std::max<int64_t>(n, 1) + 31) / 32 * 32);
}

constexpr int sum_threads = 1024;

/// One block: value, Σ w loss and Σ w [argmax = label] in double, each thread every 1024th label, then a
/// tree.
template <class T>
__global__ void __launch_bounds__(sum_threads)
    sum_losses_kernel(DeviceLabels labels, const double* losses, const int32_t* argmax, T* value,
                      double* loss_sum, double* correct) {
  double sum = 0, right = 0;
#pragma unroll 4
  for (int64_t m = threadIdx.x; m < labels.size; m += sum_threads) {  // no branch: loads run ahead
    const double weight = labels.weights[m], loss = losses[m];
    const bool hit = argmax[m] == labels.labels[m];
    sum += weight != 0 ? weight * loss : 0;
    right += hit ? weight : 0;
  }
  sum = block_sum(sum);
  right = block_sum(right);
  if (threadIdx.x == 0) {
    *loss_sum = sum, *correct = right;
    *value = static_cast<T>(sum * labels.per_count());
  }
}

template <class T>
void sum_losses_cuda(Context& ctx, const DeviceLabels& labels, const double* losses, LossResults results) {
  launch(ctx, sum_losses_kernel<T>, 1, sum_threads, 0, labels, losses, results.argmax.data<int32_t>(),
         results.value.data<T>(), results.loss_sum.data<double>(), results.correct.data<double>());
}

}  // namespace eigentrace::kernels
#endif
