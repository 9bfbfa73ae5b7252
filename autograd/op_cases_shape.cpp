#include "autograd/op_cases.h"
#include "autograd/ops_pointwise.h"
#include "autograd/ops_shape.h"

namespace eigentrace {
namespace {

using Values = std::vector<Var>;

/// A function of one [B, T, D] tensor, D even. Views are followed by an op, so that there is a kernel that
/// reads and writes through them.
OpCase case_of(std::string name, Op op, const std::function<Values(const Var&)>& f) {
  return {std::move(name), op, [f](uint64_t seed, Device device) {
            Rng rng(seed);
            const int64_t b = odd_size(rng, 7), t = odd_size(rng, 63), d = 2 * odd_size(rng, 7);
            return OpInstance{[f](Tape&, const Values& in) { return f(in[0]); },
                              {normal_tensor(rng, {b, t, d}, device)},
                              {"x"}};
          }};
}

}  // namespace

std::vector<OpCase> op_cases_shape() {
  std::vector<OpCase> cases;
  cases.push_back(case_of("reshape: heads folded into rows and back", Op::reshape, [](const Var& x) {
    const Var folded = reshape(x, {x.dim(0), x.dim(1), 2, x.dim(2) / 2});
    return Values{unary(Unary::silu, reshape(folded, {x.dim(0) * x.dim(1), x.dim(2)}))};
  }));
  cases.push_back(case_of("transpose: of two axes, of three", Op::transpose, [](const Var& x) {
    const Var turned = transpose(x, 1, 2);
    return Values{unary(Unary::silu, turned),
                  mul(transpose(x, 0, -1), transpose(transpose(turned, 0, 1), 1, 2))};
  }));
  cases.push_back(case_of("split: one part unused, one used twice", Op::split, [](const Var& x) {
    const int64_t width = x.dim(2) / 2;
    const Values parts = split(x, {width - 1, 1, width});
    return Values{unary(Unary::exp, parts[1]), glu(concat({parts[2], parts[2]}))};
  }));
  cases.push_back(case_of("concat: parts of different widths, one twice", Op::concat, [](const Var& x) {
    const Values parts = split(x, {1, x.dim(2) - 1});
    return Values{concat({parts[1], unary(Unary::exp, x), parts[1], parts[0]})};
  }));
  cases.push_back(case_of("concat: two groups together, one left unused", Op::concat, [](const Var& x) {
    const Values parts = split(x, {1, x.dim(2) - 1});
    const Var wide = unary(Unary::silu, x);
    const Values all = concat_each({{parts[1], wide, parts[0]}, {wide, parts[1]}, {parts[0], parts[0]}});
    return Values{unary(Unary::exp, all[0]), all[1]};
  }));
  return cases;
}

}  // namespace eigentrace
