#include <doctest/doctest.h>

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <optional>
#include <set>

#include "nn/parity.h"
#include "tensor/error.h"
#include "tensor/io/safetensors.h"
#include "tests/cuda_testing.h"

using namespace eigentrace;
using namespace eigentrace::testing;

namespace {

std::string folder() { return std::string(EIGENTRACE_TEST_DATA) + "/parity/"; }

std::vector<std::string> fixtures() {
  std::vector<std::string> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder()))
    if (entry.path().extension() == ".safetensors") paths.push_back(entry.path().string());
  std::ranges::sort(paths);
  return paths;
}

/// Of the fixtures' names: compute-sanitizer takes the longest cases by parts.
constexpr const char* families[] = {"lin-", "lru-", "mamba", "norm-", "s4-", "s5-", "sm-"};

/// Every `every`-th fixture on `device`, of those whose names start with `family`.
void hold_all(Device device, DType dtype, Precision precision = Precision::fp32, size_t every = 1,
              const std::string& family = "") {
  std::set<std::string> quantities;
  std::vector<std::string> paths = fixtures();
  CHECK(paths.size() == 40);
  const auto of = [](const std::string& path, const std::string& start) {
    return std::filesystem::path(path).filename().string().starts_with(start);
  };
  for (const std::string& path : paths)
    CHECK(std::ranges::count_if(families, [&](const char* start) { return of(path, start); }) == 1);
  std::erase_if(paths, [&](const std::string& path) { return !of(path, family); });
  CHECK(!paths.empty());
  for (size_t i = 0; i < paths.size(); i += every) {
    Context ctx = poisoned(device, precision);
    for (const ParityRow& row : run_parity(ctx, paths[i], dtype)) {
      CHECK_MESSAGE(row.pass(), to_string(row));
      quantities.insert(row.quantity);
    }
    CHECK(ctx.slab().in_use() == 0);
  }
  if (every > 1 || !family.empty()) return;
  for (const char* q : {"parameters", "output", "loss", "gradients", "mixer_in", "mixer_out", "eigenvalues",
                        "published", "statistics", "loss_per_step", "after3", "after3_conj"})
    CHECK_MESSAGE(quantities.count(q) == 1, q << " was never compared");
}

}  // namespace

TEST_CASE("parity: every fixture's numbers in float64") { hold_all({}, DType::f64); }

TEST_CASE("parity: every fixture's numbers in float32") { hold_all({}, DType::f32); }

TEST_CASE("cuda parity: every fixture's numbers in float64") {
  if (!gpu_here()) return;
  for (const char* family : families) {
    SUBCASE(family) { hold_all(parse_device("cuda"), DType::f64, Precision::fp32, 1, family); }
  }
}

TEST_CASE("cuda parity: every fixture's numbers in float32") {
  if (gpu_here()) hold_all(parse_device("cuda"), DType::f32);
}

TEST_CASE("cuda parity: every fixture's numbers within the bounds of each precision of products") {
  if (!gpu_here()) return;
  for (const Precision precision : {Precision::tf32x3, Precision::tf32, Precision::bf16}) {
    for (const char* family : families) {
      SUBCASE((std::string(name_of(precision)) + " " + family).c_str()) {
        hold_all(parse_device("cuda"), DType::f32, precision, cuda_is_emulated() ? 7 : 1, family);
      }
    }
  }
}

TEST_CASE(
    "cuda parity: bf16 inside softmax attention alone has bf16's bounds, and elsewhere changes nothing") {
  if (!gpu_here()) return;
  const auto output_error = [](const char* file, std::optional<Precision> attention) {
    Context ctx = gpu_context();
    ctx.attention_precision = attention;
    double error = -1;
    for (const ParityRow& row : run_parity(ctx, folder() + file, DType::f32)) {
      CHECK_MESSAGE(row.pass(), to_string(row));
      if (row.quantity == "output") error = row.error;
    }
    return error;
  };
  const char *softmax = "sm-attention-heads4-mlp-mean-classify.safetensors",
             *linear = "lin-attention-heads4-mlp-max-classify.safetensors";
  CHECK(output_error(softmax, Precision::bf16) > 10 * output_error(softmax, {}));
  CHECK(output_error(linear, Precision::bf16) == output_error(linear, {}));
}

TEST_CASE("parity: one wrong number, one missing parameter, a file of another kind are each found") {
  const SafetensorsReader reader(folder() + "sm-attention-tokens.safetensors");
  const std::string path =
      (std::filesystem::temp_directory_path() / ("eigentrace_parity_" + std::to_string(getpid()))).string();
  /// The rows that fail after element 3 of `changed` is moved by 1e-6 of the largest, and `dropped` left out.
  const auto failing = [&](const std::string& changed, const std::string& dropped) {
    std::vector<HostArray> arrays;
    std::vector<std::string> names;
    for (const auto& entry : reader.entries()) {
      if (entry.first == dropped) continue;
      names.push_back(entry.first), arrays.push_back(reader.read(entry.first));
      if (entry.first != changed) continue;
      double largest = 0;
      for (double x : arrays.back().as<double>()) largest = std::max(largest, std::abs(x));
      arrays.back().as<double>()[std::min<size_t>(3, arrays.back().as<double>().size() - 1)] +=
          1e-6 * largest;
    }
    SafetensorsArrays views;
    for (size_t i = 0; i < names.size(); ++i) views.emplace_back(names[i], arrays[i]);
    write_safetensors(path, views, reader.metadata());
    Context ctx;
    std::set<std::string> failed;
    for (const ParityRow& row : run_parity(ctx, path, DType::f64))
      if (!row.pass()) failed.insert(row.quantity);
    return failed;
  };
  using Set = std::set<std::string>;
  CHECK(failing("", "").empty());
  for (const char* name : {"output", "loss", "mixer_in/1", "mixer_out/0"})
    CHECK(failing(name, "") == Set{std::string(name).substr(0, std::string(name).find('/'))});
  CHECK(failing("grad/norm.weight", "") == Set{"gradients"});
  CHECK(failing("eig/0/re", "") == Set{"eigenvalues"});
  CHECK(failing("eig/1/im", "").empty());  // all zero: nothing to move by
  CHECK(failing("after3/param/norm.weight", "") == Set{"after3"});
  CHECK(failing("", "param/norm.bias") == Set{"parameters"});
  Context ctx;
  write_safetensors(path, {});
  CHECK_THROWS_WITH_AS(run_parity(ctx, path, DType::f64), doctest::Contains("expected parity/1"), Error);
  std::filesystem::remove(path);
}
