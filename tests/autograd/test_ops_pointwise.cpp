// Dropout's masks, broadcasting and the errors of the pointwise ops; gradients: test_ops_cases.cpp.
#include <doctest/doctest.h>

#include <cmath>

#include "autograd/op_cases.h"
#include "autograd/ops_pointwise.h"
#include "autograd/ops_shape.h"
#include "tensor/dropout_stream.h"
#include "tensor/error.h"

using namespace eigentrace;

namespace {

std::vector<double> mask(Context& ctx, const Tensor& ones, double p, DropoutMask kind = DropoutMask::element,
                         int skip = 0) {
  Tape tape(ctx, false);
  for (int i = 0; i < skip; ++i) tape.next_random_op();
  return dropout(tape.constant(ones), p, kind).value().to_vector<double>();
}

Tensor ones(const Shape& shape, DType dtype = DType::f32) {
  return Tensor::from(std::vector<double>(static_cast<size_t>(shape.numel()), 1.0), shape).clone({}, dtype);
}

}  // namespace

TEST_CASE("dropout: keeps each element with probability 1 − p, by its Philox word, whatever the type") {
  Context ctx;
  ctx.set_step(11, 42);
  const Tensor x = ones({3, 100, 63});
  const std::vector<double> y = mask(ctx, x, 0.3);
  CHECK(mask(ctx, ones({3, 100, 63}, DType::f64), 0.3).size() == y.size());
  double kept = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    const Philox4 w = philox(11, uint64_t{42} << 32, (i / 4) | uint64_t{1} << 63);
    CHECK(y[i] == (w.x[i % 4] >= 1288490189u ? static_cast<double>(float(1 / 0.7)) : 0.0));  // 0.3 · 2³²
    kept += y[i] != 0;
  }
  const double n = static_cast<double>(y.size());
  CHECK(std::abs(kept / n - 0.7) < 5 * std::sqrt(0.21 / n));
}

TEST_CASE("dropout: another step, seed or op gives another mask, the same ones the same mask") {
  Context ctx;
  const Tensor x = ones({1000});
  ctx.set_step(1, 1);
  const std::vector<double> y = mask(ctx, x, 0.5);
  CHECK(mask(ctx, x, 0.5) == y);
  CHECK(mask(ctx, x, 0.5, DropoutMask::element, 1) != y);
  ctx.set_step(1, 2);
  CHECK(mask(ctx, x, 0.5) != y);
  ctx.set_step(2, 1);
  CHECK(mask(ctx, x, 0.5) != y);
  ctx.set_step(1, 1);
  CHECK(mask(ctx, x, 0.5) == y);
}

TEST_CASE("dropout: strides do not change the mask; a mask shared over time is equal at every step") {
  Context ctx;
  ctx.set_step(5, 0);
  for (int64_t width : {1, 7, 63, 300, 1500}) {
    const std::vector<double> y = mask(ctx, ones({2, 9, width}), 0.4);
    CHECK(mask(ctx, ones({2, 9, width + 3}).slice(2, 2, width), 0.4) == y);
    CHECK(mask(ctx, ones({2, width, 9}).transpose(1, 2), 0.4) == y);
    const std::vector<double> shared = mask(ctx, ones({2, 9, width}), 0.4, DropoutMask::shared_over_time);
    const std::vector<double> expected = mask(ctx, ones({2, width}), 0.4);
    for (int64_t b = 0; b < 2; ++b)
      for (int64_t t = 0; t < 9; ++t)
        for (int64_t d = 0; d < width; ++d)
          CHECK(shared[static_cast<size_t>((b * 9 + t) * width + d)] ==
                expected[static_cast<size_t>(b * width + d)]);
  }
}

TEST_CASE("pointwise: what does not fit is named") {
  Context ctx;
  Tape tape(ctx);
  const Var x = tape.leaf(ones({3, 5})), y = tape.leaf(ones({3, 5}, DType::f64));
  CHECK_THROWS_WITH_AS(dropout(x, 1.0), doctest::Contains("p in [0, 1)"), Error);
  CHECK_THROWS_AS(dropout(x, -0.1), Error);
  CHECK_THROWS_AS(dropout(x, NAN), Error);
  CHECK_THROWS_AS(dropout(x, 0.5, DropoutMask::shared_over_time), Error);
  CHECK_THROWS_WITH_AS(glu(x), doctest::Contains("even last axis"), Error);
  CHECK_THROWS_WITH_AS(sum(x, 2), doctest::Contains("axis 2"), Error);
  CHECK_THROWS_AS(add(x, tape.leaf(ones({4}))), Error);
  CHECK_THROWS_WITH_AS(add(x, y), doctest::Contains("one type"), Error);
  CHECK_THROWS_AS(transpose(x, 0, 2), Error);
  CHECK_THROWS_AS(concat({}), Error);
  CHECK_THROWS_AS(concat({x, tape.leaf(ones({4, 5}))}), Error);
  CHECK_THROWS_AS(split(x, {2, 2}), Error);
}
