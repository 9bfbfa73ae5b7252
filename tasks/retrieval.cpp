#include "tasks/retrieval.h"

#include <fmt/format.h>

#include <array>

#include "tasks/characters.h"
#include "tasks/files.h"
#include "tasks/sequence_task.h"
#include "tensor/error.h"

namespace eigentrace {

namespace {

constexpr DataSource kSource{"aan", "https://github.com/google-research/long-range-arena (lra_release.gz)",
                             "new_aan_pairs.train.tsv, new_aan_pairs.eval.tsv and new_aan_pairs.test.tsv"};

class Retrieval final : public SequenceTask {
 public:
  explicit Retrieval(const RetrievalConfig& config) : c_(config) {
    if (c_.l_max < 2 || c_.l_max > 1 << 24)
      fail_usage(fmt::format("aan: l_max: expected 2 to 2^24, found {}", c_.l_max));
    const char* parts[3] = {"train", "eval", "test"};
    for (int s = 0; s < 3; ++s) {
      const std::string name = fmt::format("new_aan_pairs.{}.tsv", parts[s]);
      const auto path = find_data(
          c_.data_dir, {name, "aan/" + name, "tsv_data/" + name, "lra_release/tsv_data/" + name}, kSource);
      text_[s] = read_data(path, kSource);
      rows_[s] = parse_retrieval_tsv(text_[s], path.string());
    }
    for (const RetrievalRow& row : rows_[0])
      for (std::string_view text : row.text) vocabulary_.count(text, c_.l_max - 1);
    vocabulary_.finish(1);
  }

  std::string name() const override { return RetrievalConfig::kName; }
  int64_t size(Split split) const override {
    return static_cast<int64_t>(rows_[static_cast<int>(split)].size());
  }
  std::vector<std::string> symbols() const override { return vocabulary_.symbols(); }

  TaskShape shape(Split) const override {
    TaskShape s;
    s.time = c_.l_max;
    s.vocabulary = static_cast<int64_t>(vocabulary_.symbols().size());
    s.classes = 2;
    s.fixed_length = c_.fixed_size;
    s.documents = 2;
    return s;
  }

  std::string show(Split split, int64_t index) const override {
    Batch one;
    make(split, std::span(&index, 1), one);
    const RetrievalRow& row = rows_[static_cast<int>(split)][index];
    return fmt::format("aan {} example {}\nfirst ({} positions): {}\nsecond ({} positions): {}\nlabel {}\n",
                       split_name(split), index, one.lengths[0], row.text[0], one.lengths[1], row.text[1],
                       row.label);
  }

 protected:
  int32_t sequence(Split split, int64_t index, int64_t document, std::vector<int32_t>& out) const override {
    const RetrievalRow& row = rows_[static_cast<int>(split)][index];
    vocabulary_.encode(row.text[document], c_.l_max - 1, out);
    return row.label;
  }

 private:
  RetrievalConfig c_;
  std::array<std::string, 3> text_;
  std::array<std::vector<RetrievalRow>, 3> rows_;
  CharacterVocabulary vocabulary_;
};

}  // namespace

std::unique_ptr<Task> make_task(const RetrievalConfig& config) { return std::make_unique<Retrieval>(config); }

std::vector<RetrievalRow> parse_retrieval_tsv(std::string_view text, const std::string& file) {
  std::vector<RetrievalRow> rows;
  const std::vector<std::string_view> lines = split_lines(text);
  for (size_t i = 0; i < lines.size(); ++i) {
    const auto wrong = [&](const std::string& problem) {
      fail(fmt::format("{}: line {}: {}", file, i + 1, problem));
    };
    const std::vector<std::string_view> fields = split_tabs(lines[i]);
    if (fields.size() != 5)
      wrong(fmt::format("expected 5 columns (label, id, id, text, text), found {}", fields.size()));
    const bool one = fields[0] == "1" || fields[0] == "1.0", zero = fields[0] == "0" || fields[0] == "0.0";
    if (!one && !zero) wrong(fmt::format("expected label 0 or 1, found '{}'", fields[0].substr(0, 20)));
    for (int d : {3, 4})
      if (const int64_t bad = invalid_utf8(fields[d]); bad >= 0)
        wrong(fmt::format("column {}: expected UTF-8, found byte 0x{:02x} at {}", d + 1,
                          static_cast<unsigned char>(fields[d][bad]), bad));
    rows.push_back({one ? 1 : 0, {fields[3], fields[4]}});
  }
  if (rows.empty()) fail(fmt::format("{}: expected at least one row, found none", file));
  return rows;
}

}  // namespace eigentrace
