#include "autograd/op_cases.h"
#include "autograd/ops_attention.h"
#include "autograd/ops_loss.h"
#include "autograd/ops_pointwise.h"
#include "autograd/ops_sequence.h"
#include "autograd/ops_shape.h"

namespace eigentrace {
namespace {

using Values = std::vector<Var>;

OpCase softmax_case(const char* what, double dropout) {
  return {std::string("softmax_attention: ") + what, Op::softmax_attention,
          [=](uint64_t seed, Device device) {
            Rng rng(seed);
            const int64_t B = odd_size(rng, 2), T = odd_size(rng), H = odd_size(rng, 7), N = odd_size(rng, 7),
                          P = odd_size(rng, 7);
            return OpInstance{[=](Tape&, const Values& x) {  // q, k and v are parts of one projection
                                const Values parts = split(x[0], {H * N, H * N, H * P});
                                return Values{softmax_attention(reshape(parts[0], {B, T, H, N}),
                                                                reshape(parts[1], {B, T, H, N}),
                                                                reshape(parts[2], {B, T, H, P}), 0.4, dropout)
                                                  .y};
                              },
                              {normal_tensor(rng, {B, T, H * (2 * N + P)}, device)},
                              {"qkv"}};
          },
          1e-6, 1e-4};
}

/// A few rows of each sequence, in one none, then padding; y at these rows, and with `whole` y beside them.
OpCase rows_case(const char* what, double dropout, bool whole) {
  return {std::string("attended_rows: ") + what, Op::attended_rows,
          [=](uint64_t seed, Device device) {
            Rng rng(seed);
            const int64_t B = 3, T = odd_size(rng), H = odd_size(rng, 2), N = odd_size(rng, 7),
                          P = odd_size(rng, 7);
            std::vector<int32_t> rows, classes;
            std::vector<float> weights;
            for (int64_t r = 0; r < B * T; ++r)
              if (r / T != 1 && (r == 0 || rng.below(3) == 0)) rows.push_back(static_cast<int32_t>(r));
            weights.assign(rows.size(), 1), rows.insert(rows.end(), 2, 0), weights.resize(rows.size());
            classes.resize(rows.size());
            const auto M = static_cast<int64_t>(rows.size());
            const Labels labels{Tensor::from(rows, {M}, device), Tensor::from(classes, {M}, device),
                                Tensor::from(weights, {M}, device),
                                Tensor::from(std::vector<double>{1}, {1}, device)};
            return OpInstance{[=](Tape&, const Values& x) {
                                const Values parts = split(x[0], {H * N, H * N, H * P});
                                const Attended out = softmax_attention(
                                    reshape(parts[0], {B, T, H, N}), reshape(parts[1], {B, T, H, N}),
                                    reshape(parts[2], {B, T, H, P}), 0.4, dropout, &labels);
                                return whole ? Values{out.rows, out.y} : Values{out.rows};
                              },
                              {normal_tensor(rng, {B, T, H * (2 * N + P)}, device)},
                              {"qkv"}};
          },
          1e-6, 1e-4};
}

enum class Decay { none, per_head, per_step };

OpCase ssd_case(const char* what, int64_t G, int64_t H, Decay decay, bool weighted, double least_log_a = -1) {
  return {std::string("ssd: ") + what, Op::ssd,
          [=](uint64_t seed, Device device) {
            Rng rng(seed);
            const int64_t B = odd_size(rng, 2), T = odd_size(rng) + (seed % 2 ? 40 : 0), N = odd_size(rng, 7),
                          P = odd_size(rng, 7);
            OpInstance instance{
                [=](Tape&, const Values& x) {
                  const Var log_a = decay == Decay::none ? Var() : x[3];
                  return Values{ssd(x[0], x[1], x[2], log_a, weighted ? x.back() : Var())};
                },
                {normal_tensor(rng, {B, T, G, N}, device), normal_tensor(rng, {B, T, G, N}, device),
                 normal_tensor(rng, {B, T, H, P}, device)},
                {"q", "k", "v"}};
            if (decay != Decay::none) {
              const Shape shape = decay == Decay::per_head ? Shape{H} : Shape{B, T, H};
              instance.inputs.push_back(uniform_tensor(rng, shape, least_log_a, 0, device));
              instance.names.push_back("log_a");
            }
            if (weighted) {
              instance.inputs.push_back(uniform_tensor(rng, {B, T, H}, 0, 1, device));
              instance.names.push_back("w");
            }
            return instance;
          },
          1e-6, 2e-4};
}

OpCase normaliser_case() {
  return {"attention_normaliser: positive features", Op::attention_normaliser,
          [](uint64_t seed, Device device) {
            Rng rng(seed);
            const Shape shape{odd_size(rng, 7), odd_size(rng), odd_size(rng, 7), odd_size(rng, 7)};
            return OpInstance{
                [](Tape&, const Values& x) { return Values{attention_normaliser(x[0], x[1])}; },
                {uniform_tensor(rng, shape, 0.1, 2, device), uniform_tensor(rng, shape, 0.1, 2, device)},
                {"q", "k"}};
          },
          1e-6};
}

OpCase divide_case() {
  return {"divide_by_eta: log eta of both signs", Op::divide_by_eta, [](uint64_t seed, Device device) {
            Rng rng(seed);
            const Shape shape{odd_size(rng, 7), odd_size(rng), odd_size(rng, 7), odd_size(rng, 7)};
            return OpInstance{
                [](Tape&, const Values& x) { return Values{divide_by_eta(x[0], x[1])}; },
                {normal_tensor(rng, shape, device), normal_tensor(rng, shape.without(3), device)},
                {"y", "log_eta"}};
          }};
}

OpCase norm_case(const char* what, NormFunction f, bool with_offset) {
  return {std::string("norm_scale: ") + what, Op::norm_scale,
          [=](uint64_t seed, Device device) {
            Rng rng(seed);
            const Shape shape{odd_size(rng, 7), odd_size(rng), odd_size(rng, 7), odd_size(rng, 7)};
            OpInstance instance{
                [=](Tape&, const Values& x) {
                  return Values{norm_scale(x[0], f, x[1], with_offset ? x[2] : Var(), 0.5).y};
                },
                {normal_tensor(rng, shape, device), normal_tensor(rng, shape.without(3), device)},
                {"y", "n"}};
            if (with_offset) {
              instance.inputs.push_back(normal_tensor(rng, {shape[2]}, device));
              instance.names.push_back("offset");
            }
            return instance;
          },
          1e-6, 1e-4};
}

/// wide: more states than the kernels that take the skip along can hold.
OpCase skip_case(bool wide) {
  return {wide ? "ssd: decay, weight and skip, 130 states" : "ssd: decay, weight and skip", Op::ssd,
          [wide](uint64_t seed, Device device) {
            Rng rng(seed);
            const int64_t B = odd_size(rng, 2), T = wide ? 5 : odd_size(rng) + (seed % 2 ? 70 : 0),
                          N = wide ? 130 : odd_size(rng, 7), P = odd_size(rng, 7), H = 3;
            return OpInstance{
                [](Tape&, const Values& x) { return Values{ssd(x[0], x[1], x[2], x[3], x[4], x[5])}; },
                {normal_tensor(rng, {B, T, 1, N}, device), normal_tensor(rng, {B, T, 1, N}, device),
                 normal_tensor(rng, {B, T, H, P}, device), uniform_tensor(rng, {B, T, H}, -1, 0, device),
                 uniform_tensor(rng, {B, T, H}, 0, 1, device), normal_tensor(rng, {H}, device)},
                {"q", "k", "v", "log_a", "w", "skip"}};
          },
          1e-6, 2e-4};
}

OpCase linear_case() {
  return {
      "linear_attention: parts of one projection", Op::linear_attention,
      [](uint64_t seed, Device device) {
        Rng rng(seed);
        const int64_t B = odd_size(rng, 2), T = odd_size(rng) + (seed % 2 ? 70 : 0), H = odd_size(rng, 2),
                      N = odd_size(rng, 7), P = odd_size(rng, 7);
        return OpInstance{
            [=](Tape&, const Values& x) {
              const Values parts = split(x[0], {H * N, H * N});
              return Values{
                  linear_attention(reshape(parts[0], {B, T, H, N}), reshape(parts[1], {B, T, H, N}), x[1]).y};
            },
            {uniform_tensor(rng, {B, T, 2 * H * N}, 0.1, 2, device),
             normal_tensor(rng, {B, T, H, P}, device)},
            {"qk", "v"}};
      },
      1e-6, 1e-4};
}

/// Rows of whole packs, and odd ones, which take other paths.
OpCase dropped_case(bool packs) {
  return {packs ? "linear_attention: dropout, rows of whole packs" : "linear_attention: dropout",
          Op::linear_attention,
          [packs](uint64_t seed, Device device) {
            Rng rng(seed);
            const int64_t B = odd_size(rng, 2), T = odd_size(rng) + (seed % 2 ? 70 : 0), H = odd_size(rng, 2),
                          N = packs ? 4 : odd_size(rng, 7), P = (packs ? 8 : 1) * odd_size(rng, 3);
            return OpInstance{
                [](Tape&, const Values& x) { return Values{linear_attention(x[0], x[1], x[2], {}, 0.3).y}; },
                {uniform_tensor(rng, {B, T, H, N}, 0.1, 2, device),
                 uniform_tensor(rng, {B, T, H, N}, 0.1, 2, device), normal_tensor(rng, {B, T, H, P}, device)},
                {"q", "k", "v"}};
          },
          1e-6, 1e-4};
}

/// Gradients at what q and k are elu + 1 of.
OpCase elu_case(const char* what, Op op) {
  return {
      std::string(name_of(op)) + ": " + what, op,
      [=](uint64_t seed, Device device) {
        Rng rng(seed);
        const int64_t B = odd_size(rng, 2), T = odd_size(rng) + (seed % 2 ? 70 : 0), H = odd_size(rng, 2),
                      N = odd_size(rng, 7), P = odd_size(rng, 7);
        OpInstance instance{
            [=](Tape&, const Values& x) {
              const auto halves = [&](const Var& both) {
                const Values parts = split(both, {H * N, H * N});
                return EluOf{reshape(parts[0], {B, T, H, N}), reshape(parts[1], {B, T, H, N})};
              };
              const EluOf of = halves(x[0]), mapped = halves(unary(Unary::elu_plus_one, x[0]));
              return Values{
                  op == Op::linear_attention
                      ? linear_attention(mapped.x, mapped.z, x[1], of).y
                      : norm_attention(mapped.x, mapped.z, x[1], NormFunction::softplus, x[2], Var(), 0.5, of)
                            .y};
            },
            {uniform_tensor(rng, {B, T, 2 * H * N}, -1, 1, device), normal_tensor(rng, {B, T, H, P}, device)},
            {"qk", "v"}};
        if (op == Op::norm_attention) {
          instance.inputs.push_back(normal_tensor(rng, {B, T, H}, device));
          instance.names.push_back("n");
        }
        return instance;
      },
      1e-6, 2e-4};
}

/// Linear or norm attention of what one short convolution makes: q and k as features, v.
OpCase features_case(Op op) {
  return {
      std::string("causal_conv1d: features of ") + name_of(op), Op::causal_conv1d,
      [=](uint64_t seed, Device device) {
        Rng rng(seed);
        const int64_t B = odd_size(rng, 2), T = odd_size(rng) + (seed % 2 ? 70 : 0), H = odd_size(rng, 2),
                      N = odd_size(rng, 7), P = odd_size(rng, 7), channels = H * (2 * N + P);
        OpInstance instance{
            [=](Tape&, const Values& x) {
              const auto halves = [&](const Var& both) {
                const Values parts = split(both, {H * N, H * N});
                return EluOf{reshape(parts[0], {B, T, H, N}), reshape(parts[1], {B, T, H, N})};
              };
              const ConvolvedParts made = causal_conv1d_elu(x[0], x[1], x[2], true, {H * P, 2 * H * N}, 1);
              const EluOf of = halves(made.of), mapped = halves(made.parts[1]);
              const Var v = reshape(made.parts[0], {B, T, H, P});
              return Values{
                  op == Op::linear_attention
                      ? linear_attention(mapped.x, mapped.z, v, of).y
                      : norm_attention(mapped.x, mapped.z, v, NormFunction::softplus, x[3], Var(), 0.5, of)
                            .y};
            },
            {normal_tensor(rng, {B, T, channels}, device),
             uniform_tensor(rng, {channels, 1, 4}, -1, 1, device), normal_tensor(rng, {channels}, device)},
            {"qkv", "weight", "bias"}};
        if (op == Op::norm_attention) {
          instance.inputs.push_back(normal_tensor(rng, {B, T, H}, device));
          instance.names.push_back("n");
        }
        return instance;
      },
      1e-6, 2e-4};
}

OpCase norm_attention_case(const char* what, NormFunction f, bool with_offset) {
  return {std::string("norm_attention: ") + what, Op::norm_attention,
          [=](uint64_t seed, Device device) {
            Rng rng(seed);
            const int64_t B = odd_size(rng, 2), T = odd_size(rng) + (seed % 2 ? 70 : 0), H = odd_size(rng, 2),
                          N = odd_size(rng, 7), P = odd_size(rng, 7);
            OpInstance instance{
                [=](Tape&, const Values& x) {
                  return Values{norm_attention(x[0], x[1], x[2], f, x[3], with_offset ? x[4] : Var(), 0.5).y};
                },
                {normal_tensor(rng, {B, T, H, N}, device), normal_tensor(rng, {B, T, H, N}, device),
                 normal_tensor(rng, {B, T, H, P}, device), normal_tensor(rng, {B, T, H}, device)},
                {"q", "k", "v", "n"}};
            if (with_offset) {
              instance.inputs.push_back(normal_tensor(rng, {H}, device));
              instance.names.push_back("offset");
            }
            return instance;
          },
          1e-6, 2e-4};
}

}  // namespace

std::vector<OpCase> op_cases_attention() {
  return {softmax_case("without dropout", 0),
          softmax_case("with dropout", 0.3),
          rows_case("none in one sequence", 0, false),
          rows_case("with dropout, and all rows beside them", 0.3, true),
          ssd_case("no decay, no weight", 1, 1, Decay::none, false),
          ssd_case("heads share q and k, decay and weight per step", 1, 3, Decay::per_step, true),
          ssd_case("two groups, decay per head", 2, 4, Decay::per_head, false),
          ssd_case("no decay, weights", 2, 2, Decay::none, true),
          ssd_case("strong decays", 1, 2, Decay::per_step, true, -50),
          normaliser_case(),
          divide_case(),
          norm_case("exp", NormFunction::exp, true),
          norm_case("elu", NormFunction::elu, true),
          norm_case("softplus", NormFunction::softplus, true),
          norm_case("sigmoid, no offset", NormFunction::sigmoid, false),
          skip_case(false),
          skip_case(true),
          linear_case(),
          dropped_case(false),
          dropped_case(true),
          elu_case("of elu", Op::linear_attention),
          elu_case("of elu", Op::norm_attention),
          features_case(Op::linear_attention),
          features_case(Op::norm_attention),
          norm_attention_case("softplus", NormFunction::softplus, true),
          norm_attention_case("exp, no offset", NormFunction::exp, false)};
}

}  // namespace eigentrace
