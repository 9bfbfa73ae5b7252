#include "autograd/ops_shape.h"

#include <fmt/format.h>

#include <numeric>

#include "tensor/error.h"

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

}  // namespace eigentrace
