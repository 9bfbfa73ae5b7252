#pragma once
// bf16: float32's upper half, rounded to nearest, ties to even. A type of memory, not of arithmetic: it is
// read as float32 and written from float32.
#include <bit>
#include <cstdint>
#include <type_traits>

#include "tensor/hd.h"

namespace eigentrace {

struct BFloat16 {
  uint16_t bits;

  BFloat16() = default;
  ET_HD BFloat16(float x) {
#ifdef __CUDA_ARCH__
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
#else
    const auto u = std::bit_cast<uint32_t>(x);
    bits = static_cast<uint16_t>(x != x ? 0x7FFFu : (u + 0x7FFFu + (u >> 16 & 1u)) >> 16);
#endif
  }
  ET_HD operator float() const {
#ifdef __CUDA_ARCH__
    return __uint_as_float(static_cast<uint32_t>(bits) << 16);
#else
    return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
#endif
  }
};

/// What elements of a type are computed with.
template <class T>
using Arithmetic = std::conditional_t<std::is_same_v<T, BFloat16>, float, T>;

}  // namespace eigentrace
