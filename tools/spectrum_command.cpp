// `eigentrace spectrum`: the eigenvalues of every layer of a run or of a checkpoint.
#include <fmt/format.h>

#include <filesystem>

#include "nn/checkpoint.h"
#include "tensor/error.h"
#include "tensor/io/file.h"
#include "tools/commands.h"
#include "tools/run_spectra.h"

namespace eigentrace {
namespace {

struct Source {
  std::string stage, weights, output;  ///< output: path without extension
};

std::vector<Source> sources(const SpectrumOptions& options) {
  namespace fs = std::filesystem;
  std::vector<Source> all;
  const auto place = [&](const std::string& beside, const std::string& name) {
    return options.out.empty() ? beside + "/" + name : options.out + "/" + name;
  };
  if (!fs::is_directory(options.run)) {
    const fs::path file(options.run);
    const std::string beside = file.has_parent_path() ? file.parent_path().string() : ".";
    return {{"trained", options.run, place(beside, "spectrum_" + file.stem().string())}};
  }
  const RunFolder folder = RunFolder::open(options.run);
  if (options.stage != "initial" && options.stage != "trained" && options.stage != "both")
    fail_usage(fmt::format("--stage: initial, trained or both expected, found '{}'", options.stage));
  if (options.stage != "trained")
    all.push_back({"initial", folder.initial(), place(folder.path(), "spectrum_initial")});
  if (options.stage != "initial") {
    if (fs::exists(folder.checkpoint()))
      all.push_back({"trained", folder.checkpoint(), place(folder.path(), "spectrum_trained")});
    else if (options.stage == "trained")
      fail(fmt::format("{}: the run has no checkpoint yet", options.run));
  }
  return all;
}

}  // namespace

int spectrum_command(const SpectrumOptions& options) {
  if (options.reading != "exact" && options.reading != "published")
    fail_usage(fmt::format("--reading: exact or published expected, found '{}'", options.reading));
  if (options.batch < 0) fail_usage("--batch: a number from 1, or 0 for the configuration's");
  RunSpectraOptions how;
  how.device = parse_device(options.device);
  how.batch = options.batch;
  how.request.published = options.reading == "published";
  how.request.compare = options.compare_readings;
  how.request.check = options.check;
  if (!options.out.empty()) ensure_directory(options.out);
  bool agrees = true;
  for (const Source& source : sources(options)) {
    how.request.dropout = source.stage == "initial";  // only the published reading draws masks
    const SpectrumRecord record = weights_spectra(source.weights, source.stage, how);
    write_spectrum(source.output, record);
    if (options.json) {
      fmt::print("{}\n", spectrum_json(record));
    } else {
      fmt::print("{} ({})\n{}", source.weights, source.stage, spectrum_table(record));
      if (options.compare_readings) fmt::print("\n{}", comparison_table(record));
    }
    fmt::print(stderr, "spectrum: {}.npz, .json\n", source.output);
    if (!options.check) continue;
    const DType dtype =
        checkpoint_config(source.weights).spectral.dtype == SpectralPrecision::f64 ? DType::f64 : DType::f32;
    double tolerance = 0;
    for (const LayerRecord& layer : record.layers)
      tolerance = std::max(tolerance, replay_tolerance(dtype, layer.spectrum.family));
    if (!options.json) fmt::print("\n{}", replay_table(record, tolerance));
    agrees = agrees && replay_agrees(record, tolerance);
  }
  return agrees ? 0 : 1;
}

}  // namespace eigentrace
