// Spectra along training change nothing, lose nothing and are what a reading of the checkpoint gives.
#include "tools/training_spectra.h"

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>
#include <map>

#include "tensor/error.h"
#include "tensor/io/safetensors.h"
#include "tools/trainer.h"

using namespace eigentrace;

namespace {

struct TemporaryFolder {
  std::string path =
      fmt::format("{}/eigentrace-along-{}", std::filesystem::temp_directory_path().string(), getpid());
  TemporaryFolder() { std::filesystem::remove_all(path); }
  ~TemporaryFolder() { std::filesystem::remove_all(path); }
};

const std::string attention =
    "model: {layer: transformer, attention_fn: norm-attention, norm_fn: softplus, approx_fn: elu, offset: "
    "true, "
    "dim_conv: 3, num_layers: 2, hidden_dim: 12, state_dim: 8, num_heads: 2, mixer: mlp, mixer_dim: 9, "
    "dropout: 0.2, "
    "embedding: true, vocab_size: 40, max_pos_embed: 32, output_dim: 40}\n";
const std::string s4 =
    "model: {layer: s4, num_layers: 2, hidden_dim: 6, state_dim: 4, norm: batch, dropout: 0.1, activation: "
    "full_glu, "
    "pooling: none, input_dim: 40, output_dim: 40}\n";

RunConfig config_of(const std::string& model, const std::vector<std::string>& overrides) {
  const std::string yaml =
      "format: eigentrace/1\nseed: 7\ndataset: {_name_: mqar, vocab_size: 40, input_seq_length: 32, "
      "num_kv_pairs: 3, "
      "num_train_examples: 50, num_test_examples: 9}\n"
      "train: {total_steps: 9, batch_size: 7, warmup_steps: 2, eval_every: 5, log_every: 4, eval_split: "
      "test, "
      "checkpoint_every: 4}\n";
  return read_config(yaml + model, "test", overrides).config;
}

TrainerOptions silent(int64_t stop_before = -1) {
  TrainerOptions options;
  options.progress = false, options.stop_before = stop_before;
  return options;
}

std::map<std::string, std::vector<std::byte>> tensors_of(const RunFolder& folder) {
  const SafetensorsReader reader(folder.checkpoint());
  std::map<std::string, std::vector<std::byte>> all;
  for (const auto& [name, entry] : reader.entries()) all[name] = reader.read(name).bytes;
  return all;
}

bool same(const std::vector<LayerSpectrum>& a, const std::vector<LayerSpectrum>& b) {
  if (a.size() != b.size() || a.empty()) return false;
  for (size_t l = 0; l < a.size(); ++l)
    if (a[l].log_abs != b[l].log_abs || a[l].arg != b[l].arg || a[l].shape != b[l].shape ||
        a[l].first_step != b[l].first_step)
      return false;
  return true;
}

}  // namespace

TEST_CASE(
    "spectra along training: the weights are those of a run without, and a resumed run writes the same") {
  const TemporaryFolder temporary;
  for (const std::string& model : {attention, s4})
    for (const std::string pass : {"training", "evaluation"}) {
      INFO(model << pass);
      const RunFolder plain = RunFolder::create(temporary.path + "/plain", true);
      Trainer(config_of(model, {}), plain, silent()).run();
      const RunConfig config =
          config_of(model, {"spectral.every=2", "spectral.batch=3", "spectral.pass=" + pass});
      const RunFolder read = RunFolder::create(temporary.path + "/read", true);
      Trainer(config, read, silent()).run();
      CHECK(tensors_of(read) == tensors_of(plain));
      const RunFolder parts = RunFolder::create(temporary.path + "/parts", true);
      Trainer(config, parts, silent(5)).run();
      CHECK_FALSE(std::filesystem::exists(parts.spectrum("step6") + ".npz"));
      Trainer::resume(parts, silent())->run();
      CHECK(tensors_of(parts) == tensors_of(plain));
      std::vector<LayerSpectrum> before;
      for (const char* stage : {"step2", "step4", "step6", "step8"}) {
        INFO(stage);
        const auto spectra = read_spectra(read.spectrum(stage) + ".npz");
        CHECK(same(spectra, read_spectra(parts.spectrum(stage) + ".npz")));
        CHECK_FALSE(same(spectra, before));  // training moves them
        CHECK(std::filesystem::exists(read.spectrum(stage) + ".json"));
        before = spectra;
      }
      CHECK_FALSE(std::filesystem::exists(read.spectrum("step0") + ".npz"));
      CHECK_FALSE(std::filesystem::exists(plain.spectrum("step2") + ".npz"));
      // A new run in the folder does not keep the old one's readings.
      Trainer(config_of(model, {"train.total_steps=3"}), RunFolder::create(read.path(), true), silent())
          .run();
      CHECK_FALSE(std::filesystem::exists(read.spectrum("step2") + ".npz"));
    }
}

