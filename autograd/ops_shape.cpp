#include "autograd/ops_shape.h"

#include <fmt/format.h>

#include <numeric>

#include "tensor/error.h"
#include "tensor/kernels/copy_each.h"

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

namespace {

/// The parts' places in y, side by side.
template <class Part, class Use>
void for_each_part(const std::vector<Part>& parts, const Tensor& y, Use&& use) {
  int64_t start = 0;
  for (const Part& part : parts) {
    const int64_t width = part.shape()[-1];
    use(part, y.slice(-1, start, width));
    start += width;
  }
}

/// What a part's gradient needs.
struct PartRef {
  VarRef ref;
  const Shape& shape() const { return ref.shape; }
};

Shape concat_shape(const std::vector<Var>& parts) {
  if (parts.empty()) fail("concat: at least one part expected");
  Shape shape = parts[0].shape();
  if (shape.rank() == 0) fail("concat: parts with at least one axis expected, found a scalar");
  shape[-1] = 0;
  for (const Var& part : parts) {
    Shape expected = shape;
    if (part.rank() > 0) expected[-1] = part.dim(-1);
    if (!(part.shape() == expected) || part.dtype() != parts[0].dtype())
      fail(fmt::format("concat: parts {} and {} differ in more than the last axis",
                       to_string(parts[0].value()), to_string(part.value())));
  }
  for (const Var& part : parts) shape[-1] += part.dim(-1);
  return shape;
}

}  // namespace

std::vector<Var> concat_each(const std::vector<std::vector<Var>>& groups) {
  std::vector<Shape> shapes;
  for (const std::vector<Var>& parts : groups) shapes.push_back(concat_shape(parts));
  if (groups.empty()) return {};

  Context& ctx = groups[0][0].ctx();
  std::vector<Tensor> ys;
  std::vector<VarRef> refs;
  std::vector<std::vector<PartRef>> places;
  std::vector<std::pair<Tensor, Tensor>> copies;
  for (size_t i = 0; i < groups.size(); ++i) {
    ys.push_back(ctx.empty(shapes[i], groups[i][0].dtype()));
    places.emplace_back();
    for (const Var& part : groups[i]) refs.push_back(part.ref()), places[i].push_back({part.ref()});
    for_each_part(groups[i], ys[i],
                  [&](const Var& part, const Tensor& place) { copies.emplace_back(part.value(), place); });
  }
  kernels::copy_each(ctx, copies);

  return groups[0][0].tape().record_many(Op::concat, ys, refs, [places](Backward& b) {
    std::vector<std::pair<Tensor, Tensor>> pieces;
    std::vector<VarRef> to;
    for (size_t i = 0; i < places.size(); ++i) {
      if (!b.has_dy(static_cast<int>(i))) continue;
      for_each_part(places[i], b.dy(static_cast<int>(i)), [&](const PartRef& part, const Tensor& piece) {
        if (const Tensor dx = b.destination(part.ref); dx.defined())
          pieces.emplace_back(piece, dx), to.push_back(part.ref);
      });
    }
    kernels::copy_each(b.ctx(), pieces);
    for (size_t i = 0; i < to.size(); ++i) b.commit(to[i], pieces[i].second);
  });
}

Var concat(const std::vector<Var>& parts) { return concat_each({parts})[0]; }

}  // namespace eigentrace
