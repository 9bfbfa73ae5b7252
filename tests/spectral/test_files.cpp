// Spectra written and read back; the published reading beside the exact one.
#include "spectral/files.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdio>
#include <filesystem>

#include "spectral/published.h"
#include "tensor/error.h"
#include "tensor/io/file.h"
#include "tensor/io/npy.h"
#include "tests/spectral/systems.h"

using namespace eigentrace;

namespace {

struct TemporaryFolder {
  std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("eigentrace_spectra_" + std::to_string(std::rand()));
  TemporaryFolder() { std::filesystem::create_directories(path); }
  ~TemporaryFolder() { std::filesystem::remove_all(path); }
};

SpectrumRecord record_of_every_family() {
  SpectrumRecord record;
  record.about = {{"model", "test"}, {"stage", "initial"}};
  ReadingOptions options;
  options.max_values = 1000;  // Mamba-1 sampled
  int64_t layer = 0;
  for (const auto& build : all_systems()) {
    const TestSystem test = build(63, DType::f64, 17);
    LayerRecord one;
    one.spectrum = read_spectrum(test.system, layer, options);
    one.statistics = layer_statistics(one.spectrum);
    one.replay = replay(test.system, test.y);
    one.published = read_published(test.system, layer++);
    if (one.published) one.comparison = compare_readings(one.spectrum, *one.published);
    record.layers.push_back(std::move(one));
  }
  return record;
}

void same(const LayerSpectrum& a, const LayerSpectrum& b) {
  CHECK(a.layer == b.layer);
  CHECK(a.family == b.family);
  CHECK(a.reading == b.reading);
  CHECK(a.kind == b.kind);
  CHECK(a.shape == b.shape);
  CHECK(a.log_abs == b.log_abs);
  CHECK(a.arg == b.arg);
  CHECK(a.first_step == b.first_step);
  CHECK(a.channels == b.channels);
  CHECK(a.series == b.series);
  CHECK(a.full_count == b.full_count);
  CHECK(a.streamed.radius_percent == b.streamed.radius_percent);
  CHECK(a.streamed.expanding == b.streamed.expanding);
}

}  // namespace

TEST_CASE("spectrum files: what is written is read back bit by bit, for every family") {
  const TemporaryFolder folder;
  const std::string path = (folder.path / "spectrum_initial").string();
  const SpectrumRecord record = record_of_every_family();
  write_spectrum(path, record);
  const auto spectra = read_spectra(path + ".npz");
  size_t published = 0;
  for (const LayerRecord& layer : record.layers) published += layer.published.has_value();
  CHECK(published == 7);  // not Mamba-1, not S5
  REQUIRE(spectra.size() == record.layers.size() + published);
  size_t at = 0;
  for (const LayerRecord& layer : record.layers) same(layer.spectrum, spectra[at++]);
  for (const LayerRecord& layer : record.layers)
    if (layer.published) same(*layer.published, spectra[at++]);
  CHECK(layer_statistics(spectra[5]).all.count == record.layers[5].statistics.all.count);
}

TEST_CASE("spectrum files: arrays have the names and shapes that the header promises") {
  const TemporaryFolder folder;
  const std::string path = (folder.path / "spectrum").string();
  write_spectrum(path, record_of_every_family());
  const auto arrays = read_npz(path + ".npz");
  CHECK(arrays.at("format").as<int64_t>()[0] == spectrum_format);
  CHECK(arrays.at("layer0/log_abs").shape == std::vector<int64_t>{2, 62, 2});
  CHECK(arrays.at("layer3/arg").shape == std::vector<int64_t>{2, 63, 4});
  CHECK(arrays.at("layer0/heads/radius_percent.mean").shape == std::vector<int64_t>{2, 7});
  CHECK(arrays.at("layer0/all/radius_percent.mean").shape == std::vector<int64_t>{7});
  CHECK(arrays.at("layer0/heads/count").shape == std::vector<int64_t>{2});
  CHECK(arrays.at("layer0/all/count").shape.empty());
  const auto text = arrays.at("metadata").as<uint8_t>();
  CHECK(std::string(text.begin(), text.end()) + "\n" == read_file(path + ".json"));
}

