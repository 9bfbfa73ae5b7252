#include <doctest/doctest.h>

#include "tensor/tensor.h"

using namespace eigentrace;

TEST_CASE("tensor: reshape of a strided view keeps its elements, axes of size 1 anywhere") {
  for (int64_t rows : {1, 2, 7})
    for (int64_t columns : {1, 3}) {
      std::vector<double> values(static_cast<size_t>(rows * columns * 2));
      for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<double>(i);
      const Tensor odd = Tensor::from(values, {rows, columns, 2}).slice(2, 1, 1);
      for (const Shape& shape :
           {Shape{rows, columns}, Shape{rows * columns}, Shape{1, rows, 1, columns, 1}}) {
        const std::vector<double> seen = odd.reshape(shape).to_vector<double>();
        REQUIRE(seen.size() == static_cast<size_t>(rows * columns));
        for (size_t i = 0; i < seen.size(); ++i) CHECK(seen[i] == static_cast<double>(2 * i + 1));
      }
    }
}
