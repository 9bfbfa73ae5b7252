// ListOps as a task: vocabulary, cutting, batches.
#include "tasks/listops.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <numeric>

#include "tasks/files.h"
#include "tasks/sequence_task.h"
#include "tensor/error.h"

namespace eigentrace {

namespace {

constexpr DataSource kSource{"listops",
                             "https://github.com/google-research/long-range-arena (lra_release.gz)",
                             "basic_train.tsv, basic_val.tsv and basic_test.tsv (or leave data_dir empty to "
                             "generate the task)"};

void check(const ListOpsConfig& c) {
  const auto need = [](bool good, const std::string& message) {
    if (!good) fail_usage("listops: " + message);
  };
  need(c.l_max >= 2 && c.l_max <= 1 << 24, fmt::format("l_max: expected 2 to 2^24, found {}", c.l_max));
  if (!c.data_dir.empty()) return;
  need(c.max_depth >= 2 && c.max_depth <= 100,
       fmt::format("max_depth: expected 2 to 100, found {}", c.max_depth));
  need(c.max_args >= 2 && c.max_args <= 1000,
       fmt::format("max_args: expected 2 to 1000, found {}", c.max_args));
  need(c.min_length >= 0 && c.max_length > c.min_length + 1 && c.max_length <= 1 << 24,
       fmt::format("min_length, max_length: expected a length between them, found {} and {}", c.min_length,
                   c.max_length));
  double longest = 1;  // of a tree whose operators all have max_args arguments
  for (int64_t d = 1; d < c.max_depth; ++d)
    longest = std::min(1e9, 2 + static_cast<double>(c.max_args) * longest);
  need(longest > static_cast<double>(c.min_length),
       fmt::format(
           "min_length: the longest tree of depth {} with {} arguments has {} symbols, so none has more than "
           "{}; raise max_depth or max_args, or lower min_length",
           c.max_depth, c.max_args, longest, c.min_length));
  for (int64_t n : {c.num_train_examples, c.num_validation_examples, c.num_test_examples})
    need(n >= 0 && n <= UINT32_MAX, fmt::format("num_*_examples: expected 0 to 2^32 - 1, found {}", n));
}

class ListOps final : public SequenceTask {
 public:
  explicit ListOps(const ListOpsConfig& config) : c_(config) {
    check(c_);
    std::array<int64_t, kListOpsCodes> count{};
    if (c_.data_dir.empty()) {
      sizes_ = {c_.num_train_examples, c_.num_validation_examples, c_.num_test_examples};
      const int64_t n = sizes_[0];
      // The vocabulary is ordered by frequency in the training set, so all of it is drawn once (integer
      // counts: the same for any number of threads).
      std::array<int64_t, kListOpsCodes> total{};
#pragma omp parallel firstprivate(count)
      {
#pragma omp for schedule(dynamic, 64)
        for (int64_t i = 0; i < n; ++i) count_codes(make_listops(c_, Split::train, i), count);
#pragma omp critical
        for (int k = 0; k < kListOpsCodes; ++k) total[k] += count[k];
      }
      count = total;
    } else {
      const char* names[3] = {"basic_train.tsv", "basic_val.tsv", "basic_test.tsv"};
      for (int s = 0; s < 3; ++s) {
        const auto path = find_data(c_.data_dir, {names[s]}, kSource);
        rows_[s] = parse_listops_tsv(read_data(path, kSource), path.string());
        sizes_[s] = static_cast<int64_t>(rows_[s].size());
      }
      for (const ListOpsRow& row : rows_[0]) count_codes(row.codes, count);
    }
    std::vector<int> order(kListOpsCodes);
    std::iota(order.begin(), order.end(), 0);
    // Codes are numbered in character order, so a stable sort settles ties as the published vocabulary does.
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return count[a] > count[b]; });
    id_.fill(kUnknown);
    symbols_ = {"<pad>", "<unk>", "<eos>"};
    for (int code : order) {
      if (count[code] == 0) continue;
      id_[code] = static_cast<int32_t>(symbols_.size());
      symbols_.push_back(listops_symbol(code));
    }
  }

  std::string name() const override { return ListOpsConfig::kName; }
  int64_t size(Split split) const override { return sizes_[static_cast<int>(split)]; }
  std::vector<std::string> symbols() const override { return symbols_; }

  TaskShape shape(Split) const override {
    TaskShape s;
    s.time = c_.l_max;
    s.vocabulary = static_cast<int64_t>(symbols_.size());
    s.classes = 10;
    s.fixed_length = c_.fixed_size;
    return s;
  }

  std::string show(Split split, int64_t index) const override {
    Batch one;
    make(split, std::span(&index, 1), one);  // checks the index
    const ListOpsCodes codes = c_.data_dir.empty() ? make_listops(c_, split, index) : row(split, index).codes;
    std::string text =
        fmt::format("listops {} example {}: {} symbols\n", split_name(split), index, codes.size());
    int depth = 0;
    for (size_t i = 0; i < codes.size(); ++i) {
      const bool opens = codes[i] > 10;
      if (opens || codes[i] == 10) text += fmt::format("\n{:>{}}", "", 2 * (opens ? depth++ : --depth));
      text += codes[i] == 10 ? "] " : fmt::format("{} ", listops_symbol(codes[i]));
    }
    return text + fmt::format("\nlabel {}\n", one.labels[0]);
  }

  std::vector<Finding> inspect() const override {
    if (c_.data_dir.empty()) return {};
    std::vector<Finding> findings;
    constexpr size_t kRows[3] = {96000, 2000, 2000};
    for (int s = 0; s < 3; ++s) {
      int64_t wrong = 0;
      for (const ListOpsRow& row : rows_[s]) {
        try {
          wrong += listops_value(row.codes) != row.target;
        } catch (const Error&) {
          ++wrong;
        }
      }
      const std::string part = split_name(static_cast<Split>(s));
      findings.push_back({part + " rows", fmt::format("{}, published {}", rows_[s].size(), kRows[s]),
                          rows_[s].size() == kRows[s]});
      findings.push_back({part + " values",
                          fmt::format("{} rows whose Target is not the value of Source", wrong), wrong == 0});
    }
    return findings;
  }

 protected:
  int32_t sequence(Split split, int64_t index, int64_t, std::vector<int32_t>& out) const override {
    if (!c_.data_dir.empty()) return append(row(split, index).codes, out), row(split, index).target;
    const ListOpsCodes codes = make_listops(c_, split, index);
    append(codes, out);
    return listops_value(codes);
  }

 private:
  const ListOpsRow& row(Split split, int64_t index) const { return rows_[static_cast<int>(split)][index]; }
  size_t kept(const ListOpsCodes& codes) const {
    return std::min(codes.size(), static_cast<size_t>(c_.l_max - 1));
  }

  void count_codes(const ListOpsCodes& codes, std::array<int64_t, kListOpsCodes>& count) const {
    for (size_t i = 0; i < kept(codes); ++i) ++count[codes[i]];
  }

  void append(const ListOpsCodes& codes, std::vector<int32_t>& out) const {
    for (size_t i = 0; i < kept(codes); ++i) out.push_back(id_[codes[i]]);
    out.push_back(kEnd);
  }

  ListOpsConfig c_;
  std::array<std::vector<ListOpsRow>, 3> rows_;
  std::array<int64_t, 3> sizes_{};
  std::array<int32_t, kListOpsCodes> id_{};
  std::vector<std::string> symbols_;
};

}  // namespace

std::unique_ptr<Task> make_task(const ListOpsConfig& config) { return std::make_unique<ListOps>(config); }

}  // namespace eigentrace
