#include "tasks/pathfinder.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "tasks/files.h"
#include "tasks/images.h"
#include "tasks/sampling.h"
#include "tensor/error.h"

namespace eigentrace {

namespace {

constexpr DataSource kSource{
    "pathfinder", "https://github.com/google-research/long-range-arena (lra_release.gz)",
    "pathfinder32/curv_contour_length_14 with imgs and metadata (or leave data_dir empty to "
    "draw the images)"};

void check(const PathfinderConfig& c) {
  const auto need = [](bool good, const std::string& message) {
    if (!good) fail_usage("pathfinder: " + message);
  };
  need(c.resolution >= 8 && c.resolution <= 1024,
       fmt::format("resolution: expected 8 to 1024, found {}", c.resolution));
  need(c.val_split >= 0 && c.test_split >= 0 && c.val_split + c.test_split < 1,
       fmt::format("val_split, test_split: expected shares that leave a training set, found {} and {}",
                   c.val_split, c.test_split));
  need(c.contour_length >= 1 && c.contour_length <= 1000,
       fmt::format("contour_length: expected 1 to 1000, found {}", c.contour_length));
  need(c.distractors >= 0 && c.distractors <= 1000,
       fmt::format("distractors: expected 0 to 1000, found {}", c.distractors));
  for (int64_t n : {c.num_train_examples, c.num_validation_examples, c.num_test_examples})
    need(n >= 0 && n <= UINT32_MAX, fmt::format("num_*_examples: expected 0 to 2^32 - 1, found {}", n));
}

class Pathfinder final : public Task {
 public:
  explicit Pathfinder(const PathfinderConfig& config) : c_(config) {
    check(c_);
    if (c_.data_dir.empty()) {
      sizes_ = {c_.num_train_examples, c_.num_validation_examples, c_.num_test_examples};
      if (sizes_[0] > 0) draw_pathfinder(c_, Split::train, 0);  // paths that do not fit are found out now
      return;
    }
    read_folder();
    const int64_t n = static_cast<int64_t>(entries_.size());
    sizes_[1] = static_cast<int64_t>(c_.val_split * static_cast<double>(n));
    sizes_[2] = static_cast<int64_t>(c_.test_split * static_cast<double>(n));
    sizes_[0] = n - sizes_[1] - sizes_[2];
    order_ = published_permutation(c_.seed, n);
  }

  std::string name() const override { return PathfinderConfig::kName; }
  int64_t size(Split split) const override { return sizes_[static_cast<int>(split)]; }

  TaskShape shape(Split) const override {
    TaskShape s;
    s.time = c_.resolution * c_.resolution;
    s.features = c_.tokenize ? 0 : 1;
    s.vocabulary = c_.tokenize ? 256 : 0;
    s.classes = 2;
    return s;
  }

  std::string show(Split split, int64_t index) const override {
    Batch one;
    make(split, std::span(&index, 1), one);
    return fmt::format("pathfinder {} example {}:\n{}label {} ({})\n", split_name(split), index,
                       draw(image(split, index).pixels, c_.resolution, c_.resolution), one.labels[0],
                       one.labels[0] ? "joined" : "not joined");
  }

  std::vector<Finding> inspect() const override {
    if (c_.data_dir.empty()) return {};
    int64_t damaged = 0;
    std::string first;
    for (const PathfinderEntry& entry : entries_) {
      const auto file = root_ / entry.file;
      try {
        parse_png(read_data(file, kSource), file.string(), c_.resolution, c_.resolution);
      } catch (const Error& e) {
        if (damaged++ == 0) first = e.what();
      }
    }
    return {{"images",
             fmt::format("{} of {} cannot be read{}{}", damaged, entries_.size(), damaged ? ": " : "", first),
             damaged == 0}};
  }

