#pragma once
// bf16 operands for kernels that know float32 alone. For kernels/*.cu only.
//
//   void pool(Context& ctx, Pool how, const Tensor& x, …, Tensor& y, Tensor& argmax) {
//     if (in_float32(ctx, pool, how, x, …, y, argmax)) return;
//
// True iff one of the operands was bf16: then the kernel has run on float32 copies, of what it reads (const
// Tensor&) made before, of what it writes (Tensor&) rounded into place after.
#include <tuple>
#include <utility>

#include "tensor/kernels.h"

namespace eigentrace::kernels {

template <class P>
struct Float32Copy {  // no tensor: as it is
  P value;
  Float32Copy(Context&, P given) : value(static_cast<P>(given)) {}
  P get() { return static_cast<P>(value); }
  void finish(Context&) {}
};
template <>
struct Float32Copy<const Tensor&> {
  Tensor value;
  Float32Copy(Context& ctx, const Tensor& x) : value(x) {
    if (x.dtype() != DType::bf16) return;
    value = ctx.empty(x.shape(), DType::f32);
    cast(ctx, x, value);
  }
  const Tensor& get() { return value; }
  void finish(Context&) {}
};
template <>
struct Float32Copy<Tensor&> {
  Tensor& place;
  Tensor value;
  Float32Copy(Context& ctx, Tensor& y)
      : place(y), value(y.dtype() == DType::bf16 ? ctx.empty(y.shape(), DType::f32) : y) {}
  Tensor& get() { return value; }
  void finish(Context& ctx) {
    if (place.dtype() == DType::bf16) cast(ctx, value, place);
  }
};

inline bool is_bf16(const Tensor& x) { return x.dtype() == DType::bf16; }
template <class P>
bool is_bf16(const P&) {
  return false;
}

template <class... P>
bool in_float32(Context& ctx, void (*kernel)(Context&, P...), std::type_identity_t<P>... operands) {
  if (!(is_bf16(operands) || ...)) return false;
  std::tuple<Float32Copy<P>...> copies{Float32Copy<P>(ctx, operands)...};
  std::apply(
      [&](auto&... each) {
        kernel(ctx, each.get()...);
        (each.finish(ctx), ...);
      },
      copies);
  return true;
}

}  // namespace eigentrace::kernels
