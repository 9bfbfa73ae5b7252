#pragma once
// What both bodies of optimiser.cu share, and its CUDA bodies: one launch for all parameters.
//
// The table of tensors is an argument of the kernel: it needs no device memory, no copy, no owner, and a
// captured step carries it in its node. A block finds its tensor by bisection of the tensors' first blocks.
// Bytes a float32 parameter: 28 for adamw (g, p, m, v read, p, m, v written), 4 for the norm. 2.2 M
// parameters (MQAR): 62 MB and 9 MB, a floor of 15 and 2 µs at 4.2 TB/s.
#include <cmath>
#include <cstdint>
#include <vector>

#include "tensor/dispatch.h"
#include "tensor/kernels.h"
#include "tensor/vec.h"

namespace eigentrace::kernels {

ET_HD double clip_factor(double clip, double norm) {
  const double factor = clip > 0 ? clip / (norm + 1e-6) : 1.0;
  return factor < 1.0 ? factor : 1.0;
}

/// The update of a group in the element type.
template <class T>
struct AdamUpdate {
  T factor, beta1, beta2, keep, step, inverse_root, epsilon;
  bool published_complex;

  AdamUpdate() = default;
  ET_HD AdamUpdate(const AdamGroup& group, const double* rate, double clip_by, bool published)
      : factor(T(clip_by)),
        beta1(T(group.beta1)),
        beta2(T(group.beta2)),
        keep(T(1 - rate[0] * group.weight_decay)),
        step(T(rate[0] / rate[1])),
        inverse_root(T(1 / std::sqrt(rate[2]))),
        epsilon(T(group.epsilon)),
        published_complex(published) {}

  ET_HD void real(T& p, T g, T& m, T& v) const {
    const T gradient = g * factor;
    const T mean = beta1 * m + (T(1) - beta1) * gradient;
    const T square = beta2 * v + (T(1) - beta2) * gradient * gradient;
    m = mean, v = square;
    p = keep * p - step * mean / (std::sqrt(square) * inverse_root + epsilon);
  }
  ET_HD void complex(T* p, const T* g, T* m, T* v) const {
    const T re = g[0] * factor, im = g[1] * factor;
    const T square = beta2 * v[0] + (T(1) - beta2) * (re * re + im * im);
    const T divisor = std::sqrt(square) * inverse_root + epsilon;
    const T parts[2] = {re, published_complex ? -im : im};
    for (int c = 0; c < 2; ++c) {
      m[c] = beta1 * m[c] + (T(1) - beta1) * parts[c];
      v[c] = square;
      p[c] = keep * p[c] - step * m[c] / divisor;
    }
  }
};

constexpr int64_t norm_chunk = 4096;  // elements of a block of global_norm
inline int64_t norm_chunks(const std::vector<Tensor>& tensors) {
  int64_t chunks = 0;
  for (const Tensor& t : tensors) chunks += (t.numel() + norm_chunk - 1) / norm_chunk;
  return chunks;
}

#ifdef EIGENTRACE_WITH_CUDA
// Kernels take 32 KB of arguments since CUDA 12.1, 4 KB before.
#if defined(CUDART_VERSION) && CUDART_VERSION < 12010
constexpr int table_size = 40;
#else
constexpr int table_size = 128;
#endif
constexpr int64_t adam_chunk = 2048;  // elements of a block: even, so that no complex pair is cut
constexpr unsigned optimiser_threads = 256;

template <class Entry>
struct Table {
  int count = 0;
  unsigned blocks = 0;
  Entry entries[table_size];
};

/// The last entry whose first block is not after `block`.
template <class Entry>
__device__ __forceinline__ int entry_of(const Table<Entry>& table, unsigned block) {
  int low = 0, high = table.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (table.entries[middle].first_block <= block)
      low = middle;
    else
      high = middle;
  }
  return low;
}

