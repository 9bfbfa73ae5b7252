#include "autograd/op_cases.h"
#include "autograd/ops_pointwise.h"
#include "autograd/ops_shape.h"

namespace eigentrace {
namespace {

using Values = std::vector<Var>;

OpCase unary_case(Unary f) {
  return {std::string("unary: ") + kernels::name_of(f), Op::unary, [f](uint64_t seed, Device device) {
            Rng rng(seed);
            Tensor x = normal_tensor(rng, {odd_size(rng), odd_size(rng, 63)}, device);
            // central differences must not step over the kinks of relu and elu
            std::vector<double> values = x.to_vector<double>();
            for (double& v : values) v = 2 * v + (v < 0 ? -0.01 : 0.01);
            x.assign(values);
            return OpInstance{[f](Tape&, const Values& in) { return Values{unary(f, in[0])}; }, {x}, {"x"}};
          }};
}

/// b is away from zero, so that a quotient is tame. mask: which axes of a and of b are of size 1.
OpCase binary_case(Binary f, const char* what, int a_mask, int b_mask, int b_rank = 3) {
  return {std::string("binary: ") + kernels::name_of(f) + ", " + what, Op::binary,
          [=](uint64_t seed, Device device) {
            Rng rng(seed);
            const int64_t size[3] = {odd_size(rng, 7) + 1, odd_size(rng, 63) + 1, odd_size(rng, 63) + 1};
            std::vector<int64_t> a, b;
            for (int axis = 0; axis < 3; ++axis) {
              a.push_back(a_mask >> axis & 1 ? 1 : size[axis]);
              if (axis >= 3 - b_rank) b.push_back(b_mask >> axis & 1 ? 1 : size[axis]);
            }
            return OpInstance{
                [f](Tape&, const Values& in) { return Values{binary(f, in[0], in[1])}; },
                {normal_tensor(rng, Shape(a), device), uniform_tensor(rng, Shape(b), 0.5, 2, device)},
                {"a", "b"}};
          }};
}

OpCase dropout_case(const char* what, DropoutMask mask, double p) {
  return {
      std::string("dropout: ") + what, Op::dropout, [=](uint64_t seed, Device device) {
        Rng rng(seed);
        const Shape shape{odd_size(rng, 7), odd_size(rng, 63), 2 * odd_size(rng, 63)};
        return OpInstance{
            [=](Tape&, const Values& in) {
              // the second draw is another one; the third reads and writes rows apart
              const Values halves = split(in[0], {shape[2] / 2, shape[2] / 2});
              return Values{dropout(in[0], p, mask), dropout(in[0], p, mask), dropout(halves[1], p, mask)};
            },
            {normal_tensor(rng, shape, device)},
            {"x"}};
      }};
}

}  // namespace

std::vector<OpCase> op_cases_pointwise() {
  std::vector<OpCase> cases;
  for (int f = 0; f <= static_cast<int>(Unary::elu_plus_one); ++f)
    cases.push_back(unary_case(static_cast<Unary>(f)));
  for (Binary f : {Binary::add, Binary::sub, Binary::mul, Binary::div}) {
    cases.push_back(binary_case(f, "equal shapes", 0, 0));
    cases.push_back(binary_case(f, "a row vector broadcast", 0, 0, 1));
    cases.push_back(binary_case(f, "a scalar broadcast", 0, 7, 1));
    cases.push_back(binary_case(f, "a column against a row", 0b100, 0b010));
    cases.push_back(binary_case(f, "first and last axis broadcast", 0, 0b101));
    cases.push_back(binary_case(f, "a vector over the first operand's rows", 0b011, 0));
  }
  cases.push_back({"binary: one value as both operands", Op::binary, [](uint64_t seed, Device device) {
                     Rng rng(seed);
                     return OpInstance{
                         [](Tape&, const Values& in) {
                           return Values{mul(in[0], in[0]), add(in[0], in[0]), sub(in[0], in[0])};
                         },
                         {normal_tensor(rng, {odd_size(rng)}, device)},
                         {"x"}};
                   }});
  cases.push_back({"scale: y = −0.7 x", Op::scale, [](uint64_t seed, Device device) {
                     Rng rng(seed);
                     return OpInstance{[](Tape&, const Values& in) { return Values{scale(in[0], -0.7)}; },
                                       {normal_tensor(rng, {odd_size(rng), odd_size(rng)}, device)},
                                       {"x"}};
                   }});
  cases.push_back(dropout_case("a draw for every element", DropoutMask::element, 0.3));
  cases.push_back(dropout_case("a draw shared over time", DropoutMask::shared_over_time, 0.5));
  cases.push_back(dropout_case("p = 0 is the identity", DropoutMask::element, 0));
  cases.push_back({"glu: rows of any stride", Op::glu, [](uint64_t seed, Device device) {
                     Rng rng(seed);
                     const int64_t width = 2 * odd_size(rng, 63);
                     return OpInstance{[width](Tape&, const Values& in) {
                                         const Values parts = split(in[0], {3, width});
                                         return Values{glu(parts[1]), scale(parts[0], 2)};
                                       },
                                       {normal_tensor(rng, {odd_size(rng, 63), width + 3}, device)},
                                       {"x"}};
                   }});
  for (const DropoutMask mask : {DropoutMask::element, DropoutMask::shared_over_time}) {
    const bool shared = mask == DropoutMask::shared_over_time;
    cases.push_back({shared ? "activation: one draw for all steps" : "activation: a draw for every element",
                     Op::activation, [mask](uint64_t seed, Device device) {
                       Rng rng(seed);
                       const Shape shape{odd_size(rng, 7), odd_size(rng, 63), odd_size(rng, 63)};
                       return OpInstance{[mask](Tape&, const Values& in) {
                                           return Values{activation(Unary::gelu_tanh, in[0], 0.4, mask),
                                                         activation(Unary::gelu, in[0], 0, mask)};
                                         },
                                         {normal_tensor(rng, shape, device)},
                                         {"x"}};
                     }});
    cases.push_back(
        {shared ? "gate: silu, a residual, one draw for all steps" : "gate: sigmoid, halves of rows",
         Op::gate, [mask, shared](uint64_t seed, Device device) {
           Rng rng(seed);
           const int64_t width = odd_size(rng, 63);
           const Shape shape{odd_size(rng, 7), odd_size(rng, 63), width};
           return OpInstance{[=](Tape&, const Values& in) {
                               const Values halves = split(in[0], {width, width});
                               if (!shared) return Values{gate(Unary::sigmoid, halves[0], halves[1])};
                               return Values{
                                   gate(Unary::silu, halves[0], halves[1], {in[1], 0.3, mask}),
                                   gate(Unary::silu, in[1], in[1], {in[1], 0.3, DropoutMask::element})};
                             },
                             {normal_tensor(rng, {shape[0], shape[1], 2 * width}, device),
                              normal_tensor(rng, shape, device)},
                             {"a and z", "residual"}};
         }});
  }
  for (int axis : {0, 1, -1})
    cases.push_back({"sum: over axis " + std::to_string(axis), Op::sum, [axis](uint64_t seed, Device device) {
                       Rng rng(seed);
                       const Shape shape{odd_size(rng, 7), odd_size(rng, 63), odd_size(rng, 63)};
                       return OpInstance{[axis](Tape&, const Values& in) {
                                           const Var y = sum(in[0], axis);
                                           const Var z = sum(transpose(in[0], 0, 1), axis, true);
                                           return Values{unary(Unary::sigmoid, y), z};
                                         },
                                         {normal_tensor(rng, shape, device)},
                                         {"x"}};
                     }});
  cases.push_back({"cast: to the type of arithmetic", Op::cast, [](uint64_t seed, Device device) {
                     Rng rng(seed);
                     const Shape shape{odd_size(rng, 63), odd_size(rng)};
                     return OpInstance{[](Tape&, const Values& in) { return Values{scale(widen(in[0]), 3)}; },
                                       {normal_tensor(rng, shape, device)},
                                       {"x"}};
                   }});
  cases.push_back({"sum: long enough for several blocks", Op::sum, [](uint64_t seed, Device device) {
                     Rng rng(seed);
                     return OpInstance{[](Tape&, const Values& in) {
                                         return Values{sum(in[0], 0), sum(reshape(in[0], {21000}), 0)};
                                       },
                                       {normal_tensor(rng, {3000, 7}, device)},
                                       {"x"}};
                   }});
  return cases;
}

}  // namespace eigentrace
