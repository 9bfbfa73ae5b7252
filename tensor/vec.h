#pragma once
// 16 bytes at a time: packs of elements for CUDA bodies that are bound by memory. For kernels/*.cu only.
#include <cstdint>

#include "tensor/hd.h"
#include "tensor/tensor.h"

namespace eigentrace {

/// Elements of a 16-byte access.
template <class T>
constexpr int vec_width = 16 / sizeof(T);

template <class T, int width>
struct alignas(sizeof(T) * width) Vec {
  T x[width] = {};
};

/// width · sizeof(T) bytes in one access; `from` aligned to as many.
template <int width, class T>
ET_HD Vec<T, width> load_vec(const T* from) {
  return *reinterpret_cast<const Vec<T, width>*>(from);
}
/// A pack's one write; an assignment the compiler may cut into elements (a sixth more time, if bound by
/// memory).
template <class Pack>
ET_HD void store_whole(void* to, const Pack& value) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(Pack) == 16)
    __stwb(reinterpret_cast<float4*>(to), reinterpret_cast<const float4&>(value));
  else if constexpr (sizeof(Pack) == 8)
    __stwb(reinterpret_cast<float2*>(to), reinterpret_cast<const float2&>(value));
  else
#endif
    *reinterpret_cast<Pack*>(to) = value;
}
template <class T, int width>
ET_HD void store_vec(T* to, const Vec<T, width>& value) {
  store_whole(to, value);
}

/// The same where memory and arithmetic differ in type: bf16 read as float32, written from float32.
template <class T, int width, class From>
ET_HD Vec<T, width> load_as(const From* from) {
  const Vec<From, width> x = load_vec<width>(from);
  if constexpr (std::is_same_v<T, From>) {
    return x;
  } else {
    Vec<T, width> y;
#pragma unroll
    for (int i = 0; i < width; ++i) y.x[i] = T(x.x[i]);
    return y;
  }
}
template <class To, class T, int width>
ET_HD void store_as(To* to, const Vec<T, width>& value) {
  if constexpr (std::is_same_v<To, T>) {
    store_vec(to, value);
  } else {
    Vec<To, width> y;
#pragma unroll
    for (int i = 0; i < width; ++i) y.x[i] = To(value.x[i]);
    store_vec(to, y);
  }
}

inline bool aligned_for_vec(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

/// True iff the last axis is dense and every row along it starts and ends at a multiple of 16 bytes.
template <class T>
bool rows_are_aligned(const Tensor& x) {
  if (x.rank() == 0 || x.dim(-1) % vec_width<T> != 0 || x.stride(x.rank() - 1) != 1) return false;
  for (int axis = 0; axis + 1 < x.rank(); ++axis)
    if (x.dim(axis) > 1 && x.stride(axis) % vec_width<T> != 0) return false;
  return aligned_for_vec(x.data<T>());
}

}  // namespace eigentrace