TEST_CASE("spectrum files: a file that is none, or of another format, is refused by name") {
  const TemporaryFolder folder;
  const std::string path = (folder.path / "other.npz").string();
  write_npz(path, {{"x", HostView({1}, std::vector<double>{1})}});
  CHECK_THROWS_WITH_AS(read_spectra(path), doctest::Contains("array format is missing"), Error);
  const std::vector<int64_t> later{spectrum_format + 1};
  write_npz(path, {{"format", HostView(std::vector<int64_t>{}, later)}});
  CHECK_THROWS_WITH_AS(read_spectra(path), doctest::Contains("expected format 1, found 2"), Error);
}

TEST_CASE("published reading: softmax leaves the scale out and counts what it masks") {
  const TestSystem test = softmax_system(63, DType::f64, 3);
  const auto published = read_published(test.system, 1);
  REQUIRE(published.has_value());
  CHECK(published->reading == "published");
  CHECK(published->shape == std::vector<int64_t>{2, 62, 2});
  const auto& maps = std::get<Kernel>(test.system.maps);
  const auto q = maps.q.to_vector<double>(), k = maps.k.to_vector<double>();
  // Row by row with plain exponentials, for sequence 1 and head 1.
  const auto eta = [&](int64_t i) {
    double sum = 0, top = i < 62 ? 0.0 : -1e300;
    for (int64_t j = 0; j <= i; ++j) {
      double score = 0;
      for (int64_t s = 0; s < 5; ++s)
        score += q[size_t(((63 + i) * 2 + 1) * 5 + s)] * k[size_t(((63 + j) * 2 + 1) * 5 + s)];
      sum += std::exp(score), top = std::max(top, score);
    }
    return sum + double(62 - i) * std::exp(top);
  };
  for (const int64_t i : {1, 30, 62})
    CHECK(std::exp(published->log_abs[size_t((62 + i - 1) * 2 + 1)]) ==
          doctest::Approx(eta(i - 1) / eta(i)).epsilon(1e-12));
  const ReadingComparison c = compare_readings(read_spectrum(test.system, 1), *published);
  CHECK(c.count == 2 * 62 * 2);
  CHECK(c.mean_difference > 0.1);
  CHECK(c.exact_percent.size() == 7);
}

TEST_CASE("published reading: the families it reads as they are differ by rounding alone") {
  for (const auto& build : {linear_system, norm_system, mamba2_system, pseudo_lti_system, lru_system}) {
    const TestSystem test = build(63, DType::f64, 3);
    CAPTURE(name_of(test.system.family));
    const auto published = read_published(test.system, 0);
    REQUIRE(published.has_value());
    const ReadingComparison c = compare_readings(read_spectrum(test.system, 0), *published);
    CHECK(c.mean_difference < 1e-13);
    CHECK(c.non_finite == 0);
    CHECK(c.count == int64_t(published->log_abs.size()));
  }
}

TEST_CASE("published reading: a vanished factor becomes 2e-23, so that two of them make a λ of 1") {
  TestSystem test = norm_system_offset(63, DType::f32, 3, 9.0);  // exp(−f) is 0 everywhere in float32
  const auto published = read_published(test.system, 0);
  for (const double log_abs : published->log_abs) CHECK(log_abs == 0);
  CHECK(layer_statistics(read_spectrum(test.system, 0)).all.unit_share < 0.01);
}

TEST_CASE("published reading: S4 is channel 1 alone, paired with the exact one in the plane") {
  const TestSystem test = s4_system(63, DType::f64, 3);
  const auto published = read_published(test.system, 0);
  REQUIRE(published.has_value());
  CHECK(published->channels == std::vector<int64_t>{1});
  const ReadingComparison c = compare_readings(read_spectrum(test.system, 0), *published);
  CHECK(c.count == 4);
  CHECK(c.mean_difference < 1e-12);
  CHECK_FALSE(read_published(mamba1_system(63, DType::f64, 3).system, 0).has_value());
}

TEST_CASE("published reading: spectra of different layers are not compared") {
  const TestSystem test = linear_system(63, DType::f64, 3);
  const LayerSpectrum exact = read_spectrum(test.system, 0);
  CHECK_THROWS_AS(compare_readings(exact, *read_published(test.system, 1)), Error);
}
