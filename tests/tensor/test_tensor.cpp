#include "tensor/tensor.h"

#include <doctest/doctest.h>

#include <numeric>

#include "tensor/context.h"
#include "tensor/error.h"
#include "tensor/kernels.h"

using namespace eigentrace;

namespace {

Tensor counting(const Shape& shape) {
  std::vector<double> values(static_cast<size_t>(shape.numel()));
  std::iota(values.begin(), values.end(), 0.0);
  return Tensor::from(values, shape);
}

}  // namespace

TEST_CASE("tensor: slice, transpose and expand are views of the same numbers") {
  const Tensor x = counting({2, 3, 4});
  CHECK(x.slice(2, 1, 2).to_vector<double>() ==
        std::vector<double>{1, 2, 5, 6, 9, 10, 13, 14, 17, 18, 21, 22});
  CHECK(x.slice(1, 2, 1).transpose(0, 2).to_vector<double>() ==
        std::vector<double>{8, 20, 9, 21, 10, 22, 11, 23});
  CHECK(counting({3, 1}).expand({2, 3, 2}).to_vector<double>() ==
        std::vector<double>{0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2});
  CHECK(x.slice(2, 1, 2).shares_storage(x));
  CHECK(!x.clone().shares_storage(x));
}

TEST_CASE("tensor: rows are recognised through size-1 axes, and only rows") {
  const Tensor x = counting({4, 3, 8});
  CHECK(collapses_to_rows(x.slice(2, 2, 5)));
  CHECK(rows_of<double>(x.slice(2, 2, 5), "test").stride == 8);
  CHECK(collapses_to_rows(x.slice(1, 1, 1)));
  CHECK(rows_of<double>(x.slice(1, 1, 1), "test").stride == 24);
  CHECK(!collapses_to_rows(x.slice(1, 0, 2)));
  CHECK(!collapses_to_rows(x.transpose(1, 2)));
  CHECK_THROWS_WITH_AS(rows_of<double>(x.transpose(1, 2), "glu: x"), doctest::Contains("glu: x"), Error);
}

TEST_CASE("tensor: ranges, shapes and types that do not fit are named") {
  const Tensor x = counting({2, 3});
  CHECK_THROWS_AS(x.slice(1, 2, 2), Error);
  CHECK_THROWS_AS(x.reshape({4}), Error);
  CHECK_THROWS_AS(x.transpose(0, 1).reshape({6}), Error);
  CHECK_THROWS_AS(x.expand({3, 3}), Error);
  CHECK_THROWS_AS(x.data<float>(), Error);
  CHECK_THROWS_AS(Tensor().data<float>(), Error);
  CHECK_THROWS_AS(broadcast({2, 3}, {2}), Error);
}

TEST_CASE("tensor: copy, fill and accumulate follow the strides of both sides") {
  Context ctx;
  const Tensor x = counting({3, 5, 7});
  for (const auto& [a, b] : {std::pair{0, 1}, {1, 2}, {0, 2}}) {
    const Tensor view = x.transpose(a, b);
    Tensor home = Tensor::zeros({view.dim(0), view.dim(1), view.dim(2) + 2}, DType::f64);
    Tensor place = home.slice(2, 1, view.dim(2));
    kernels::copy(ctx, view, place);
    kernels::accumulate(ctx, view, place);
    std::vector<double> expected = view.to_vector<double>();
    for (double& v : expected) v *= 2;
    CHECK(place.to_vector<double>() == expected);
    for (double border : home.slice(2, 0, 1).to_vector<double>()) CHECK(border == 0);
    for (double border : home.slice(2, view.dim(2) + 1, 1).to_vector<double>()) CHECK(border == 0);
    kernels::fill(ctx, place, 3);
    for (double v : place.to_vector<double>()) CHECK(v == 3);
    for (double border : home.slice(2, 0, 1).to_vector<double>()) CHECK(border == 0);
  }
}
