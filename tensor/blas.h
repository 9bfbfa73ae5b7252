#pragma once
// Matrix products on the CPU, through CBLAS. OpenBLAS runs one thread a call; we cut products into tiles
// whose sizes depend on the shape alone and hand those to our own threads: the same bits for any number of
// threads.
#include <algorithm>
#include <string>
#include <type_traits>

#include "tensor/tensor.h"

namespace eigentrace {

/// What must be decided before a program is loaded: OpenBLAS's kernels (it takes SSE3 ones on a CPU newer
/// than itself) and how long waiting threads spin. Where the CPU can do better, sets OPENBLAS_CORETYPE and
/// GOMP_SPINCOUNT and starts this program again, once; variables that the user has set are left alone. Call
/// it first thing in main.
void ensure_fast_blas(int argc, char** argv);
/// The OpenBLAS core in use, such as "SkylakeX".
std::string blas_core();

/// A matrix operand: element (i, j) at data[i·ld + j], or at data[j·ld + i] if transposed.
template <class T>
struct Matrix {
  T* data;
  int64_t ld;
  bool transposed = false;

  Matrix<T> t() const { return {data, ld, !transposed}; }
  /// The same matrix from row i and column j on.
  Matrix<T> at(int64_t i, int64_t j) const {
    return {data + (transposed ? j * ld + i : i * ld + j), ld, transposed};
  }
  operator Matrix<const T>() const requires(!std::is_const_v<T>) { return {data, ld, transposed}; }
};

/// The last two axes of a tensor as a matrix. Error: neither of them is dense.
template <class T>
Matrix<T> matrix_of(const Tensor& tensor, const char* what);

/// C = alpha A B + beta C on the calling thread; A [M,K], B [K,N], C [M,N]. beta = 0 overwrites whatever C
/// held. T: float or double.
template <class T>
void gemm(int64_t M, int64_t N, int64_t K, T alpha, Matrix<const T> a, Matrix<const T> b, T beta,
          Matrix<T> c);

/// Floating-point operations (2MNK a product) asked of gemm since the program started: what benchmarks count.
int64_t gemm_operations();

/// How a product [M,N] is cut into tiles for threads: about square pieces of 256 to 512 rows, fewer rows and
/// a cut along the columns where the matrix is low and wide.
struct Tiling {
  int64_t M, N, rows, cols, row_tiles, col_tiles;
  Tiling(int64_t m, int64_t n);
  int64_t count() const { return row_tiles * col_tiles; }
  struct Tile {
    int64_t row, col, rows, cols;
  };
  Tile operator[](int64_t i) const {
    const int64_t row = i / col_tiles * rows, col = i % col_tiles * cols;
    return {row, col, std::min(rows, M - row), std::min(cols, N - col)};
  }
};

/// gemm, by tiles on all threads.
template <class T>
void parallel_gemm(int64_t M, int64_t N, int64_t K, T alpha, Matrix<const T> a, Matrix<const T> b, T beta,
                   Matrix<T> c);

/// A long sum (weight gradients: K = batch · time) is cut along K into this many pieces, whose results are
/// added in order.
int64_t k_pieces(int64_t M, int64_t N, int64_t K);
/// C = A B with the sum over K cut into k_pieces. scratch: k_pieces · M · N elements (unused if one piece).
template <class T>
void parallel_gemm_long(int64_t M, int64_t N, int64_t K, Matrix<const T> a, Matrix<const T> b, Matrix<T> c,
                        T* scratch);

}  // namespace eigentrace
