#include "autograd/op_cases.h"
#include "autograd/ops_linear.h"
#include "autograd/ops_shape.h"

namespace eigentrace {
namespace {

using Values = std::vector<Var>;

OpCase linear_case(const char* what, bool with_bias, bool turned) {
  return {std::string("linear: ") + what, Op::linear,
          [=](uint64_t seed, Device device) {
            Rng rng(seed);
            const int64_t in = odd_size(rng, 63), out = odd_size(rng, 63), rows = odd_size(rng);
            OpInstance instance{[=](Tape&, const Values& x) {
                                  return Values{linear(x[0], turned ? transpose(x[1], 0, 1) : x[1],
                                                       with_bias ? x[2] : Var())};
                                },
                                {normal_tensor(rng, {2, rows, in}, device),
                                 normal_tensor(rng, turned ? Shape{in, out} : Shape{out, in}, device)},
                                {"x", "weight"}};
            if (with_bias) {
              instance.inputs.push_back(normal_tensor(rng, {out}, device));
              instance.names.push_back("bias");
            }
            return instance;
          },
          1e-6};
}

OpCase matmul_case(const char* what, bool turned) {
  return {std::string("matmul: ") + what, Op::matmul,
          [=](uint64_t seed, Device device) {
            Rng rng(seed);
            const int64_t batch = odd_size(rng, 7), M = odd_size(rng, 63), N = odd_size(rng, 63),
                          K = odd_size(rng, 63);
            return OpInstance{[=](Tape&, const Values& x) {
                                return Values{turned ? matmul(transpose(x[0], 1, 2), transpose(x[1], 1, 2))
                                                     : matmul(x[0], x[1])};
                              },
                              {normal_tensor(rng, turned ? Shape{batch, K, M} : Shape{batch, M, K}, device),
                               normal_tensor(rng, turned ? Shape{batch, N, K} : Shape{batch, K, N}, device)},
                              {"a", "b"}};
          },
          1e-6};
}

}  // namespace

std::vector<OpCase> op_cases_matrix() {
  return {linear_case("with bias", true, false), linear_case("without bias", false, false),
          linear_case("a kernel stored as [in, out]", true, true), matmul_case("plain", false),
          matmul_case("both transposed", true)};
}

}  // namespace eigentrace
