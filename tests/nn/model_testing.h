#pragma once
// Small transformers and batches for the tests of models.
#include <algorithm>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "nn/model.h"

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

inline ModelInput token_input(const std::vector<int32_t>& ids, int64_t batch, int64_t time) {
  std::vector<int32_t> order(ids.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return ids[static_cast<size_t>(a)] < ids[static_cast<size_t>(b)];
  });
  ModelInput input;
  input.tokens = {Tensor::from(ids, {batch, time}), Tensor::from(order, {batch * time})};
  return input;
}

inline std::vector<int32_t> random_tokens(int64_t count, int32_t below, uint64_t seed) {
  Rng rng(seed);
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (int32_t& id : ids) id = static_cast<int32_t>(rng.below(static_cast<uint32_t>(below)));
  return ids;
}

/// Every row labelled with a class below `classes`.
inline Labels label_all(int64_t rows, int32_t classes, uint64_t seed) {
  std::vector<int32_t> order(static_cast<size_t>(rows));
  std::iota(order.begin(), order.end(), 0);
  return {Tensor::from(order, {rows}), Tensor::from(random_tokens(rows, classes, seed), {rows}),
          Tensor::from(std::vector<float>(static_cast<size_t>(rows), 1.0f), {rows}),
          Tensor::from(std::vector<double>{static_cast<double>(rows)}, {1})};
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

}  // namespace eigentrace
