#include "tasks/imdb.h"

#include <archive.h>
#include <archive_entry.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "tasks/characters.h"
#include "tasks/files.h"
#include "tasks/sequence_task.h"
#include "tensor/error.h"

namespace eigentrace {

namespace {

constexpr DataSource kSource{
    "imdb", "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
    "aclImdb/train and aclImdb/test with the folders neg and pos, or the archive itself"};

struct Review {
  int64_t id = 0;
  std::string file, text;
};
using Reviews = std::array<std::array<std::vector<Review>, 2>, 2>;  // [train, test][neg, pos]

// Where "…/train/pos/17_9.txt" belongs; false for any other file.
bool place(const std::filesystem::path& path, int& split, int& label, int64_t& id) {
  const std::string name = path.filename().string(), kind = path.parent_path().filename().string();
  const std::string part = path.parent_path().parent_path().filename().string();
  if ((part != "train" && part != "test") || (kind != "neg" && kind != "pos") || !name.ends_with(".txt"))
    return false;
  split = part == "test", label = kind == "pos";
  return std::from_chars(name.data(), name.data() + name.size(), id).ec == std::errc();
}

void add(const std::filesystem::path& path, std::string text, Reviews& reviews) {
  int split = 0, label = 0;
  int64_t id = 0;
  if (!place(path, split, label, id)) return;
  if (const int64_t bad = invalid_utf8(text); bad >= 0)
    fail_data(
        path,
        fmt::format("byte {}: expected UTF-8, found 0x{:02x}", bad, static_cast<unsigned char>(text[bad])),
        kSource);
  reviews[split][label].push_back({id, path.string(), std::move(text)});
}

void read_folders(const std::filesystem::path& root, Reviews& reviews) {
  for (const char* part : {"train", "test"}) {
    for (const char* kind : {"neg", "pos"}) {
      const auto folder = root / part / kind;
      std::error_code problem;
      std::filesystem::directory_iterator files(folder, problem);
      if (problem) fail_data(folder, "expected a folder of reviews, found none", kSource);
      for (const auto& entry : files)
        if (entry.path().extension() == ".txt") add(entry.path(), read_data(entry.path(), kSource), reviews);
    }
  }
}

void read_archive(const std::filesystem::path& file, Reviews& reviews) {
  const std::unique_ptr<archive, int (*)(archive*)> in(archive_read_new(), archive_read_free);
  archive_read_support_filter_all(in.get());
  archive_read_support_format_tar(in.get());
  const auto broken = [&] {
    const char* reason = archive_error_string(in.get());
    fail_data(file, fmt::format("the archive cannot be read ({})", reason != nullptr ? reason : "damaged"),
              kSource);
  };
  if (archive_read_open_filename(in.get(), file.c_str(), 1 << 20) != ARCHIVE_OK) broken();
  archive_entry* entry = nullptr;
  for (;;) {
    const int state = archive_read_next_header(in.get(), &entry);
    if (state == ARCHIVE_EOF) break;
    if (state != ARCHIVE_OK && state != ARCHIVE_WARN) broken();
    const char* name = archive_entry_pathname(entry);
    int split = 0, label = 0;
    int64_t id = 0;
    if (name == nullptr || !place(name, split, label, id)) continue;
    std::string text;
    char buffer[1 << 14];
    for (int64_t n; (n = archive_read_data(in.get(), buffer, sizeof buffer)) != 0;) {
      if (n < 0) broken();
      text.append(buffer, static_cast<size_t>(n));
      if (text.size() > 1 << 24) fail_data(file, fmt::format("{} is too long for a review", name), kSource);
    }
    add(file / name, std::move(text), reviews);
  }
}

class Imdb final : public SequenceTask {
 public:
  explicit Imdb(const ImdbConfig& config) : c_(config) {
    if (c_.l_max < 2 || c_.l_max > 1 << 24)
      fail_usage(fmt::format("imdb: l_max: expected 2 to 2^24, found {}", c_.l_max));
    const auto path = find_data(
        c_.data_dir, {"aclImdb", "aclImdb_v1.tar.gz", "aclImdb.tar.gz", "aclImdb.tar.xz", "train"}, kSource);
    if (path.filename() == "train") {
      read_folders(path.parent_path(), reviews_);
    } else if (std::filesystem::is_directory(path)) {
      read_folders(path, reviews_);
    } else {
      read_archive(path, reviews_);
    }
    for (int s = 0; s < 2; ++s) {
      for (int y = 0; y < 2; ++y) {
        auto& group = reviews_[s][y];
        if (group.empty())
          fail_data(path / (s ? "test" : "train") / (y ? "pos" : "neg"),
                    "expected reviews (*.txt), found none", kSource);
        // Folders list their files in no order of their own.
        std::ranges::sort(group, {},
                          [](const Review& r) { return std::pair(r.id, std::string_view(r.file)); });
      }
    }
    for (const auto& group : reviews_[0])
      for (const Review& review : group) vocabulary_.count(review.text, c_.l_max - 1);
    vocabulary_.finish(c_.min_freq);
  }

  std::string name() const override { return ImdbConfig::kName; }
  std::vector<std::string> symbols() const override { return vocabulary_.symbols(); }

  int64_t size(Split split) const override {
    if (split == Split::validation) return 0;
    const auto& part = reviews_[split == Split::test];
    return static_cast<int64_t>(part[0].size() + part[1].size());
  }

  TaskShape shape(Split) const override {
    TaskShape s;
    s.time = c_.l_max;
    s.vocabulary = static_cast<int64_t>(vocabulary_.symbols().size());
    s.classes = 2;
    s.fixed_length = c_.fixed_size;
    return s;
  }

  std::string show(Split split, int64_t index) const override {
    Batch one;
    make(split, std::span(&index, 1), one);
    const Review& review = find(split, index).first;
    return fmt::format("imdb {} example {}: {}\n{}\n({} positions, <eos> included)\nlabel {} ({})\n",
                       split_name(split), index, review.file, review.text, one.lengths[0], one.labels[0],
                       one.labels[0] ? "positive" : "negative");
  }

  std::vector<Finding> inspect() const override {
    std::vector<Finding> findings;
    for (int s = 0; s < 2; ++s)
      for (int y = 0; y < 2; ++y)
        findings.push_back({fmt::format("{}/{}", s ? "test" : "train", y ? "pos" : "neg"),
                            fmt::format("{} reviews, published 12500", reviews_[s][y].size()),
                            reviews_[s][y].size() == 12500});
    const size_t symbols = vocabulary_.symbols().size();
    if (c_.l_max == 4096 && c_.min_freq == 15)
      findings.push_back(
          {"vocabulary", fmt::format("{} symbols, 134 in the published reviews", symbols), symbols == 134});
    return findings;
  }

 protected:
  int32_t sequence(Split split, int64_t index, int64_t, std::vector<int32_t>& out) const override {
    const auto [review, label] = find(split, index);
    vocabulary_.encode(review.text, c_.l_max - 1, out);
    return label;
  }

 private:
  // All negative reviews, then all positive ones.
  std::pair<const Review&, int32_t> find(Split split, int64_t index) const {
    const auto& part = reviews_[split == Split::test];
    const int64_t negative = static_cast<int64_t>(part[0].size());
    if (index < negative) return {part[0][index], 0};
    return {part[1][index - negative], 1};
  }

  ImdbConfig c_;
  Reviews reviews_;
  CharacterVocabulary vocabulary_;
};

}  // namespace

std::unique_ptr<Task> make_task(const ImdbConfig& config) { return std::make_unique<Imdb>(config); }

}  // namespace eigentrace
