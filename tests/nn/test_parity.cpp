#include <doctest/doctest.h>

#include <filesystem>
#include <set>

#include "nn/parity.h"
#include "tensor/error.h"

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
