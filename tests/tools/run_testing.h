#pragma once
// Short training runs of every family, and what of a run on disk must not depend on how it got there.
#include <fmt/format.h>

#include <map>
#include <string>
#include <vector>

#include "nn/config/config.h"
#include "tensor/io/safetensors.h"
#include "tools/trainer.h"

namespace eigentrace {

/// Family → its model keys, for sequences of 24 tokens below 32.
inline const std::map<std::string, std::string>& short_models() {
  static const std::map<std::string, std::string> models = {
      {"softmax",
       "layer: transformer, attention_fn: sm-attention, num_heads: 2, mixer: mlp, mixer_dim: 9, "
       "att_dropout: 0.1, embedding: true, max_pos_embed: 24, vocab_size: 32"},
      {"norm",
       "layer: transformer, attention_fn: norm-attention, norm_fn: softplus, approx_fn: elu, offset: "
       "true, dim_conv: 3, num_heads: 2, mixer: none, embedding: true, max_pos_embed: 24, vocab_size: 32"},
      {"mamba2", "layer: mamba, num_heads: 2, conv_dim: 3, vocab_size: 32, pooling: none"},
      {"mamba1", "layer: mamba, version: mamba1, conv_dim: 3, vocab_size: 32, pooling: none"},
      {"lru", "layer: lru, norm: batch, input_dim: 32, pooling: none"},
      {"s5", "layer: s5, norm: batch, num_blocks: 1, input_dim: 32, pooling: none"},
      {"s4", "layer: s4, norm: batch, input_dim: 32, pooling: none, seq_len: 24"},
  };
  return models;
}

/// 14 steps of an MQAR of 40 examples, with evaluations, checkpoints every 3 steps and dropout.
inline std::string short_yaml(const std::string& family, const std::string& train = "lr: 3e-3") {
  return fmt::format(R"(format: eigentrace/1
seed: 7
dataset: {{_name_: mqar, vocab_size: 32, input_seq_length: 24, num_kv_pairs: 3, num_train_examples: 40, num_test_examples: 9}}
train: {{total_steps: 14, batch_size: 7, wd: 0.1, warmup_steps: 2, eval_every: 4, log_every: 3, checkpoint_every: 3,
  eval_split: test, {}}}
model: {{{}, num_layers: 2, hidden_dim: 8, state_dim: 4, dropout: 0.1, output_dim: 32}}
spectral: {{batch: 2, every: 5}}
)",
                     train, short_models().at(family));
}

inline RunConfig short_config(const std::string& family, const std::vector<std::string>& overrides = {}) {
  return read_config(short_yaml(family), "test", overrides).config;
}

/// No live line in the tests' output.
inline TrainerOptions silent_run(int64_t stop_before = -1) {
  TrainerOptions options;
  options.progress = false;
  options.stop_before = stop_before;
  return options;
}

/// Bytes of every tensor of a checkpoint, by name.
inline std::map<std::string, std::vector<std::byte>> checkpoint_tensors(const std::string& path) {
  const SafetensorsReader reader(path);
  reader.verify_checksum();
  std::map<std::string, std::vector<std::byte>> all;
  for (const auto& [name, entry] : reader.entries()) all[name] = reader.read(name).bytes;
  return all;
}

/// Every metrics row but its speed, which differs from run to run.
inline std::vector<std::string> metrics_rows(const RunFolder& folder) {
  std::vector<std::string> rows;
  for (MetricsRow row : folder.read_metrics()) {
    row.steps_per_second = 0;
    rows.push_back(to_json(row));
  }
  return rows;
}

}  // namespace eigentrace
