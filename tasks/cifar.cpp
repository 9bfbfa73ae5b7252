#include "tasks/cifar.h"

#include <fmt/format.h>

#include <algorithm>

#include "tasks/files.h"
#include "tasks/images.h"
#include "tasks/sampling.h"
#include "tensor/error.h"

namespace eigentrace {

namespace {

constexpr DataSource kSource{
    "cifar", "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "cifar-10-batches-bin with data_batch_1.bin to data_batch_5.bin and test_batch.bin"};
constexpr const char* kClasses[10] = {"airplane", "automobile", "bird",  "cat",  "deer",
                                      "dog",      "frog",       "horse", "ship", "truck"};
constexpr int64_t kPixels = 1024;

class Cifar final : public Task {
 public:
  explicit Cifar(const CifarConfig& config) : c_(config) {
    if (c_.tokenize && !c_.grayscale)
      fail_usage("cifar: tokenize: colours have no tokens; set grayscale: True or tokenize: False");
    transpose_ = c_.permute == "transpose";
    if (c_.tokenize && transpose_)
      fail_usage("cifar: permute: transpose makes two features a step, tokens are one; use tokenize: False");
    if (!(c_.val_split >= 0 && c_.val_split < 1))
      fail_usage(fmt::format("cifar: val_split: expected 0 to 1 (exclusive), found {}", c_.val_split));
    order_ = scan_order(transpose_ ? "" : c_.permute.value_or(""), 32);
    for (const char* name :
         {"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"})
      load(name, train_);
    load("test_batch.bin", test_);
    held_out_ = published_permutation(c_.seed, train_.count());
    training_ = static_cast<int64_t>(static_cast<double>(train_.count()) * (1 - c_.val_split));
  }

  std::string name() const override { return CifarConfig::kName; }

  int64_t size(Split split) const override {
    return split == Split::train  ? training_
           : split == Split::test ? test_.count()
                                  : train_.count() - training_;
  }

  TaskShape shape(Split) const override {
    TaskShape s;
    s.time = kPixels;
    s.features = c_.tokenize ? 0 : (c_.grayscale ? 1 : 3) * (transpose_ ? 2 : 1);
    s.vocabulary = c_.tokenize ? 256 : 0;
    s.classes = 10;
    return s;
  }

  std::string show(Split split, int64_t index) const override {
    Batch one;
    make(split, std::span(&index, 1), one);
    const auto [set, i] = find(split, index);
    const auto image = set->image(i);
    std::vector<uint8_t> grey(kPixels);
    for (int64_t p = 0; p < kPixels; ++p) grey[p] = grey_of(image, p);
    return fmt::format("cifar {} example {}: image {} of the {} files\n{}label {} ({})\n", split_name(split),
                       index, i, split == Split::test ? "test" : "training", draw(grey, 32, 32),
                       one.labels[0], kClasses[one.labels[0]]);
  }

  std::vector<Finding> inspect() const override {
    constexpr int64_t kFile = 10000;
    constexpr int kLabels[6][10] = {{1005, 974, 1032, 1016, 999, 937, 1030, 1001, 1025, 981},
                                    {984, 1007, 1010, 995, 1010, 988, 1008, 1026, 987, 985},
                                    {994, 1042, 965, 997, 990, 1029, 978, 1015, 961, 1029},
                                    {1003, 963, 1041, 976, 1004, 1021, 1004, 981, 1024, 983},
                                    {1014, 1014, 952, 1016, 997, 1025, 980, 977, 1003, 1022},
                                    {1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000}};
    std::vector<Finding> findings = {{"records",
                                      fmt::format("{} training and {} test images, published 50000 and 10000",
                                                  train_.count(), test_.count()),
                                      train_.count() == 5 * kFile && test_.count() == kFile}};
    if (!findings[0].good) return findings;
    for (int f = 0; f < 6; ++f) {
      int count[10] = {};
      const ImageSet& set = f < 5 ? train_ : test_;
      for (int64_t i = 0; i < kFile; ++i) ++count[set.labels[(f < 5 ? f * kFile : 0) + i]];
      const bool same = std::equal(count, count + 10, kLabels[f]);
      findings.push_back(
          {f < 5 ? fmt::format("data_batch_{}.bin labels", f + 1) : "test_batch.bin labels",
           same ? "each class as often as published" : "other counts of the classes than published", same});
    }
    return findings;
  }

 protected:
  void example(Split split, int64_t index, int64_t b, Batch& out) const override {
    const auto [set, i] = find(split, index);
    const auto image = set->image(i);
    if (c_.tokenize) {
      const auto row = out.row(b);
      for (int64_t t = 0; t < kPixels; ++t) row[t] = grey_of(image, order_[t]);
    } else {
      float* x = out.value_row(b).data();
      for (int64_t t = 0; t < kPixels; ++t) {
        x = put(image, order_[t], x);
        if (transpose_) x = put(image, t % 32 * 32 + t / 32, x);
      }
    }
    out.label_sequence(b, set->labels[i]);
  }

 private:
  void load(const char* name, ImageSet& set) {
    const auto path = find_data(c_.data_dir, {std::string("cifar-10-batches-bin/") + name, name}, kSource);
    parse_cifar(read_data(path, kSource), path.string(), set);
  }

  std::pair<const ImageSet*, int64_t> find(Split split, int64_t index) const {
    if (split == Split::test) return {&test_, index};
    return {&train_, held_out_[split == Split::train ? index : training_ + index]};
  }

  static uint8_t grey_of(std::span<const uint8_t> image, int64_t pixel) {
    return grey_level(image[pixel], image[kPixels + pixel], image[2 * kPixels + pixel]);
  }

  // Writes the features of one pixel: (x/255 − mean)/deviation in float32, as published.
  float* put(std::span<const uint8_t> image, int64_t pixel, float* x) const {
    if (c_.grayscale) {
      *x++ = (static_cast<float>(grey_of(image, pixel)) / 255.0f - static_cast<float>(122.6 / 255.0)) /
             static_cast<float>(61.0 / 255.0);
      return x;
    }
    constexpr float kMean[3] = {0.4914f, 0.4822f, 0.4465f}, kDeviation[3] = {0.247f, 0.243f, 0.261f};
    for (int k = 0; k < 3; ++k)
      *x++ = (static_cast<float>(image[k * kPixels + pixel]) / 255.0f - kMean[k]) / kDeviation[k];
    return x;
  }

  CifarConfig c_;
  bool transpose_ = false;
  ImageSet train_, test_;
  std::vector<int32_t> order_;
  std::vector<int64_t> held_out_;  // the training files in shuffled order: first training, then validation
  int64_t training_ = 0;
};

}  // namespace

std::unique_ptr<Task> make_task(const CifarConfig& config) { return std::make_unique<Cifar>(config); }

}  // namespace eigentrace
