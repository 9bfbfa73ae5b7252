#include "spectral/hippo.h"

#include <fmt/format.h>

#include <cmath>

#include "spectral/eigen.h"
#include "tensor/error.h"

namespace eigentrace {

std::vector<double> hippo_legs(int64_t n) {
  if (n < 1) fail(fmt::format("hippo_legs: n: expected at least 1 state, found {}", n));
  std::vector<double> a(n * n, 0.0);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t k = 0; k < i; ++k) a[i * n + k] = -std::sqrt(2.0 * i + 1) * std::sqrt(2.0 * k + 1);
    a[i * n + i] = -(i + 1.0);
  }
  return a;
}

HippoDplr hippo_dplr(int64_t n) {
  if (n < 1) fail(fmt::format("hippo_dplr: n: expected at least 1 state, found {}", n));
  // A + ppᵀ + ½I is −½√(2n+1)√(2k+1) below the diagonal and the opposite above: K in closed form, exactly
  // skew.
  std::vector<Complex128> minus_i_k(n * n);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t k = 0; k < i; ++k) {
      const double entry = 0.5 * std::sqrt(2.0 * i + 1) * std::sqrt(2.0 * k + 1);
      minus_i_k[i * n + k] = {0, entry};
      minus_i_k[k * n + i] = {0, -entry};
    }
  const HermitianResult eigen = eigen_hermitian(n, minus_i_k);
  HippoDplr h;
  h.n = n, h.v = eigen.vectors;
  h.lambda.resize(n), h.p.resize(n), h.b.resize(n);
  for (int64_t k = 0; k < n; ++k) {
    h.lambda[k] = {-0.5, eigen.values[k]};
    const Complex128 first = h.v[k];
    const Complex128 turn = first == 0.0 ? 1.0 : std::conj(first) / std::abs(first);
    for (int64_t i = 0; i < n; ++i) {
      Complex128& v = h.v[i * n + k];
      v = i == 0 ? Complex128(std::abs(first)) : v * turn;
      h.p[k] += std::conj(v) * std::sqrt(i + 0.5);
      h.b[k] += std::conj(v) * std::sqrt(2.0 * i + 1);
    }
  }
  return h;
}

HippoBlocks hippo_blocks(int64_t state_dim, int64_t num_blocks, bool conj_sym) {
  if (state_dim < 1 || num_blocks < 1 || state_dim % num_blocks != 0)
    fail(fmt::format(
        "hippo_blocks: num_blocks: expected a divisor of state_dim = {}, found {}; change one of them",
        state_dim, num_blocks));
  HippoBlocks blocks;
  blocks.state_dim = state_dim, blocks.num_blocks = num_blocks, blocks.block = state_dim / num_blocks;
  if (conj_sym && blocks.block % 2 != 0)
    fail(fmt::format(
        "hippo_blocks: conj_sym: expected blocks of an even number of states, found {} = {}/{}; set "
        "conj_sym: False or change num_blocks",
        blocks.block, state_dim, num_blocks));
  blocks.kept = conj_sym ? blocks.block / 2 : blocks.block;
  const HippoDplr one = hippo_dplr(blocks.block);
  for (int64_t b = 0; b < num_blocks; ++b)
    blocks.lambda.insert(blocks.lambda.end(), one.lambda.begin(), one.lambda.begin() + blocks.kept);
  for (int64_t i = 0; i < blocks.block; ++i)
    blocks.v.insert(blocks.v.end(), one.v.begin() + i * blocks.block,
                    one.v.begin() + i * blocks.block + blocks.kept);
  return blocks;
}

std::vector<std::complex<double>> HippoBlocks::adjoint_times(std::span<const double> b,
                                                             int64_t columns) const {
  if (columns < 1 || static_cast<int64_t>(b.size()) != state_dim * columns)
    fail(fmt::format("HippoBlocks::adjoint_times: b: expected [{}, {}] values, found {}", state_dim, columns,
                     b.size()));
  std::vector<Complex128> out(states() * columns);
  for (int64_t q = 0; q < num_blocks; ++q)
    for (int64_t k = 0; k < kept; ++k)
      for (int64_t i = 0; i < block; ++i) {
        const Complex128 weight = std::conj(v[i * kept + k]);
        for (int64_t c = 0; c < columns; ++c)
          out[(q * kept + k) * columns + c] += weight * b[(q * block + i) * columns + c];
      }
  return out;
}

std::vector<std::complex<double>> HippoBlocks::times(std::span<const std::complex<double>> c,
                                                     int64_t rows) const {
  if (rows < 1 || static_cast<int64_t>(c.size()) != rows * state_dim)
    fail(fmt::format("HippoBlocks::times: c: expected [{}, {}] values, found {}", rows, state_dim, c.size()));
  std::vector<Complex128> out(rows * states());
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t q = 0; q < num_blocks; ++q)
      for (int64_t i = 0; i < block; ++i)
        for (int64_t k = 0; k < kept; ++k)
          out[r * states() + q * kept + k] += c[r * state_dim + q * block + i] * v[i * kept + k];
  return out;
}

}  // namespace eigentrace
