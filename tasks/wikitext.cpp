#include "tasks/wikitext.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdio>

#include "tasks/files.h"
#include "tasks/sha256.h"
#include "tasks/token_cache.h"
#include "tensor/error.h"

namespace eigentrace {

namespace {

constexpr const char* kPage = "https://huggingface.co/datasets/Salesforce/wikitext (raw form)";
constexpr DataSource kWikiText2{"wikitext", kPage,
                                "wikitext-2-raw with wiki.train.raw, wiki.valid.raw, wiki.test.raw"};
constexpr DataSource kWikiText103{"wikitext-103", kPage,
                                  "wikitext-103-raw with wiki.train.raw, wiki.valid.raw, wiki.test.raw"};
constexpr const char* kFiles[3] = {"wiki.train.raw", "wiki.valid.raw", "wiki.test.raw"};

class WikiText final : public Task {
 public:
  explicit WikiText(const WikiTextConfig& config)
      : c_(config), tokenizer_(BpeTokenizer::from_folder(bpe_folder())) {
    if (c_.version != 2 && c_.version != 103)
      fail_usage(fmt::format("wikitext: version: expected 2 or 103, found {}", c_.version));
    if (c_.block_size < 2 || c_.block_size > 1 << 24)
      fail_usage(fmt::format("wikitext: block_size: expected 2 to 2^24, found {}; the study has 1024",
                             c_.block_size));
    if (c_.pack != "published" && c_.pack != "all")
      fail_usage(fmt::format("wikitext: pack: expected published or all, found '{}'", c_.pack));
    const std::string* chosen[3] = {&c_.train_file, &c_.validation_file, &c_.test_file};
    for (int s = 0; s < 3; ++s) {
      const std::string folder = fmt::format("wikitext-{}-raw/", c_.version);
      std::vector<std::string> names = {folder + kFiles[s], kFiles[s]};
      if (!chosen[s]->empty()) names = {*chosen[s]};
      // Validation is not used by the study: a set without it is complete, unless a file was asked for by
      // name.
      std::error_code ignored;
      if (s == 1 && chosen[s]->empty() && std::ranges::none_of(names, [&](const std::string& name) {
            return std::filesystem::exists(std::filesystem::path(c_.data_dir) / name, ignored);
          }))
        continue;
      load(find_data(c_.data_dir, names, source()), splits_[s]);
    }
  }

  std::string name() const override { return WikiTextConfig::kName; }
  int64_t size(Split split) const override { return static_cast<int64_t>(of(split).starts.size()); }

  TaskShape shape(Split) const override {
    TaskShape s;
    s.time = c_.block_size;
    s.vocabulary = s.classes = tokenizer_.vocabulary();
    s.per_position = true;
    s.labels_per_example = c_.block_size - 1;
    return s;
  }

  std::string show(Split split, int64_t index) const override {
    Batch one;
    make(split, std::span(&index, 1), one);
    return fmt::format("wikitext {} block {}: {} tokens; the label of each is the next\n{}\n",
                       split_name(split), index, one.time, tokenizer_.decode(one.tokens));
  }

  std::vector<Finding> inspect() const override {
    std::vector<Finding> findings;
    constexpr const char* kPublished[2][2] = {
        {"encoder.json", "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"},
        {"vocab.bpe", "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"}};
    for (const auto& [file, published] : kPublished) {
      const bool same = sha256(read_data(bpe_folder() / file, source())) == published;
      findings.push_back(
          {file, same ? "SHA-256 as published" : "SHA-256 differs from the published file's", same});
    }
    for (int s = 0; s < 3; ++s) {
      const Part& part = splits_[s];
      findings.push_back({fmt::format("{} text", split_name(static_cast<Split>(s))),
                          fmt::format("{} lines, {} tokens, {} blocks, {} tokens dropped",
                                      part.text.lines.size(), part.text.ids.size(), part.starts.size(),
                                      static_cast<int64_t>(part.text.ids.size()) -
                                          static_cast<int64_t>(part.starts.size()) * c_.block_size)});
    }
    return findings;
  }

 protected:
  void example(Split split, int64_t index, int64_t b, Batch& out) const override {
    const Part& part = of(split);
    const uint16_t* ids = part.text.ids.data() + part.starts[index];
    std::copy(ids, ids + c_.block_size, out.row(b).begin());
    for (int64_t t = 0; t + 1 < c_.block_size; ++t) out.label(b, t, ids[t + 1]);
  }

 private:
  struct Part {
    TokenisedText text;
    std::vector<int64_t> starts;
  };
  const DataSource& source() const { return c_.version == 103 ? kWikiText103 : kWikiText2; }
  const Part& of(Split split) const { return splits_[static_cast<int>(split)]; }

  std::filesystem::path bpe_folder() const {
    if (!c_.tokenizer_dir.empty()) return c_.tokenizer_dir;
    const auto beside = std::filesystem::path(c_.data_dir) / "gpt2";
    std::error_code ignored;
    return std::filesystem::exists(beside, ignored) ? beside : std::filesystem::path(c_.data_dir);
  }

  void load(const std::filesystem::path& file, Part& part) {
    const std::string text = read_data(file, source());
    // The key holds whatever the tokens depend on: the text and the vocabulary, both by content.
    uint64_t key = digest(text);
    for (int64_t id = 0; id < tokenizer_.vocabulary(); ++id) key = digest(tokenizer_.bytes(id), key);
    std::filesystem::path cache;
    if (c_.cache_dir != "none")
      cache = c_.cache_dir.empty() ? default_cache_dir() : std::filesystem::path(c_.cache_dir);
    if (!cache.empty()) cache /= fmt::format("{}.{:016x}.tokens", file.filename().string(), key);
    std::error_code ignored;
    const bool cached = !cache.empty() && std::filesystem::exists(cache, ignored) &&
                        read_tokens(read_data(cache, source()), key, part.text);
    if (!cached) {
      part.text = tokenise_lines(text, tokenizer_, file.string());
      if (!cache.empty()) {
        try {
          write_file(cache, write_tokens(part.text, key));
        } catch (
            const Error& e) {  // the run does not need the cache, the next one will only start more slowly
          std::fprintf(stderr, "wikitext: tokens are not cached: %s\n", e.what());
        }
      }
    }
    part.starts = pack_blocks(part.text.lines, c_.block_size, c_.pack == "all");
    if (part.starts.empty())
      fail_data(
          file,
          fmt::format("{} tokens in {} lines give no block of {}; use pack: all or a smaller block_size",
                      part.text.ids.size(), part.text.lines.size(), c_.block_size),
          source());
  }

  WikiTextConfig c_;
  BpeTokenizer tokenizer_;
  std::array<Part, 3> splits_;
};

}  // namespace

std::unique_ptr<Task> make_task(const WikiTextConfig& config) { return std::make_unique<WikiText>(config); }

std::vector<int64_t> pack_blocks(std::span<const int32_t> lines, int64_t block, bool one_group) {
  std::vector<int64_t> starts;
  const int64_t n = static_cast<int64_t>(lines.size()), parts = one_group ? 1 : 8;
  int64_t line = 0, token = 0;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t end = line + n / parts + (part < n % parts ? 1 : 0);
    while (line < end) {
      const int64_t group_end = one_group ? end : std::min(end, line + 1000);
      const int64_t begin = token;
      for (; line < group_end; ++line) token += lines[line];
      for (int64_t at = begin; at + block <= token; at += block) starts.push_back(at);
    }
  }
  return starts;
}

}  // namespace eigentrace
