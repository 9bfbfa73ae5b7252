#include <doctest/doctest.h>

#include "autograd/ops_linear.h"
#include "autograd/ops_shape.h"
#include "tensor/error.h"
#include "tests/op_checks.h"

using namespace eigentrace;
using namespace eigentrace::testing;

namespace {

Var swap_last(const Var& x) {
  return x.tape().record_views(Op::transpose, x,
                               {[](const Tensor& t) { return t.transpose(t.rank() - 2, t.rank() - 1); }})[0];
}

}  // namespace

TEST_CASE("linear: gradients, bits and memory for odd shapes, with and without bias") {
  const TestedFunction with_bias = [](Tape&, const std::vector<Var>& in) {
    return std::vector<Var>{linear(in[0], in[1], in[2])};
  };
  const TestedFunction without = [](Tape&, const std::vector<Var>& in) {
    return std::vector<Var>{linear(in[0], in[1], Var())};
  };
  for (const auto& [rows, in, out] : {std::array{1, 1, 1}, {63, 7, 33}, {100, 33, 1}, {700, 3, 300}}) {
    CAPTURE(rows);
    const Tensor x = random_tensor({1, rows, in}, 1), w = random_tensor({out, in}, 2),
                 b = random_tensor({out}, 3);
    check_op(with_bias, {x, w, b}, {"x", "weight", "bias"});
    check_op(without, {x, w}, {"x", "weight"});
  }
}

TEST_CASE("linear: a sum over 5000 rows, in pieces") {
  const TestedFunction f = [](Tape&, const std::vector<Var>& in) {
    return std::vector<Var>{linear(in[0], in[1], in[2])};
  };
  check_op(f, {random_tensor({5000, 3}, 1), random_tensor({5, 3}, 2), random_tensor({5}, 3)},
           {"x", "weight", "bias"}, {.gradient = 1e-6, .f32 = 1e-4});
}

TEST_CASE("linear: x and dx with strided rows, a transposed weight") {
  const TestedFunction f = [](Tape&, const std::vector<Var>& in) {
    const std::vector<Var> parts = split(in[0], {3, 7, 2});
    const Var y = linear(parts[1], swap_last(in[1]), in[2]);  // weight stored as [in, out]
    return std::vector<Var>{linear(split(y, {4, 5})[1], in[3], Var()), y};
  };
  check_op(f,
           {random_tensor({2, 9, 12}, 1), random_tensor({7, 9}, 2), random_tensor({9}, 3),
            random_tensor({6, 5}, 4)},
           {"x", "kernel", "bias", "second"});
}

TEST_CASE("linear: shapes that do not fit are named") {
  Context ctx;
  Tape tape(ctx);
  const Var x = tape.leaf(random_tensor({3, 5}, 1)), w = tape.leaf(random_tensor({2, 4}, 2));
  CHECK_THROWS_WITH_AS(linear(x, w, Var()), doctest::Contains("weight [out, in]"), Error);
}

TEST_CASE("matmul: batched, transposed, odd sizes") {
  const TestedFunction plain = [](Tape&, const std::vector<Var>& in) {
    return std::vector<Var>{matmul(in[0], in[1])};
  };
  check_op(plain, {random_tensor({63, 7}, 1), random_tensor({7, 33}, 2)}, {"a", "b"});
  check_op(plain, {random_tensor({2, 3, 5, 1}, 1), random_tensor({2, 3, 1, 4}, 2)}, {"a", "b"});
  check_op(plain, {random_tensor({3, 130, 2}, 1), random_tensor({3, 2, 300}, 2)}, {"a", "b"});
  const TestedFunction turned = [](Tape&, const std::vector<Var>& in) {
    return std::vector<Var>{matmul(swap_last(in[0]), swap_last(in[1]))};
  };
  check_op(turned, {random_tensor({2, 7, 5}, 1), random_tensor({2, 6, 7}, 2)}, {"a", "b"});
}