TEST_CASE(
    "spectra along training: what is read after the last step is the trained spectrum, in either type") {
  const TemporaryFolder temporary;
  for (const std::string& model : {attention, s4})
    for (const char* dtype : {"f32", "f64"}) {
      INFO(model << dtype);
      const RunConfig config = config_of(model, {"spectral.every=9", std::string("spectral.dtype=") + dtype,
                                                 "spectral.batch=4", "spectral.pass=evaluation"});
      const RunFolder folder = RunFolder::create(temporary.path + "/run", true);
      Trainer(config, folder, silent()).run();
      RunSpectraOptions options;
      options.quiet = true;
      run_spectra(folder, "trained", options);
      CHECK(same(read_spectra(folder.spectrum("step9") + ".npz"),
                 read_spectra(folder.spectrum("trained") + ".npz")));
    }
}

TEST_CASE("spectra along training: on a GPU the same, and an uncaptured run reads the same") {
  if (cuda_device_count() == 0) {
    MESSAGE("no GPU here: this case needs one");
    return;
  }
  const TemporaryFolder temporary;
  const RunConfig config = config_of(attention, {"spectral.every=2", "spectral.batch=3"});
  TrainerOptions options = silent();
  options.device = parse_device("cuda");
  const RunFolder plain = RunFolder::create(temporary.path + "/plain", true);
  Trainer(config_of(attention, {}), plain, options).run();
  const RunFolder captured = RunFolder::create(temporary.path + "/captured", true);
  Trainer(config, captured, options).run();
  options.capture = false;
  const RunFolder eager = RunFolder::create(temporary.path + "/eager", true);
  Trainer(config, eager, options).run();
  CHECK(tensors_of(captured) == tensors_of(plain));
  CHECK(tensors_of(eager) == tensors_of(plain));
  for (const char* stage : {"step2", "step4", "step6", "step8"})
    CHECK(
        same(read_spectra(captured.spectrum(stage) + ".npz"), read_spectra(eager.spectrum(stage) + ".npz")));
}

TEST_CASE("spectra along training: a disk that is full stops the run with the error of the worker") {
  const TemporaryFolder temporary;
  const RunConfig config = config_of(s4, {"spectral.every=2"});
  const RunFolder folder = RunFolder::create(temporary.path + "/run", true);
  Trainer trainer(config, folder, silent());
  std::filesystem::create_directories(folder.spectrum("step4") + ".npz/in the way");
  CHECK_THROWS_AS(trainer.run(), Error);
  CHECK(folder.read_info().state == "failed");
}

TEST_CASE("spectra along training: spectral.reading both keeps the published reading beside the exact one") {
  const TemporaryFolder temporary;
  const RunConfig config = config_of(attention, {"spectral.every=9", "spectral.reading=both"});
  const RunFolder folder = RunFolder::create(temporary.path + "/run", true);
  Trainer(config, folder, silent()).run();
  const auto spectra = read_spectra(folder.spectrum("step9") + ".npz");
  REQUIRE(spectra.size() == 4);
  CHECK(spectra[0].reading == "exact");
  CHECK(spectra[3].reading == "published");
}
