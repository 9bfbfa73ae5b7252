#include <algorithm>
#include <functional>
#include <numeric>
#include <utility>

#include "autograd/op_cases.h"
#include "autograd/ops_pointwise.h"
#include "autograd/ops_sequence.h"
#include "autograd/ops_shape.h"

namespace eigentrace {
namespace {

using Values = std::vector<Var>;

Tokens random_tokens(Rng& rng, int64_t batch, int64_t time, int64_t vocabulary, Device device) {
  std::vector<int32_t> ids(static_cast<size_t>(batch * time)), order(ids.size());
  for (int32_t& id : ids) id = static_cast<int32_t>(rng.below(static_cast<uint32_t>(vocabulary)));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return ids[static_cast<size_t>(a)] < ids[static_cast<size_t>(b)];
  });
  return {Tensor::from(ids, {batch, time}, device), Tensor::from(order, {batch * time}, device)};
}

/// Absent tokens, tokens in runs longer than a block, positions beyond T.
OpCase embedding_case(const char* what, bool positions, bool bias, int64_t vocabulary) {
  return {std::string("embedding: ") + what, Op::embedding, [=](uint64_t seed, Device device) {
            Rng rng(seed);
            const int64_t batch = odd_size(rng, 7), time = odd_size(rng, 100), width = odd_size(rng, 63);
            const Tokens tokens = random_tokens(rng, batch, time, vocabulary, device);
            OpInstance instance;
            instance.function = [=](Tape&, const Values& in) {
              return Values{embedding(in[0], tokens, positions ? in[1] : Var{}, bias ? in.back() : Var{})};
            };
            instance.inputs = {normal_tensor(rng, {vocabulary, width}, device)};
            instance.names = {"table"};
            if (positions) {
              instance.inputs.push_back(normal_tensor(rng, {time + 2, width}, device));
              instance.names.push_back("positions");
            }
            if (bias) {
              instance.inputs.push_back(normal_tensor(rng, {width}, device));
              instance.names.push_back("bias");
            }
            return instance;
          }};
}

/// `body` of x, of `extra` more columns than there are channels, weight and bias.
OpCase conv_case_of(const char* what, int64_t taps, int64_t time, int64_t channels, int64_t extra,
                    std::function<Values(const Values&)> body) {
  OpCase result{std::string("causal_conv1d: ") + what, Op::causal_conv1d,
                [=, body = std::move(body)](uint64_t seed, Device device) {
                  Rng rng(seed);
                  const int64_t batch = odd_size(rng, 2);
                  return OpInstance{[body](Tape&, const Values& in) { return body(in); },
                                    {normal_tensor(rng, {batch, time, channels + extra}, device),
                                     normal_tensor(rng, {channels, 1, taps}, device),
                                     normal_tensor(rng, {channels}, device)},
                                    {"x", "weight", "bias"}};
                }};
  result.float32_tolerance = 1e-4;
  return result;
}

OpCase conv_case(const char* what, int64_t taps, bool silu, int64_t time, int64_t channels) {
  return conv_case_of(what, taps, time, channels, 2, [=](const Values& in) {
    const Values parts = split(in[0], {2, channels});
    return Values{causal_conv1d(parts[1], in[1], in[2], silu), scale(parts[0], 2)};
  });
}

/// elu + 1 of the second of three parts; the others stay as they are.
OpCase conv_elu_case(const char* what, int64_t taps, bool silu, int64_t time, int64_t begin, int64_t end,
                     int64_t channels) {
  return conv_case_of(what, taps, time, channels, 0, [=](const Values& in) {
    return causal_conv1d_elu(in[0], in[1], in[2], silu, {begin, end - begin, channels - end}, 1).parts;
  });
}

OpCase pool_case(const char* what, Pooling how, bool lengths, bool valid) {
  return {std::string("pool: ") + what, Op::pool, [=](uint64_t seed, Device device) {
            Rng rng(seed);
            const int64_t batch = odd_size(rng, 7), time = odd_size(rng, 63), width = odd_size(rng, 100);
            std::vector<int32_t> steps(static_cast<size_t>(batch));
            for (int32_t& n : steps) n = static_cast<int32_t>(rng.below(static_cast<uint32_t>(time) + 1));
            const Tensor valid_time =
                Tensor::from(std::vector<int32_t>{static_cast<int32_t>(time + 1) / 2}, {1}, device);
            const Tensor length = Tensor::from(steps, {batch}, device);
            return OpInstance{[=](Tape&, const Values& in) {
                                const Values parts = split(in[0], {1, width});
                                return Values{pool(parts[1], how, lengths ? length : Tensor{},
                                                   valid ? valid_time : Tensor{}),
                                              scale(parts[0], 2)};
                              },
                              {normal_tensor(rng, {batch, time, width + 1}, device)},
                              {"x"}};
          }};
}

}  // namespace

std::vector<OpCase> op_cases_sequence() {
  std::vector<OpCase> cases;
  cases.push_back(embedding_case("table alone, most tokens absent", false, false, 1000));
  cases.push_back(embedding_case("table, positions and bias", true, true, 7));
  cases.push_back(embedding_case("one token only", true, false, 1));
  cases.push_back(embedding_case("table and bias", false, true, 63));
  cases.push_back(conv_case("4 taps with SiLU", 4, true, 63, 7));
  cases.push_back(conv_case("4 taps, whole strips of channels", 4, true, 63, 128));
  cases.push_back(conv_case("4 taps", 4, false, 100, 100));
  cases.push_back(conv_case("1 tap with SiLU", 1, true, 7, 63));
  cases.push_back(conv_case("more taps than steps", 7, true, 3, 5));
  cases.push_back(conv_case("several blocks of time", 3, true, 1030, 1));
  cases.push_back(conv_elu_case("elu + 1 of channels 5 to 62", 4, true, 63, 5, 63, 100));
  cases.push_back(conv_elu_case("elu + 1 of a whole strip", 4, true, 40, 64, 127, 128));
  cases.push_back(conv_elu_case("elu + 1 without SiLU", 4, false, 70, 1, 6, 7));
  cases.push_back(conv_elu_case("elu + 1 behind 3 taps", 3, false, 63, 2, 5, 7));
  cases.push_back(pool_case("mean", Pooling::mean, false, false));
  cases.push_back(pool_case("mean over each sequence's own length", Pooling::mean, true, false));
  cases.push_back(pool_case("mean over the valid steps", Pooling::mean, true, true));
  cases.push_back(pool_case("max", Pooling::max, false, false));
  cases.push_back(pool_case("max over the valid steps", Pooling::max, true, true));
  cases.push_back(pool_case("sum over the valid steps", Pooling::sum, false, true));
  cases.push_back(pool_case("first", Pooling::first, true, false));
  cases.push_back(pool_case("last", Pooling::last, false, false));
  cases.push_back(pool_case("last valid", Pooling::last, true, true));
  cases.push_back({"reverse_time: rows of any stride", Op::reverse_time, [](uint64_t seed, Device device) {
                     Rng rng(seed);
                     const Shape shape{odd_size(rng, 7), odd_size(rng, 63), odd_size(rng, 63) + 1};
                     return OpInstance{[](Tape&, const Values& in) {
                                         const Values parts = split(in[0], {1, in[0].dim(2) - 1});
                                         return Values{unary(Unary::silu, reverse_time(parts[1])), parts[0]};
                                       },
                                       {normal_tensor(rng, shape, device)},
                                       {"x"}};
                   }});
  return cases;
}

}  // namespace eigentrace
