#include <doctest/doctest.h>

#include "autograd/gradcheck.h"
#include "autograd/ops_pointwise.h"
#include "autograd/ops_shape.h"
#include "tensor/error.h"
#include "tensor/rng.h"

using namespace eigentrace;

namespace {

Tensor random_tensor(const Shape& shape, uint64_t seed) {
  Rng rng(seed);
  std::vector<double> values(static_cast<size_t>(shape.numel()));
  for (double& v : values) v = rng.normal();
  return Tensor::from(values, shape);
}

}  // namespace

TEST_CASE("tape: views write their gradients into the operand's, whoever else consumes it") {
  Context ctx;
  ctx.poison = true;
  const TestedFunction f = [](Tape&, const std::vector<Var>& in) {
    const Var y = unary(Unary::silu, in[0]);
    const std::vector<Var> parts = split(y, {3, 1, 4});
    const Var folded = reshape(parts[2], {2, 5, 2, 2});
    // part 1 is never consumed, part 0 twice, y itself once more
    return std::vector<Var>{unary(Unary::sigmoid, parts[0]), unary(Unary::exp, parts[0]),
                            unary(Unary::gelu, folded), unary(Unary::neg, y)};
  };
  const GradcheckReport report = gradcheck(ctx, f, {random_tensor({2, 5, 8}, 1)}, {"x"});
  CHECK(report.max_error() < 1e-8);
  CHECK(ctx.slab().in_use() == 0);
}

TEST_CASE("tape: gradcheck rejects a planted error") {
  Context ctx;
  const TestedFunction f = [](Tape& tape, const std::vector<Var>& in) {
    const Var x = in[0];
    Tensor y = tape.ctx().empty_like(x.value());
    kernels::unary(tape.ctx(), Unary::exp, x.value(), y);
    return std::vector<Var>{tape.record(Op::unary, y, {x}, [x](Backward& b) {
      b.gradient(x,
                 [&](Tensor& dx) { kernels::unary_backward(b.ctx(), Unary::silu, x.value(), b.dy(), dx); });
    })};
  };
  CHECK(gradcheck(ctx, f, {random_tensor({7}, 2)}, {"x"}).max_error() > 1e-2);
}

TEST_CASE("tape: a leaf nothing reaches has gradient zero, written where asked") {
  Context ctx;
  Tape tape(ctx);
  Tensor place = Tensor::from(std::vector<double>{5, 5}, {2});
  const Var unused = tape.leaf(random_tensor({2}, 3), place), used = tape.leaf(random_tensor({1}, 4));
  tape.backward(unary(Unary::exp, used));
  CHECK(place.to_vector<double>() == std::vector<double>{0, 0});
  CHECK(tape.gradient_of(unused).to_vector<double>() == std::vector<double>{0, 0});
}

TEST_CASE("tape: a dry run asks for the same memory as the step and touches none") {
  const auto step = [](Context& ctx) {
    Tape tape(ctx);
    const Var x = tape.leaf(Tensor::zeros({100, 63}, DType::f32));
    tape.backward(unary(Unary::silu, unary(Unary::exp, x)));
    return ctx.slab().peak();
  };
  Context wet, dry = Context::dry_run({});
  const size_t peak = step(dry);
  CHECK(peak > 100 * 63 * 4);
  CHECK(step(wet) == peak);
}
