#pragma once
// Waves of tiles: what float32 products without tensor cores lose beside cuBLASLt's rate for large ones, and
// what gives part of it back. Tiles of 128 × 128 run two on a multiprocessor, larger ones alone; a last wave
// that is almost empty takes the time of a full one.
#ifdef EIGENTRACE_WITH_CUDA
#include <cublasLt.h>

#include "tensor/cuda_blas.h"

namespace eigentrace {

/// Tiles of that many elements that a multiprocessor works on at once.
constexpr int64_t tiles_at_once(int64_t elements) { return elements >= 128 * 256 ? 1 : 2; }

/// The rows of C that a product is first made for, the others being less than an eighth of a wave; 0: it is
/// made at once. 51200 × 512 are 6.06 waves of an H200's 264 tiles, and take the time of seven.
template <class T, class Out>
int64_t rows_of_whole_waves(const Context& ctx, const Product<T, Out>& p, int64_t multiprocessors) {
  constexpr int64_t tile = 128, least_k = 256;
  if (sizeof(T) != 4 || ctx.precision != Precision::fp32 || p.batch > 1 || p.c.transposed) return 0;
  if (p.K < least_k || p.M % tile != 0 || p.N % tile != 0) return 0;
  const int64_t across = p.N / tile, tiles = p.M / tile * across,
                wave = multiprocessors * tiles_at_once(tile * tile), whole = tiles / wave * wave;
  const bool almost_empty = tiles > whole && 8 * (tiles - whole) <= wave;
  return whole > 0 && almost_empty && whole % across == 0 ? whole / across * tile : 0;
}

/// The product for `count` rows of C from `first` on; one product, C not transposed.
template <class T, class Out>
Product<T, Out> rows_of(Product<T, Out> p, int64_t first, int64_t count) {
  p.M = count;
  p.a = p.a.at(first, 0), p.c = p.c.at(first, 0);
  if (p.from) p.from += first * p.from_ld;
  return p;
}

/// Which of cuBLASLt's `count` answers a product takes. It puts smaller tiles first where sums are short: the
/// largest is faster if its waves are nine tenths full. Longer sums: the first.
template <class T, class Out>
int answer_of(const Product<T, Out>& p, cublasComputeType_t compute,
              const cublasLtMatmulHeuristicResult_t* answers, int count, int64_t multiprocessors) {
  constexpr int64_t most_k = 256;
  if (sizeof(T) != 4 || compute != CUBLAS_COMPUTE_32F || p.batch > 1 || p.K > most_k) return 0;
  int chosen = 0;
  int64_t largest = 0;
  for (int i = 0; i < count; ++i) {
    const auto read = [&](cublasLtMatmulAlgoConfigAttributes_t what) {
      int32_t value = 0;
      size_t bytes = 0;
      return cublasLtMatmulAlgoConfigGetAttribute(&answers[i].algo, what, &value, sizeof value, &bytes) ==
                     CUBLAS_STATUS_SUCCESS
                 ? value
                 : 0;
    };
    const int tile = read(CUBLASLT_ALGO_CONFIG_TILE_ID);
    if (answers[i].state != CUBLAS_STATUS_SUCCESS || read(CUBLASLT_ALGO_CONFIG_SPLITK_NUM) > 1) continue;
    if (tile != CUBLASLT_MATMUL_TILE_128x128 && tile != CUBLASLT_MATMUL_TILE_256x128) continue;
    // Its first axis is our second.
    const int64_t columns = tile == CUBLASLT_MATMUL_TILE_256x128 ? 256 : 128, rows = 128;
    if (p.M % rows != 0 || p.N % columns != 0) continue;
    const int64_t tiles = p.M / rows * (p.N / columns),
                  wave = multiprocessors * tiles_at_once(rows * columns), waves = (tiles + wave - 1) / wave;
    if (10 * tiles >= 9 * waves * wave && rows * columns > largest) largest = rows * columns, chosen = i;
  }
  return chosen;
}

}  // namespace eigentrace
#endif
