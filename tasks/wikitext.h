#pragma once
// WikiText-2 and WikiText-103 (Merity et al. 2016), raw form, as GPT-2 tokens in blocks: predict the next
// token.
//
//   input    t0 t1 t2 … t1022 t1023
//   label    t1 t2 t3 … t1023   .      (the last position has no next token inside the block)
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tasks/task.h"

namespace eigentrace {

struct WikiTextConfig {
  static constexpr const char* kName = "wikitext";
  static constexpr const char* kAbout =
      "language modelling of Wikipedia articles, GPT-2 tokens in blocks of 1024";
  std::string data_dir = "data";
  int64_t version = 2;
  int64_t block_size = 1024;
  std::string pack = "published";
  std::string train_file, validation_file, test_file;
  std::string tokenizer_dir;
  std::string cache_dir;
};

template <class V>
void visit_fields(V& v, WikiTextConfig& c) {
  v("data_dir", c.data_dir, "folder of wikitext-2-raw or wikitext-103-raw (wiki.train.raw, …)");
  v("version", c.version, "2 or 103");
  v("block_size", c.block_size, "T: tokens of an example");
  v("pack", c.pack, "published: blocks within groups of 1,000 lines; all: blocks of the whole split");
  v("train_file", c.train_file, "another file for training, relative to data_dir (empty: wiki.train.raw)");
  v("validation_file", c.validation_file, "another file for validation (empty: wiki.valid.raw)");
  v("test_file", c.test_file, "another file for testing (empty: wiki.test.raw)");
  v("tokenizer_dir", c.tokenizer_dir,
    "folder of encoder.json and vocab.bpe (empty: data_dir/gpt2, data_dir)");
  v("cache_dir", c.cache_dir, "where token files are kept (empty: ~/.cache/eigentrace; none: nowhere)");
}

/// Errors: an unknown version or pack, block_size below 2 (usage); missing or wrong files, a text that is no
/// UTF-8. Tokens are made at the first start and read from the cache afterwards.
std::unique_ptr<Task> make_task(const WikiTextConfig& config);

/// Cuts tokenised lines into blocks: the lines are divided into 8 contiguous parts (the first lines mod 8 of
/// them one line longer), each part into groups of 1,000 lines; the ids of a group are joined and cut, the
/// rest dropped. lines: tokens of each line, joined in ids. one_group: the whole is one group. Returns the
/// starts of the blocks in ids, ascending.
std::vector<int64_t> pack_blocks(std::span<const int32_t> lines, int64_t block, bool one_group);

}  // namespace eigentrace
