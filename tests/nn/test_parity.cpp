#include <doctest/doctest.h>

#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <set>

#include "nn/parity.h"
#include "tensor/error.h"
#include "tensor/io/safetensors.h"

using namespace eigentrace;

namespace {

std::vector<std::string> fixtures() {
  std::vector<std::string> paths;
  for (const auto& entry : std::filesystem::directory_iterator(std::string(EIGENTRACE_TEST_DATA) + "/parity"))
    if (entry.path().extension() == ".safetensors") paths.push_back(entry.path().string());
  return paths;
}

void hold_all(DType dtype) {
  std::set<std::string> quantities;
  const std::vector<std::string> paths = fixtures();
  CHECK(paths.size() == 40);
  for (const std::string& path : paths) {
    Context ctx;
    ctx.poison = true;
    for (const ParityRow& row : run_parity(ctx, path, dtype)) {
      CHECK_MESSAGE(row.pass(), to_string(row));
      quantities.insert(row.quantity);
    }
    CHECK(ctx.slab().in_use() == 0);
  }
  for (const char* q : {"parameters", "output", "loss", "gradients", "mixer_in", "mixer_out", "eigenvalues",
                        "published", "statistics", "loss_per_step", "after3", "after3_conj"})
    CHECK_MESSAGE(quantities.count(q) == 1, q << " was never compared");
}

}  // namespace

TEST_CASE("parity: every fixture's numbers in float64") { hold_all(DType::f64); }

TEST_CASE("parity: every fixture's numbers in float32") { hold_all(DType::f32); }

TEST_CASE("parity: one wrong number, one missing parameter, a file of another kind are each found") {
  const SafetensorsReader reader(std::string(EIGENTRACE_TEST_DATA) +
                                 "/parity/sm-attention-tokens.safetensors");
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