 protected:
  void example(Split split, int64_t index, int64_t b, Batch& out) const override {
    const PathfinderImage picture = image(split, index);
    if (c_.tokenize) {
      std::ranges::copy(picture.pixels, out.row(b).begin());
    } else {
      std::ranges::transform(picture.pixels, out.value_row(b).begin(),
                             [](uint8_t x) { return (static_cast<float>(x) / 255.0f - 0.5f) / 0.5f; });
    }
    out.label_sequence(b, picture.label);
  }

 private:
  void read_folder() {
    root_ = find_data(c_.data_dir,
                      {"pathfinder32/" + c_.level, c_.level, "lra_release/pathfinder32/" + c_.level,
                       "lra_release/lra_release/pathfinder32/" + c_.level},
                      kSource);
    std::vector<std::pair<int64_t, std::filesystem::path>> files;
    std::error_code problem;
    std::filesystem::directory_iterator folder(root_ / "metadata", problem);
    if (problem) fail_data(root_ / "metadata", "expected a folder of metadata files, found none", kSource);
    for (const auto& entry : folder) {
      const std::string stem = entry.path().stem().string();
      int64_t number = 0;
      const auto [stop, error] = std::from_chars(stem.data(), stem.data() + stem.size(), number);
      if (entry.path().extension() != ".npy" || error != std::errc() || stop != stem.data() + stem.size())
        fail_data(entry.path(), "expected metadata files named by numbers, as 0.npy", kSource);
      files.emplace_back(number, entry.path());
    }
    std::sort(files.begin(), files.end());
    for (const auto& [number, file] : files)
      for (PathfinderEntry& entry : parse_pathfinder_metadata(read_data(file, kSource), file.string())) {
        // The one file that is empty in the published archive.
        if (c_.level == "curv_baseline" && entry.file == "imgs/0/sample_172.png") continue;
        entries_.push_back(std::move(entry));
      }
    if (entries_.empty()) fail_data(root_ / "metadata", "expected metadata of images, found none", kSource);
  }

  PathfinderImage image(Split split, int64_t index) const {
    if (c_.data_dir.empty()) return draw_pathfinder(c_, split, index);
    const int64_t before = split == Split::train        ? 0
                           : split == Split::validation ? sizes_[0]
                                                        : sizes_[0] + sizes_[1];
    const PathfinderEntry& entry = entries_[order_[before + index]];
    const auto file = root_ / entry.file;
    return {parse_png(read_data(file, kSource), file.string(), c_.resolution, c_.resolution), entry.label};
  }

  PathfinderConfig c_;
  std::array<int64_t, 3> sizes_{};
  std::filesystem::path root_;
  std::vector<PathfinderEntry> entries_;
  std::vector<int64_t> order_;
};

}  // namespace

std::unique_ptr<Task> make_task(const PathfinderConfig& config) {
  return std::make_unique<Pathfinder>(config);
}

std::vector<PathfinderEntry> parse_pathfinder_metadata(std::string_view text, const std::string& file) {
  std::vector<PathfinderEntry> entries;
  const std::vector<std::string_view> lines = split_lines(text);
  for (size_t i = 0; i < lines.size(); ++i) {
    std::vector<std::string_view> fields;
    for (std::string_view rest = lines[i];;) {
      const size_t begin = rest.find_first_not_of(" \t");
      if (begin == std::string_view::npos) break;
      rest.remove_prefix(begin);
      fields.push_back(rest.substr(0, rest.find_first_of(" \t")));
      rest.remove_prefix(fields.back().size());
    }
    if (fields.empty()) continue;
    const bool whole = fields.size() >= 4 && (fields[3] == "0" || fields[3] == "1");
    if (!whole || fields[0].find("..") != std::string_view::npos ||
        fields[1].find('/') != std::string_view::npos)
      fail(fmt::format(
          "{}: line {}: expected folder, file, a number and label 0 or 1 between blanks, found '{}'", file,
          i + 1, lines[i].substr(0, 60)));
    entries.push_back({fmt::format("{}/{}", fields[0], fields[1]), fields[3] == "1"});
  }
  return entries;
}

}  // namespace eigentrace
