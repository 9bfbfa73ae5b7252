// The study's runs (tasks/experiments): their models fit their data, and a training step at the published
// size fits the machine.
#include <doctest/doctest.h>

#include <filesystem>

#include "nn/config/config.h"
#include "nn/optimiser.h"
#include "nn/schedule.h"
#include "tests/nn/model_testing.h"

using namespace eigentrace;

namespace {

std::vector<std::string> experiments(const std::string& prefix) {
  std::vector<std::string> paths;
  const std::string folder = std::string(EIGENTRACE_TEST_DATA) + "/../tasks/experiments";
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    if (entry.path().filename().string().starts_with(prefix)) paths.push_back(entry.path().string());
  std::sort(paths.begin(), paths.end());
  return paths;
}

/// The shape of a data set of the study, without its files.
TaskShape published_shape(const RunConfig& run) {
  TaskShape s;
  const std::string task = task_name(run.dataset);
  s.per_position = task == "mqar" || task == "wikitext";
  s.time = task == "mqar" ? 512 : task == "imdb" ? 4096 : task == "listops" ? 2048 : 1024;
  s.fixed_length = task != "imdb" && task != "listops";
  s.classes = task == "mqar" ? 8192 : task == "wikitext" ? 50257 : task == "imdb" ? 2 : 10;
  s.vocabulary = task == "mqar" || task == "wikitext" ? s.classes
                 : task == "imdb"                     ? 134
                 : task == "listops"                  ? 18
                                                      : 0;
  if (const CifarConfig* cifar = std::get_if<CifarConfig>(&run.dataset))
    s.vocabulary = cifar->tokenize ? 256 : 0, s.features = cifar->tokenize ? 0 : 1;
  s.labels_per_example = task == "mqar" ? 64 : task == "wikitext" ? 1023 : 1;
  return s;
}

}  // namespace

TEST_CASE("experiments: all 39 runs of the study are there, and their models fit their data") {
  int count = 0;
  for (const char* task : {"mqar-", "cifar-", "imdb-", "listops-", "wikitext-"})
    for (const std::string& path : experiments(task)) {
      INFO(path);
      RunConfig run = read_config_file(path).config;
      CHECK(run.dialect == Dialect::study);
      CHECK_NOTHROW(fit_model(run.model, published_shape(run)));
      CHECK(LearningRates(run.train, 50000).total_steps() > 1000);
      ++count;
    }
  CHECK(count == 39);
}

TEST_CASE("experiments: the recall runs build, and a step at the published size takes less than 1.5 GB") {
  for (const std::string& path : experiments("mqar-")) {
    INFO(path);
    RunConfig run = read_config_file(path).config;
    fit_model(run.model, published_shape(run));
    const auto model = make_model(run.model, run.seed, DType::f32);
    std::vector<std::string> notices;
    Optimiser optimiser(model->parameters(),
                        make_groups(model->parameters(), run.model, run.train, run.dialect, &notices),
                        optimiser_options(run.train));
    CHECK(notices.size() == (path.find("lru") != std::string::npos ? 1 : 0));
    Context ctx = Context::dry_run({});
    {
      Tape tape(ctx);
      Forward forward(tape, model->parameters());
      forward.dropout = forward.batch_statistics = true;
      const ModelInput input = token_input(std::vector<int32_t>(64 * 512), 64, 512);
      tape.backward(model->loss(forward, input, label_all(64 * 64, 8192, 1)).value);
    }
    const double gigabytes = static_cast<double>(ctx.slab().peak()) / 1e9;
    CHECK(gigabytes > 0.05);
    CHECK(gigabytes < 1.5);
    CHECK(ctx.slab().in_use() == 0);
  }
}

TEST_CASE("experiments: every run of the study takes a training step at its published sizes" *
          doctest::skip()) {
  // Slow (`make test-all`). Published widths, lengths and vocabularies; only the batch is smaller, and
  // printed.
  for (const char* task : {"mqar-", "cifar-", "imdb-", "listops-", "wikitext-"})
    for (const std::string& path : experiments(task)) {
      INFO(path);
      RunConfig run = read_config_file(path).config;
      const TaskShape shape = published_shape(run);
      fit_model(run.model, shape);
      const int64_t batch = std::string(task) == "wikitext-" ? 1 : std::string(task) == "mqar-" ? 64 : 2;
      const auto model = make_model(run.model, run.seed, DType::f32);
      Optimiser optimiser(model->parameters(),
                          make_groups(model->parameters(), run.model, run.train, run.dialect),
                          optimiser_options(run.train));
      const LearningRates rates(run.train, 50000);
      ModelInput input;
      if (shape.encoding() == Encoding::tokens) {
        input = token_input(random_tokens(batch * shape.time, static_cast<int32_t>(shape.vocabulary), 5),
                            batch, shape.time);
      } else {
        Rng rng(5);
        std::vector<float> values(static_cast<size_t>(batch * shape.time));
        for (float& v : values) v = static_cast<float>(rng.normal());
        input.values = Tensor::from(values, {batch, shape.time, 1});
      }
      const Labels labels = label_all(shape.per_position ? batch * shape.labels_per_example : batch,
                                      static_cast<int32_t>(shape.classes), 6);
      Context ctx;
      double losses[2];
      for (int step = 0; step < 2; ++step) {  // the second sees what the first one changed
        Tape tape(ctx);
        Forward forward(tape, model->parameters());
        forward.batch_statistics = true;
        const Loss loss = model->loss(forward, input, labels);
        losses[step] = loss.value.value().item();
        if (step == 1) break;
        tape.backward(loss.value);
        optimiser.step(ctx, rates.at(optimiser.groups(), 0));
        CHECK_FALSE(optimiser.skipped());
      }
      MESSAGE(std::filesystem::path(path).stem().string(), ": batch ", batch, " (published ",
              run.train.batch_size, ") x ", shape.time, ", loss ", losses[0], " then ", losses[1],
              ", step memory ", ctx.slab().peak() >> 20, " MiB");
      CHECK(std::isfinite(losses[1]));
      CHECK(losses[1] != losses[0]);
      CHECK(ctx.slab().peak() < size_t{24} << 30);
    }
}
