#include "tasks/mnist.h"

#include <fmt/format.h>

#include <algorithm>

#include "tasks/files.h"
#include "tasks/images.h"
#include "tasks/sampling.h"
#include "tensor/error.h"

namespace eigentrace {

namespace {

constexpr DataSource kSource{"mnist", "https://ossci-datasets.s3.amazonaws.com/mnist/",
                             "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
                             "t10k-labels-idx1-ubyte, plain or .gz"};
constexpr int64_t kPixels = 784;

class Mnist final : public Task {
 public:
  explicit Mnist(const MnistConfig& config) : c_(config) {
    if (!(c_.val_split >= 0 && c_.val_split < 1))
      fail_usage(fmt::format("mnist: val_split: expected 0 to 1 (exclusive), found {}", c_.val_split));
    load("train", train_);
    load("t10k", test_);
    held_out_ = published_permutation(c_.seed, train_.count());
    training_ = static_cast<int64_t>(static_cast<double>(train_.count()) * (1 - c_.val_split));
    order_ = scan_order(c_.permute ? "br" : "", 32);
    std::erase_if(order_, [](int32_t pixel) { return pixel >= kPixels; });
  }

  std::string name() const override { return MnistConfig::kName; }

  int64_t size(Split split) const override {
    return split == Split::train  ? training_
           : split == Split::test ? test_.count()
                                  : train_.count() - training_;
  }

  TaskShape shape(Split) const override {
    TaskShape s;
    s.time = kPixels;
    s.features = 1;
    s.classes = 10;
    return s;
  }

  std::string show(Split split, int64_t index) const override {
    Batch one;
    make(split, std::span(&index, 1), one);
    const auto [set, i] = find(split, index);
    return fmt::format("mnist {} example {}:\n{}label {}\n", split_name(split), index,
                       draw(set->image(i), 28, 28), one.labels[0]);
  }

  std::vector<Finding> inspect() const override {
    return {{"images",
             fmt::format("{} training and {} test images, published 60000 and 10000", train_.count(),
                         test_.count()),
             train_.count() == 60000 && test_.count() == 10000}};
  }

 protected:
  void example(Split split, int64_t index, int64_t b, Batch& out) const override {
    const auto [set, i] = find(split, index);
    const auto image = set->image(i);
    const auto row = out.value_row(b);
    for (int64_t t = 0; t < kPixels; ++t) row[t] = static_cast<float>(image[order_[t]]) / 255.0f;
    out.label_sequence(b, set->labels[i]);
  }

 private:
  void load(const std::string& part, ImageSet& set) {
    const auto file = [&](const std::string& kind) {
      std::vector<std::string> names;
      for (const char* folder : {"", "mnist/", "MNIST/raw/"})
        for (const char* ending : {"", ".gz"})
          names.push_back(fmt::format("{}{}-{}-ubyte{}", folder, part, kind, ending));
      return find_data(c_.data_dir, names, kSource);
    };
    const auto images = file("images-idx3"), labels = file("labels-idx1");
    const int64_t side[] = {28, 28};
    set.height = set.width = 28;
    set.pixels = parse_idx(read_data(images, kSource), images.string(), side);
    set.labels = parse_idx(read_data(labels, kSource), labels.string(), {});
    if (static_cast<int64_t>(set.pixels.size()) != set.count() * kPixels || set.count() == 0)
      fail_data(labels,
                fmt::format("expected a label for each of {} images, found {}", set.pixels.size() / kPixels,
                            set.count()),
                kSource);
    const auto wrong = std::ranges::find_if(set.labels, [](uint8_t y) { return y > 9; });
    if (wrong != set.labels.end())
      fail_data(labels,
                fmt::format("label {}: expected 0 to 9, found {}", wrong - set.labels.begin(), *wrong),
                kSource);
  }

  std::pair<const ImageSet*, int64_t> find(Split split, int64_t index) const {
    if (split == Split::test) return {&test_, index};
    return {&train_, held_out_[split == Split::train ? index : training_ + index]};
  }

  MnistConfig c_;
  ImageSet train_, test_;
  std::vector<int32_t> order_;
  std::vector<int64_t> held_out_;
  int64_t training_ = 0;
};

}  // namespace

std::unique_ptr<Task> make_task(const MnistConfig& config) { return std::make_unique<Mnist>(config); }

}  // namespace eigentrace
