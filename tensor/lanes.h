#pragma once
// Lanes<T>: 64 bytes of float or double that are added, multiplied and divided at once. CPU bodies whose
// inner loop runs over neighbouring channels are written with it, so that their state stays in registers.
//
// Host functions only: nvcc accepts vector types in host code, but not in functions it could call on the
// device (constexpr ones of the standard library included, so no std::vector of lanes either: LaneBuffer).
#include <cstdint>
#include <cstring>
#include <memory>

#include "tensor/cplx.h"

namespace eigentrace {

typedef float FloatLanes __attribute__((vector_size(64)));
typedef double DoubleLanes __attribute__((vector_size(64)));

template <class T>
struct LanesOf;
template <>
struct LanesOf<float> {
  using type = FloatLanes;
};
template <>
struct LanesOf<double> {
  using type = DoubleLanes;
};
template <class T>
using Lanes = typename LanesOf<T>::type;
/// Number of lanes: 16 or 8.
template <class T>
constexpr int64_t lane_count = 64 / sizeof(T);

/// The first `count` lanes from memory, the others zero.
template <class T>
inline Lanes<T> load_lanes(const T* from, int64_t count) {
  Lanes<T> v{};
  if (count >= lane_count<T>)
    std::memcpy(&v, from, 64);
  else
    for (int64_t i = 0; i < count; ++i) v[i] = from[i];
  return v;
}
/// The first `count` lanes to memory.
template <class T>
inline void store_lanes(T* to, const Lanes<T>& v, int64_t count) {
  if (count >= lane_count<T>)
    std::memcpy(to, &v, 64);
  else
    for (int64_t i = 0; i < count; ++i) to[i] = v[i];
}
/// Lane 0 + lane 1 + …, as a tree: the same order everywhere.
template <class T>
inline T sum_lanes(const Lanes<T>& v) {
  T part[lane_count<T>];
  std::memcpy(part, &v, 64);
  for (int64_t width = lane_count<T> / 2; width > 0; width /= 2)
    for (int64_t i = 0; i < width; ++i) part[i] += part[i + width];
  return part[0];
}

/// One complex number a lane.
template <class V>
concept LaneVector = std::is_same_v<V, FloatLanes> || std::is_same_v<V, DoubleLanes>;
/// 0 in every lane. (nvcc's front end does not take a braced pair of vectors for it.)
template <LaneVector V>
inline V zero_lanes() {
  V v;
  std::memset(&v, 0, sizeof(V));
  return v;
}
template <LaneVector V>
inline cplx<V> complex_zero() {
  cplx<V> z;
  std::memset(&z, 0, sizeof(z));
  return z;
}
template <LaneVector V>
inline cplx<V> operator+(const cplx<V>& a, const cplx<V>& b) {
  return {a.re + b.re, a.im + b.im};
}
template <LaneVector V>
inline cplx<V> operator-(const cplx<V>& a, const cplx<V>& b) {
  return {a.re - b.re, a.im - b.im};
}
template <LaneVector V>
inline cplx<V> operator*(const cplx<V>& a, const cplx<V>& b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
template <LaneVector V>
inline cplx<V> conj(const cplx<V>& a) {
  return {a.re, -a.im};
}

/// `size` uninitialised values of a type with lanes: scratch memory of a thread.
template <class V>
class LaneBuffer {
 public:
  explicit LaneBuffer(int64_t size) : values_(new V[static_cast<size_t>(size)]) {}
  V* data() const { return values_.get(); }
  V& operator[](int64_t i) const { return values_.get()[i]; }

 private:
  std::unique_ptr<V[]> values_;
};

}  // namespace eigentrace