template <class T>
struct NormEntry {
  const T* data;
  int64_t count;
  unsigned first_block;
  bool vector;
};
template <class T>
struct AdamEntry {
  T *p, *g, *m, *v;
  AdamGroup group;
  int64_t count;
  unsigned first_block;
  int row;
  bool is_complex, vector;
};

/// Σ over a block of 256 threads in a fixed order, to thread 0.
__device__ inline double sum_of_block(double value) {
  __shared__ double warps[optimiser_threads / 32];
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, step);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = 0;
  if (threadIdx.x == 0)
    for (unsigned w = 0; w < optimiser_threads / 32; ++w) sum += warps[w];
  return sum;
}

template <class T>
__global__ void __launch_bounds__(optimiser_threads)
    norm_kernel(const __grid_constant__ Table<NormEntry<T>> table, double* partial) {
  constexpr int width = vec_width<T>, packs = norm_chunk / (width * optimiser_threads);
  const NormEntry<T>& entry = table.entries[entry_of(table, blockIdx.x)];
  const int64_t begin = (blockIdx.x - entry.first_block) * norm_chunk;
  const T* x = entry.data + begin;
  const int n = static_cast<int>(entry.count - begin < norm_chunk ? entry.count - begin : norm_chunk);
  double sum = 0;
  if (entry.vector && n == norm_chunk) {
    Vec<T, width> packed[packs];
#pragma unroll
    for (int k = 0; k < packs; ++k)
      packed[k] = load_vec<width>(x + (k * optimiser_threads + threadIdx.x) * width);
#pragma unroll
    for (int k = 0; k < packs; ++k)
#pragma unroll
      for (int i = 0; i < width; ++i)
        sum += static_cast<double>(packed[k].x[i]) * static_cast<double>(packed[k].x[i]);
  } else {
    for (int i = threadIdx.x; i < n; i += optimiser_threads)
      sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  }
  sum = sum_of_block(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

static __global__ void norm_of_partials(const double* partial, int64_t count, double* norm) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += optimiser_threads) sum += partial[i];
  sum = sum_of_block(sum);
  if (threadIdx.x == 0) *norm = std::sqrt(sum);
}

template <class T>
__global__ void __launch_bounds__(optimiser_threads)
    adamw_kernel(const __grid_constant__ Table<AdamEntry<T>> table, const double* rates, const double* norm,
                 double clip, bool published_complex) {
  constexpr int width = vec_width<T>, packs = adam_chunk / (width * optimiser_threads);
  const double n = *norm;
  if (!(n - n == 0)) return;  // not finite
  const AdamEntry<T>& entry = table.entries[entry_of(table, blockIdx.x)];
  const double* rate = rates + 4 * entry.row;
  const bool active = rate[3] != 0;
  if (!active && !entry.group.accumulates) return;
  const int64_t begin = (blockIdx.x - entry.first_block) * adam_chunk;
  const int count = static_cast<int>(entry.count - begin < adam_chunk ? entry.count - begin : adam_chunk);
  T *p = entry.p + begin, *g = entry.g + begin, *m = entry.m + begin, *v = entry.v + begin;
  if (!active) {
    const T factor = T(clip_factor(clip, n));
    for (int i = threadIdx.x; i < count; i += optimiser_threads) g[i] *= factor;
    return;
  }
  __shared__ AdamUpdate<T> shared;
  if (threadIdx.x == 0) shared = AdamUpdate<T>(entry.group, rate, clip_factor(clip, n), published_complex);
  if (entry.vector && count == adam_chunk) {
    Vec<T, width> vp[packs], vg[packs], vm[packs], vv[packs];
#pragma unroll
    for (int k = 0; k < packs; ++k) {  // under way while thread 0 divides
      const int at = static_cast<int>(k * optimiser_threads + threadIdx.x) * width;
      vp[k] = load_vec<width>(p + at), vg[k] = load_vec<width>(g + at);
      vm[k] = load_vec<width>(m + at), vv[k] = load_vec<width>(v + at);
    }
    __syncthreads();
    const AdamUpdate<T> update = shared;
#pragma unroll
    for (int k = 0; k < packs; ++k) {
      const int at = static_cast<int>(k * optimiser_threads + threadIdx.x) * width;
      if (entry.is_complex) {
#pragma unroll
        for (int i = 0; i < width; i += 2) update.complex(vp[k].x + i, vg[k].x + i, vm[k].x + i, vv[k].x + i);
      } else {
#pragma unroll
        for (int i = 0; i < width; ++i) update.real(vp[k].x[i], vg[k].x[i], vm[k].x[i], vv[k].x[i]);
      }
      store_vec(p + at, vp[k]), store_vec(m + at, vm[k]), store_vec(v + at, vv[k]);
      if (entry.group.accumulates) store_vec(g + at, Vec<T, width>{});
    }
    return;
  }
  __syncthreads();
  const AdamUpdate<T> update = shared;
  const int step = entry.is_complex ? 2 : 1;
  for (int i = static_cast<int>(threadIdx.x) * step; i < count; i += optimiser_threads * step) {
    if (entry.is_complex)
      update.complex(p + i, g + i, m + i, v + i);
    else
      update.real(p[i], g[i], m[i], v[i]);
    if (entry.group.accumulates)
      for (int k = 0; k < step; ++k) g[i + k] = T(0);
  }
}

