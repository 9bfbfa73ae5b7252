#pragma once
// Small transformers and batches for the tests of models, and what every family is held to on every device.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "autograd/gradcheck.h"
#include "nn/model.h"
#include "spectral/replay.h"
#include "tests/cuda_testing.h"

namespace eigentrace {

/// Attention `fn` with `options` (JSON members) on a small model: D 16, S 8, 2 heads, 2 layers, tokens
/// below 11.
inline ModelConfig small_transformer(const std::string& fn, const std::string& options = "") {
  return read_model_config(R"({"layer": "transformer", "attention_fn": ")" + fn +
                           R"(", "num_layers": 2, "hidden_dim": 16, "state_dim": 8, "num_heads": 2)" +
                           (options.find("embedding") == std::string::npos
                                ? std::string(R"(, "vocab_size": 11, "output_dim": 11)")
                                : std::string()) +
                           (options.empty() ? "" : ", ") + options + "}");
}

inline ModelInput token_input(const std::vector<int32_t>& ids, int64_t batch, int64_t time,
                              Device device = {}) {
  std::vector<int32_t> order(ids.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return ids[static_cast<size_t>(a)] < ids[static_cast<size_t>(b)];
  });
  ModelInput input;
  input.tokens = {Tensor::from(ids, {batch, time}, device), Tensor::from(order, {batch * time}, device)};
  return input;
}

inline std::vector<int32_t> random_tokens(int64_t count, int32_t below, uint64_t seed) {
  Rng rng(seed);
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (int32_t& id : ids) id = static_cast<int32_t>(rng.below(static_cast<uint32_t>(below)));
  return ids;
}

/// Every row labelled with a class below `classes`.
inline Labels label_all(int64_t rows, int32_t classes, uint64_t seed, Device device = {}) {
  std::vector<int32_t> order(static_cast<size_t>(rows));
  std::iota(order.begin(), order.end(), 0);
  return {Tensor::from(order, {rows}, device),
          Tensor::from(random_tokens(rows, classes, seed), {rows}, device),
          Tensor::from(std::vector<float>(static_cast<size_t>(rows), 1.0f), {rows}, device),
          Tensor::from(std::vector<double>{static_cast<double>(rows)}, {1}, device)};
}

/// Moves every parameter off its initial value, so that ones, zeros and equal heads hide nothing.
inline void perturb(Model& model, double size) {
  for (Parameter& p : model.parameters().parameters()) {
    Rng rng(3, static_cast<uint64_t>(p.index));
    std::vector<double> values = p.value.to_vector<double>();
    for (double& v : values) v += size * rng.normal();
    p.value.assign(values);
  }
}

/// Simulating each layer's realisation step by step gives what the layer computed on its device.
inline void check_replay(const Model& model, const ModelInput& input, double tolerance) {
  Context ctx = testing::poisoned(model.parameters().device());
  Tape tape(ctx, false);
  Forward forward(tape, model.parameters());
  size_t layers = 0;
  forward.on_mixer = [&](int, const Mixer& mixer, const Terms& terms, const Mixed& mixed) {
    const ReplayResult result = replay(mixer.realise(terms, mixed), mixed.y.value());
    CHECK_MESSAGE(result.agrees(tolerance), result.text());
    ++layers;
    return Var();
  };
  model.output(forward, input);
  CHECK(layers == model.mixers().size());
}

/// Of the variants of a family those that a test on `device` takes: the emulation is slow.
template <class Variant>
std::vector<Variant> taken_on(Device device, const std::vector<Variant>& all, size_t every) {
  if (!device.is_cuda() || !cuda_is_emulated()) return all;
  std::vector<Variant> some;
  for (size_t i = 0; i < all.size(); i += every) some.push_back(all[i]);
  return some;
}

/// Gradients of loss + Σ cotangent·output, with normal cotangents, dropout and the batch's statistics,
/// against central differences in float64.
inline void check_gradients(Model& model, const ModelInput& input, const Labels& labels,
                            int64_t elements_per_parameter) {
  const testing::OneThread one_thread;
  Context ctx = testing::poisoned(model.parameters().device());
  ctx.set_step(3, 4);
  std::vector<double> cotangent;
  const auto loss = [&](bool record) {
    Tape tape(ctx, record);
    Forward forward(tape, model.parameters());
    forward.dropout = forward.batch_statistics = true;
    const Var roots[2] = {model.loss(forward, input, labels).value, model.output(forward, input)};
    const std::vector<double> y = roots[1].value().to_vector<double>();
    Rng rng(9);
    const double scale = 1 / std::sqrt(static_cast<double>(y.size()));  // or the sum's rounding would count
    while (cotangent.size() < y.size()) cotangent.push_back(scale * rng.normal());
    if (record) {
      const Tensor seeds[2] = {Tensor::from(std::vector<double>{1}, {}, ctx.device()),
                               Tensor::from(cotangent, roots[1].shape(), ctx.device())};
      tape.backward(roots, seeds);
    }
    return std::inner_product(y.begin(), y.end(), cotangent.begin(), roots[0].value().item());
  };
  loss(true);
  std::vector<Tensor> values;
  std::vector<std::string> names;
  std::vector<std::vector<double>> analytic;
  for (const Parameter& p : model.parameters().parameters()) {
    values.push_back(p.value), names.push_back(p.name);
    analytic.push_back(p.gradient.to_vector<double>());
  }
  GradcheckOptions options;
  options.max_elements = elements_per_parameter;
  options.step = 1e-5;
  const GradcheckReport report =
      compare_gradients([&] { return loss(false); }, values, analytic, names, options);
  CHECK_MESSAGE(report.max_error() < 1e-6, report.worst[0].input << " " << report.worst[0].error);
  CHECK(ctx.slab().in_use() == 0);
}

}  // namespace eigentrace
