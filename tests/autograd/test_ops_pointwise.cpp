// Dropout's masks, broadcasting and the errors of the pointwise ops; gradients: test_ops_cases.cpp.
#include <doctest/doctest.h>

#include <algorithm>
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

TEST_CASE("dropout: keeps each element with probability 1 − p, by its 16 bits of Philox, whatever the type") {
  Context ctx;
  ctx.set_step(11, 42);
  const Tensor x = ones({3, 100, 63});
  const std::vector<double> y = mask(ctx, x, 0.3);
  CHECK(mask(ctx, ones({3, 100, 63}, DType::f64), 0.3).size() == y.size());
  double kept = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    const Philox4 w = philox<7>(11, uint64_t{42} << 32, (i / 8) | uint64_t{1} << 63);
    const bool keeps = (w.x[i % 8 / 2] >> i % 2 * 16 & 0xFFFF) >= 19661;  // 0.3 · 2¹⁶
    CHECK(y[i] == (keeps ? static_cast<double>(float(65536.0 / (65536 - 19661))) : 0.0));
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

TEST_CASE("dropout: p below and beyond what 16 bits resolve drops nothing, and keeps one in 65,536") {
  Context ctx;
  ctx.set_step(1, 1);
  CHECK(dropout_stream(ctx, 0, 0).threshold == 0);
  CHECK(dropout_stream(ctx, 7e-6, 0).threshold == 0);
  CHECK(dropout_stream(ctx, 7e-6, 0).keep_scale == 1);
  CHECK(dropout_stream(ctx, 8e-6, 0).threshold == 1);
  CHECK(dropout_stream(ctx, 0.25, 0).keep_scale == 1 / 0.75);
  CHECK(dropout_stream(ctx, 1 - 1e-9, 0).threshold == 65535);
  CHECK(dropout_stream(ctx, 1 - 1e-9, 0).keep_scale == 65536);
  const Tensor x = ones({500});
  CHECK(mask(ctx, x, 1e-7) == x.to_vector<double>());
}

TEST_CASE("dropout: neighbours, halves of a word, steps and ops are not correlated") {
  Context ctx;
  const int64_t n = 200000;
  const double p = 0.3;
  const auto drawn = [&](int64_t step, uint32_t op) {
    ctx.set_step(3, step);
    const DropoutStream stream = dropout_stream(ctx, p, op);
    std::vector<double> x(static_cast<size_t>(n + 14)), centred;
    const double* factors = dropout_factors(stream, 0, n, x.data());
    const double kept = 1 - stream.threshold / 65536.0;
    for (int64_t i = 0; i < n; ++i) centred.push_back((factors[i] != 0) - kept);
    return centred;
  };
  const auto correlation = [&](const std::vector<double>& a, const std::vector<double>& b, size_t lag) {
    double sum = 0;
    for (size_t i = 0; i + lag < a.size(); ++i) sum += a[i] * b[i + lag];
    return sum / (static_cast<double>(n) * p * (1 - p));  // of variance 1/n
  };
  const double bound = 5 / std::sqrt(static_cast<double>(n));
  const std::vector<double> x = drawn(7, 2);
  CHECK(std::abs(correlation(x, std::vector<double>(x.size(), 1), 0)) < bound / std::sqrt(p * (1 - p)));
  for (size_t lag : {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 64, 1024}) {
    CAPTURE(lag);
    CHECK(std::abs(correlation(x, x, lag)) < bound);
  }
  CHECK(std::abs(correlation(x, x, 0) - 1) < 2 * bound);
  CHECK(std::abs(correlation(x, drawn(8, 2), 0)) < bound);
  CHECK(std::abs(correlation(x, drawn(7, 3), 0)) < bound);
  for (int place = 0; place < 8; ++place) {  // of a call's eight decisions each keeps its share
    double sum = 0;
    for (size_t i = static_cast<size_t>(place); i < x.size(); i += 8) sum += x[i];
    CHECK(std::abs(sum * 8 / static_cast<double>(n)) <
          5 * std::sqrt(p * (1 - p) * 8 / static_cast<double>(n)));
  }
}

TEST_CASE("dropout: attention weights are drawn once each, rows and columns not correlated") {
  Context ctx;
  ctx.set_step(3, 9);
  const int64_t T = 150, blocks = DropoutStream::weight_blocks(T);
  const DropoutStream stream = dropout_stream(ctx, 0.3, 4);
  const double kept = 1 - stream.threshold / 65536.0;
  std::vector<int64_t> places;
  std::vector<double> x;
  std::vector<double> row(static_cast<size_t>(T + 15));
  for (int64_t item = 0; item < 3; ++item)
    for (int64_t i = 0; i < T; ++i) {
      dropout_weight_factors(stream, T, item, i, 0, T, row.data());
      for (int64_t j = 0; j < T; ++j) {
        const int half = stream.weight_half(i, j);
        const int64_t block = stream.weight_block(item, i, j, blocks);
        const Philox4 w = stream.words(block);
        CHECK_MESSAGE((row[size_t(j)] != 0) == stream.keeps(w.x[half / 2], half % 2), i, " ", j);
        x.push_back((row[size_t(j)] != 0) - kept);
        places.push_back(8 * block + half);
      }
    }
  std::sort(places.begin(), places.end());
  CHECK(std::adjacent_find(places.begin(), places.end()) == places.end());
  const auto correlation = [&](int64_t lag) {
    double sum = 0;
    for (size_t i = 0; i + size_t(lag) < x.size(); ++i) sum += x[i] * x[i + size_t(lag)];
    return sum / (static_cast<double>(x.size()) * kept * (1 - kept));
  };
  for (int64_t lag : {int64_t{1}, int64_t{2}, int64_t{8}, T, 8 * T, 8 * T + 8, 16 * T, T * T}) {
    CAPTURE(lag);
    CHECK(std::abs(correlation(lag)) < 5 / std::sqrt(static_cast<double>(x.size())));
  }
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
