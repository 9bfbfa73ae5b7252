#pragma once
// Weight gradients by the tensor cores' instructions that one kind of GPU alone has (sm_90a: H100, H200).
#ifdef EIGENTRACE_WITH_CUDA
#include <algorithm>

#include "tensor/context.h"

namespace eigentrace {

/// C(i, j) = Σ_k A(k, i) B(k, j). A [K,M] and B [K,N] as they lie, rows at multiples of 16 bytes; K in
/// `pieces` of `length`.
struct OuterProduct {
  const float *a, *b;
  int64_t a_ld, b_ld;
  int M, N, K;
  int length, pieces;   ///< length: a multiple of outer_depth
  float* products;      ///< [pieces, M, N]
  float* sums;          ///< [pieces, M]: Σ_k A(k, i); null: not wanted
  bool turned = false;  ///< outer_wgmma alone: products are [pieces, N, M], sums [pieces, N]: Σ_k B(k, j)
};

constexpr int outer_depth = 32;  ///< rows of a tile
constexpr int wgmma_rows = 128, wgmma_columns = 256;

/// True iff the sizes are whole tiles of the kernel, and so many that it is faster than outer_kernel.
/// outer_wgmma also takes up to M / wgmma_rows rows of C more, unless turned: wgmma_fits_but_few.
inline bool wgmma_fits(int64_t M, int64_t N, int64_t K) {
  constexpr int64_t least = int64_t{1} << 16;
  return M * N >= least && K > 0 && M % wgmma_rows == 0 && N % wgmma_columns == 0 && K % outer_depth == 0;
}
inline bool wgmma_fits_but_few(int64_t M, int64_t N, int64_t K) {
  const int64_t rest = M % wgmma_rows;
  return rest <= M / wgmma_rows && wgmma_fits(M - rest, N, K);
}
/// Length of the pieces of K: a block for each of 132 processors. A function of the shape alone.
inline int64_t wgmma_length(int64_t M, int64_t N, int64_t K) {
  constexpr int64_t processors = 132, least = 512;
  const int64_t tiles = M / wgmma_rows * (N / wgmma_columns);
  const int64_t pieces = std::max<int64_t>(processors / std::max<int64_t>(tiles, 1), 1);
  return std::max(((K + pieces - 1) / pieces + outer_depth - 1) / outer_depth * outer_depth, least);
}
/// True iff this program has the kernel and the device can run it.
bool wgmma_exists(const Context& ctx);
/// p.products and p.sums; wgmma_fits or wgmma_fits_but_few, wgmma_exists.
void outer_wgmma(Context& ctx, const OuterProduct& p);

}  // namespace eigentrace
#endif
