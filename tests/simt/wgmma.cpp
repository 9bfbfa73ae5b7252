#include "tests/simt/wgmma.h"

namespace simt {

namespace {

float as_float(uint32_t bits) { return __uint_as_float(bits); }

/// An operand in shared memory as a descriptor says: 16-byte pieces of rows of 32, 64 or 128 bytes, swizzled
/// by the address; eights of rows `eights` bytes apart, rows wider than that in parts `parts` bytes apart.
struct Operand {
  uint32_t start, parts, eights, row_bytes;
  explicit Operand(uint64_t descriptor)
      : start(static_cast<uint32_t>(descriptor & 0x3FFF) << 4),
        parts(static_cast<uint32_t>(descriptor >> 16 & 0x3FFF) << 4),
        eights(static_cast<uint32_t>(descriptor >> 32 & 0x3FFF) << 4),
        row_bytes(256u >> (descriptor >> 62)) {}
  const unsigned char* at(uint32_t row, uint32_t byte) const {
    uint32_t place =
        start + row / 8 * eights + row % 8 * row_bytes + byte / row_bytes * parts + byte % row_bytes;
    place ^= (place >> 7 & (row_bytes / 16 - 1)) << 4;
    return current.dynamic_shared + place;
  }
  float tf32(uint32_t row, uint32_t k) const {
    uint32_t bits;
    std::memcpy(&bits, at(row, 4 * k), 4);
    return as_float(bits & 0xFFFFE000u);
  }
  /// Element i of the operand's rows (of A or columns of B) at depth k; `deep`: depth is what rows are.
  float bf16(uint32_t i, uint32_t k, bool deep) const {
    uint16_t bits;
    std::memcpy(&bits, deep ? at(k, 2 * i) : at(i, 2 * k), 2);
    return as_float(uint32_t{bits} << 16);
  }
};

}  // namespace

void run_product(const Product& p) {
  const unsigned g = lane() / 4, t = lane() % 4, first_row = current.linear / 32 % 4 * 16;
  const Operand left(p.left), right(p.right);
  const unsigned depth = p.is_bf16 ? 16 : 8;
  float a[2][16];  // rows g and g + 8
  for (unsigned r = 0; r < 2; ++r)
    for (unsigned k = 0; k < depth; ++k) {
      const unsigned row = first_row + g + 8 * r;
      if (p.left_in_memory) {
        a[r][k] = p.is_bf16 ? left.bf16(row, k, p.left_rows) : left.tf32(row, k);
      } else if (p.is_bf16) {
        const uint32_t pair = p.a[k % 8 / 2][k / 8 * 2 + r];
        a[r][k] = as_float(k % 2 ? pair & 0xFFFF0000u : pair << 16);
      } else {
        a[r][k] = as_float(p.a[k % 4][k / 4 * 2 + r] & 0xFFFFE000u);
      }
    }
  for (unsigned c = 0; c < static_cast<unsigned>(p.columns); c += 8)
    for (unsigned e = 0; e < 2; ++e) {
      float sum[2] = {};
      for (unsigned k = 0; k < depth; ++k) {
        const unsigned column = c + 2 * t + e;
        const float b = p.is_bf16 ? right.bf16(column, k, p.right_rows) : right.tf32(column, k);
        sum[0] += a[0][k] * b, sum[1] += a[1][k] * b;
      }
      for (unsigned r = 0; r < 2; ++r) {
        float& d = p.d[c / 2 + 2 * r + e];
        d = p.adds ? d + sum[r] : sum[r];
      }
    }
}

}  // namespace simt
