#pragma once
// A folder that goes with its owner, and a configuration that trains in a fraction of a second.
#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "tensor/io/file.h"

namespace eigentrace {

struct SweepFolder {
  std::string path;
  explicit SweepFolder(const std::string& name)
      : path(fmt::format("{}/eigentrace-{}-{}", std::filesystem::temp_directory_path().string(), name,
                         getpid())) {
    std::filesystem::remove_all(path);
    ensure_directory(path);
    write_atomically(path + "/base.yaml", R"(format: eigentrace/1
seed: 7
dataset: {_name_: mqar, vocab_size: 40, input_seq_length: 32, num_kv_pairs: 3, num_train_examples: 50, num_test_examples: 9}
train: {total_steps: 6, batch_size: 7, lr: 3e-3, warmup_steps: 2, eval_every: 6, log_every: 3, eval_split: test}
model: {layer: transformer, attention_fn: lin-attention, num_layers: 1, hidden_dim: 12, state_dim: 8, num_heads: 2,
  mixer: mlp, mixer_dim: 9, dropout: 0.1, embedding: true, vocab_size: 40, max_pos_embed: 32, output_dim: 40}
spectral: {batch: 2}
)");
  }
  ~SweepFolder() { std::filesystem::remove_all(path); }
  SweepFolder(const SweepFolder&) = delete;
  SweepFolder& operator=(const SweepFolder&) = delete;
  std::string write(const std::string& name, const std::string& text) const {
    write_atomically(path + "/" + name, text);
    return path + "/" + name;
  }
};

}  // namespace eigentrace
