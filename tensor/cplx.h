#pragma once
// A plain complex number for kernels. std::complex is not used because its product checks for NaN, which
// keeps loops from vectorising. Many complex numbers at once: cplx<Lanes<T>>, whose arithmetic is in
// tensor/lanes.h.
#include <type_traits>

#include "tensor/hd.h"

namespace eigentrace {

template <class T>
struct cplx {
  T re, im;
};

template <class T>
concept Scalar = std::is_arithmetic_v<T>;

template <Scalar T>
ET_HD cplx<T> operator+(const cplx<T>& a, const cplx<T>& b) {
  return {a.re + b.re, a.im + b.im};
}
template <Scalar T>
ET_HD cplx<T> operator-(const cplx<T>& a, const cplx<T>& b) {
  return {a.re - b.re, a.im - b.im};
}
template <Scalar T>
ET_HD cplx<T> operator*(const cplx<T>& a, const cplx<T>& b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
template <Scalar T>
ET_HD cplx<T> operator*(T a, const cplx<T>& b) {
  return {a * b.re, a * b.im};
}
template <Scalar T>
ET_HD cplx<T> conj(const cplx<T>& a) {
  return {a.re, -a.im};
}
/// |a|²
template <Scalar T>
ET_HD T norm(const cplx<T>& a) {
  return a.re * a.re + a.im * a.im;
}
/// 1/a; |a|² must neither overflow nor underflow.
template <Scalar T>
ET_HD cplx<T> reciprocal(const cplx<T>& a) {
  const T scale = T(1) / norm(a);
  return {a.re * scale, -a.im * scale};
}
/// Re(conj(a) b)
template <Scalar T>
ET_HD T real_dot(const cplx<T>& a, const cplx<T>& b) {
  return a.re * b.re + a.im * b.im;
}

}  // namespace eigentrace