/// run(table) for tables that together hold all of entries(i), i in 0..count−1; `chunk` elements a block.
template <class Entry>
void for_each_table(size_t count, int64_t chunk, const auto& entry_at, const auto& run) {
  Table<Entry> table;
  for (size_t i = 0; i < count; ++i) {
    Entry entry = entry_at(i);
    if (entry.count == 0) continue;
    entry.first_block = table.blocks;
    table.blocks += blocks_for(entry.count, chunk);
    table.entries[table.count++] = entry;
    if (table.count == table_size) run(table), table.count = 0, table.blocks = 0;
  }
  if (table.count > 0) run(table);
}

template <class T>
void global_norm_cuda(Context& ctx, const std::vector<Tensor>& gradients, const Tensor& partial,
                      Tensor& norm) {
  double* sums = partial.data<double>();
  const auto entry_at = [&](size_t i) {
    const T* data = gradients[i].data<T>();
    return NormEntry<T>{data, gradients[i].numel(), 0, aligned_for_vec(data)};
  };
  for_each_table<NormEntry<T>>(gradients.size(), norm_chunk, entry_at, [&](const auto& table) {
    launch(ctx, norm_kernel<T>, table.blocks, optimiser_threads, 0, table, sums);
    sums += table.blocks;
  });
  launch(ctx, norm_of_partials, 1, optimiser_threads, 0, partial.data<double>(), partial.numel(),
         norm.data<double>());
}

template <class T>
void adamw_cuda(Context& ctx, const std::vector<AdamTensors>& tensors, const std::vector<AdamGroup>& groups,
                const Tensor& rates, const Tensor& norm, double clip, bool published_complex) {
  const auto entry_at = [&](size_t i) {
    const AdamTensors& t = tensors[i];
    T *p = t.value.data<T>(), *g = t.gradient.data<T>(), *m = t.m.data<T>(), *v = t.v.data<T>();
    return AdamEntry<T>{p,
                        g,
                        m,
                        v,
                        groups[static_cast<size_t>(t.group)],
                        t.value.numel(),
                        0,
                        t.group,
                        t.is_complex,
                        aligned_for_vec(p) && aligned_for_vec(g) && aligned_for_vec(m) && aligned_for_vec(v)};
  };
  for_each_table<AdamEntry<T>>(tensors.size(), adam_chunk, entry_at, [&](const auto& table) {
    launch(ctx, adamw_kernel<T>, table.blocks, optimiser_threads, 0, table, rates.data<double>(),
           norm.data<double>(), clip, published_complex);
  });
}
#endif

}  // namespace eigentrace::kernels
