#include "autograd/ops_shape.h"

#include <fmt/format.h>

#include <numeric>

#include "tensor/error.h"
#include "tensor/kernels.h"

namespace eigentrace {

Var reshape(const Var& x, const Shape& shape) {
  return x.tape().record_views(Op::reshape, x, {[shape](const Tensor& t) { return t.reshape(shape); }})[0];
}

std::vector<Var> split(const Var& x, const std::vector<int64_t>& widths) {
  if (std::accumulate(widths.begin(), widths.end(), int64_t{0}) != x.dim(-1))
    fail(fmt::format("split: widths must add up to the last axis of {}", to_string(x.value())));
  std::vector<std::function<Tensor(const Tensor&)>> parts;
  int64_t start = 0;
  for (int64_t width : widths) {
    parts.push_back([start, width](const Tensor& t) { return t.slice(t.rank() - 1, start, width); });
    start += width;
  }
  return x.tape().record_views(Op::split, x, std::move(parts));
}

Var transpose(const Var& x, int a, int b) {
  const int rank = x.rank(), i = a < 0 ? a + rank : a, j = b < 0 ? b + rank : b;
  if (i < 0 || i >= rank || j < 0 || j >= rank)
    fail(fmt::format("transpose: axes {} and {} of {} do not exist", a, b, to_string(x.value())));
  return x.tape().record_views(Op::transpose, x, {[i, j](const Tensor& t) { return t.transpose(i, j); }})[0];
}

Var concat(const std::vector<Var>& parts) {
  if (parts.empty()) fail("concat: at least one part expected");
  Shape shape = parts[0].shape();
  if (shape.rank() == 0) fail("concat: parts with at least one axis expected, found a scalar");
  shape[-1] = 0;
  std::vector<VarRef> refs;
  for (const Var& part : parts) {
    Shape expected = shape;
    if (part.rank() > 0) expected[-1] = part.dim(-1);
    if (!(part.shape() == expected) || part.dtype() != parts[0].dtype())
      fail(fmt::format("concat: parts {} and {} differ in more than the last axis",
                       to_string(parts[0].value()), to_string(part.value())));
    refs.push_back(part.ref());
  }
  for (const Var& part : parts) shape[-1] += part.dim(-1);
  Context& ctx = parts[0].ctx();
  Tensor y = ctx.empty(shape, parts[0].dtype());
  int64_t start = 0;
  for (const Var& part : parts) {
    Tensor place = y.slice(-1, start, part.dim(-1));
    kernels::copy(ctx, part.value(), place);
    start += part.dim(-1);
  }
  return parts[0].tape().record_many(Op::concat, {y}, refs, [refs](Backward& b) {
    int64_t from = 0;
    for (const VarRef& part : refs) {
      const Tensor piece = b.dy().slice(-1, from, part.shape[-1]);
      b.gradient(part, [&](Tensor& dx) { kernels::copy(b.ctx(), piece, dx); });
      from += part.shape[-1];
    }
  })[0];
}

}  // namespace eigentrace
