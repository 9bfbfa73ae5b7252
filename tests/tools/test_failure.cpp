#include <doctest/doctest.h>

#include <filesystem>
#include <limits>

#include "tensor/io/npy.h"
#include "tests/tensor/io_testing.h"
#include "tests/tools/run_testing.h"
#include "tools/commands.h"
#include "tools/failure.h"

using namespace eigentrace;

namespace {

void plant(Trainer& trainer, const std::string& name, float value) {
  Parameter* weight = trainer.model().parameters().find(name);
  REQUIRE(weight != nullptr);
  std::vector<float> values = weight->value.to_vector<float>();
  values[5] = value;
  weight->value.assign(values);
}

/// Every tensor that a step may change, and gradients aside.
std::vector<double> weights_and_buffers(const Model& model) {
  std::vector<double> all;
  for (const Parameter& p : model.parameters().parameters())
    for (const double x : p.value.to_vector<double>()) all.push_back(x);
  for (const Buffer& b : model.parameters().buffers())
    for (const double x : b.value.to_vector<double>()) all.push_back(x);
  return all;
}

}  // namespace

TEST_CASE(
    "failure: a planted NaN or infinity names op and layer, keeps batch and state, spares the checkpoint") {
  struct Planted {
    const char *family, *weight;
    float value;
    const char *op, *scope;
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  for (const Planted& p :
       {Planted{"softmax", "layers.1.attention.out_proj.weight", nan, "op linear", "layers.1"},
        Planted{"norm", "layers.0.attention.out_proj.weight", infinity, "op linear", "layers.0"},
        Planted{"lru", "encoder.layers_1.seq.B_re", nan, "op ", "encoder.layers_1"}}) {
    INFO(std::string(p.family));
    const TestFolder temporary;
    const RunConfig config = short_config(p.family);
    const RunFolder folder = RunFolder::create(temporary.path, true);
    CHECK(Trainer(config, folder, silent_run(6)).run().state == "stopped");
    const auto saved = checkpoint_tensors(folder.checkpoint());
    const std::unique_ptr<Trainer> trainer = Trainer::resume(folder, silent_run());
    plant(*trainer, p.weight, p.value);
    const std::vector<double> before = weights_and_buffers(trainer->model());
    const std::string message = error_of([&] { trainer->run(); });
    INFO(message);
    CHECK(contains(message, "step 6"));
    CHECK(contains(message, p.op));
    CHECK(contains(message, std::string("'") + p.scope));
    CHECK(contains(message, "eigentrace failure " + temporary.path));
    CHECK(contains(message, p.weight));
    CHECK(folder.read_info().state == "failed");
    CHECK(checkpoint_tensors(folder.checkpoint()) == saved);
    // What is kept is the very step: its state, its batch, and again the same culprit.
    const std::unique_ptr<Trainer> failed = Trainer::failed(folder, silent_run());
    const std::vector<double> kept = weights_and_buffers(failed->model());
    REQUIRE(kept.size() == before.size());
    size_t different = 0;
    for (size_t i = 0; i < kept.size(); ++i) {
      const bool same = kept[i] == before[i] || (std::isnan(kept[i]) && std::isnan(before[i]));
      different += same ? 0 : 1;
    }
    CHECK(different == 0);
    const FailedBatch batch = read_failed_batch(folder.failed_batch(), failed->task().shape(Split::train));
    CHECK(batch.step == 6);
    CHECK(batch.seed == 7);
    LoaderOptions order;
    order.batch_size = 7;
    order.seed = 7;
    Loader loader(failed->task(), Split::train, order, {1, 0});  // 6 steps of 6 an epoch
    const Batch& expected = *loader.next();
    CHECK(batch.batch.tokens == expected.tokens);
    CHECK(batch.batch.labels == expected.labels);
    CHECK(batch.batch.label_rows == expected.label_rows);
    CHECK(batch.batch.sorted_order == expected.sorted_order);
    CHECK(contains(message, failed->look_at(batch.batch).not_finite));
    const auto arrays = read_npz(folder.failed_batch());
    CHECK(arrays.at("tokens").shape == std::vector<int64_t>{7, 24});
    CHECK(arrays.at("lengths").shape == std::vector<int64_t>{7});
    CHECK(arrays.at("step").as<int64_t>()[0] == 6);
    // The checkpoint is what to go on from.
    CHECK(Trainer::resume(folder, silent_run())->run().state == "finished");
  }
}

TEST_CASE("failure: a step that was looked at again changes nothing") {
  const TestFolder temporary;
  Trainer trainer(short_config("s5"), RunFolder::create(temporary / "run", true), silent_run());
  const std::vector<double> before = weights_and_buffers(trainer.model());
  Loader loader(trainer.task(), Split::train, {.batch_size = 7, .seed = 7}, {0, 0});
  const StepLook look = trainer.look_at(*loader.next());
  CHECK(look.not_finite.empty());
  CHECK(look.loss > 0);
  CHECK(look.gradient_norm > 0);
  CHECK(weights_and_buffers(trainer.model()) == before);
}

TEST_CASE("failure: a learning rate that diverges never replaces a good checkpoint by an infinite one") {
  for (const char* every : {"train.checkpoint_every=1", "train.checkpoint_every=3"}) {
    INFO(std::string(every));
    const TestFolder temporary;
    const RunFolder folder = RunFolder::create(temporary / "run", true);
    const RunConfig config =
        short_config("softmax", {"train.lr=1e38", "train.warmup_steps=0", "train.eval_every=14", every});
    Trainer trainer(config, folder, silent_run());
    const std::string message = error_of([&] { trainer.run(); });
    INFO(message);
    CHECK(contains(message, std::string(every).back() == '1' ? "step 0: its update overflowed" : "step 1: "));
    CHECK(contains(message, "weight 'encoder."));
    CHECK(!std::filesystem::exists(folder.checkpoint()));
    CHECK(std::filesystem::exists(folder.failed_state()));
    CHECK(std::filesystem::exists(folder.failed_batch()) == (std::string(every).back() == '3'));
  }
}

TEST_CASE("failure: a batch of another task is refused") {
  const TestFolder temporary;
  Trainer trainer(short_config("softmax"), RunFolder::create(temporary / "run", true), silent_run());
  Loader loader(trainer.task(), Split::train, {.batch_size = 7, .seed = 7}, {0, 0});
  FailedBatch failed{*loader.next(), 3, 7};
  const std::string path = temporary / "batch.npz";
  const TaskShape shape = trainer.task().shape(Split::train);
  write_failed_batch(path, failed);
  CHECK(read_failed_batch(path, shape).batch.tokens == failed.batch.tokens);
  const auto refused = [&](const std::function<void(Batch&)>& change, const std::string& word) {
    FailedBatch other = failed;
    change(other.batch);
    write_failed_batch(path, other);
    const std::string message = error_of([&] { read_failed_batch(path, shape); });
    INFO(message);
    CHECK(contains(message, path));
    CHECK(contains(message, word));
  };
  refused([](Batch& b) { b.tokens[3] = 32; }, "tokens");
  refused([](Batch& b) { b.labels[0] = -1; }, "labels");
  refused([](Batch& b) { b.label_rows[0] = 7 * 24; }, "label_rows");
  refused([](Batch& b) { b.lengths[0] = 25; }, "lengths");
  refused([](Batch& b) { b.label_count = 1000; }, "go together");
  refused([](Batch& b) { b.valid_time = 0; }, "positions");
  write_npz(path, {{"tokens", HostView({2}, std::vector<int32_t>{1, 2})}});
  CHECK(contains(error_of([&] { read_failed_batch(path, shape); }), "expected an array"));
}

TEST_CASE(
    "trainer: a run killed between its last checkpoint and the word finished ends where it would have") {
  const TestFolder temporary;
  const RunFolder folder = RunFolder::create(temporary / "run", true);
  const RunConfig config =
      short_config("softmax", {"train.stop_criterion=-1"});  // met at the first evaluation
  RunInfo info = Trainer(config, folder, silent_run()).run();
  CHECK(info.state == "finished");
  CHECK(info.step == 4);
  const auto expected = checkpoint_tensors(folder.checkpoint());
  info.state = "running", info.reason = "";
  folder.write_info(info);
  info = Trainer::resume(folder, silent_run())->run();
  CHECK(info.step == 4);
  CHECK(contains(info.reason, "accuracy"));
  CHECK(checkpoint_tensors(folder.checkpoint()) == expected);
}

TEST_CASE("checkpoint: says which program made it, and that its checksum was compared") {
  const TestFolder temporary;
  const RunFolder folder = RunFolder::create(temporary / "run", true);
  Trainer(short_config("s4"), folder, silent_run(3)).run();
  const CheckpointAbout about = describe_checkpoint(folder.checkpoint());
  CHECK(contains(about.made_by, "eigentrace "));
  CHECK(contains(about.made_by, folder.read_info().commit));
  CHECK(about.checksum);
  REQUIRE(about.state);
  CHECK(about.state->step == 3);
  REQUIRE(about.config);
  CHECK(about.config->seed == 7);
  CHECK(about.not_finite.empty());
  CHECK(about.weights > 0);
  CHECK(!describe_checkpoint(folder.initial()).state);
  CHECK(contains(error_of([&] { describe_checkpoint(folder.config()); }), folder.config()));
}
