#include <doctest/doctest.h>

#include <set>

#include "nn/config/config.h"
#include "tensor/error.h"
#include "tests/tools/sweep_samples.h"
#include "tools/slurm.h"
#include "tools/sweep.h"

using namespace eigentrace;

namespace {

std::vector<std::string> names_of(const SweepPlan& plan) {
  std::vector<std::string> names;
  for (const SweepPoint& point : plan.points) names.push_back(point.name);
  return names;
}

std::string message_of(const SweepFolder& folder, const std::string& text) {
  try {
    read_sweep(text, folder.path + "/sweep.yaml");
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("sweep plan: the study's form is a full product, the first key slowest") {
  const SweepFolder folder("plan");
  const SweepPlan plan = read_sweep(R"(
base_config: base.yaml
sweep:
  model: {num_layers: [1, 4]}
  train:
    lr: [1e-4, 4.6416e-4, 1e-2]
  seed: [1919, 2_222]
)",
                                    folder.path + "/study.yaml");
  CHECK(plan.name == "study");
  REQUIRE(plan.points.size() == 12);
  CHECK(plan.points[0].name == "num_layers=1_lr=1e-4_seed=1919");
  CHECK(plan.points[1].name == "num_layers=1_lr=1e-4_seed=2_222");
  CHECK(plan.points[2].name == "num_layers=1_lr=4.6416e-4_seed=1919");
  CHECK(plan.points[6].name == "num_layers=4_lr=1e-4_seed=1919");
  const SweepPoint& last = plan.points[11];
  CHECK(last.settings ==
        std::vector<SweepSetting>{{"model.num_layers", "4"}, {"train.lr", "1e-2"}, {"seed", "2_222"}});
  CHECK(last.seed == 2222);
  CHECK(last.steps == 6);
  const RunConfig config = read_config(last.config, "resolved").config;
  CHECK(config.train.lr == 1e-2);
  CHECK(config.seed == 2222);
  CHECK(std::get<TransformerConfig>(config.model).num_layers == 4);
}

TEST_CASE("sweep plan: our form has bases, common keys, grids, zipped lists and seeds, in the file's order") {
  const SweepFolder folder("plan");
  folder.write("other.yaml", read_file(folder.path + "/base.yaml"));
  const std::string text = R"(
format: eigentrace-sweep/1
set: {train: {total_steps: 9}, dataset.vocab_size: 30, model.vocab_size: 31, model.output_dim: 30}
zip: {model.state_dim: [8, 16], model.num_heads: [2, 4]}
base_config: [base.yaml, other.yaml]
grid:
  train.betas: [[0.9, 0.95], [0.9, 0.999]]
seeds: [1, 2]
)";
  CHECK_THROWS_AS(read_sweep(text, folder.path + "/s.yaml"), UsageError);  // both bases are the same run
  folder.write("other.yaml", read_file(folder.path + "/base.yaml") + "# the same\n");
  CHECK(message_of(folder, text).find("are the same run") != std::string::npos);
  std::string other = read_file(folder.path + "/base.yaml");
  other.replace(other.find("lin-attention"), 13, "sm-attention");
  folder.write("other.yaml", other);

  const SweepPlan plan = read_sweep(text, folder.path + "/s.yaml", {"train.wd=0.25"});
  REQUIRE(plan.points.size() == 16);
  CHECK(names_of(plan)[0] == "base_state_dim=8_num_heads=2_betas=0.9-0.95_seed=1");
  CHECK(names_of(plan)[1] == "base_state_dim=8_num_heads=2_betas=0.9-0.95_seed=2");
  CHECK(names_of(plan)[2] == "base_state_dim=8_num_heads=2_betas=0.9-0.999_seed=1");
  CHECK(names_of(plan)[4] == "base_state_dim=16_num_heads=4_betas=0.9-0.95_seed=1");
  CHECK(names_of(plan)[15] == "other_state_dim=16_num_heads=4_betas=0.9-0.999_seed=2");
  const RunConfig config = read_config(plan.points[15].config, "resolved").config;
  CHECK(std::get<TransformerConfig>(config.model).attention_fn == AttentionKind::softmax);
  CHECK(std::get<TransformerConfig>(config.model).state_dim == 16);
  CHECK(std::get<MqarConfig>(config.dataset).vocab_size == 30);
  CHECK(config.train.betas == std::vector<double>{0.9, 0.999});
  CHECK(config.train.total_steps == 9);
  CHECK(config.train.wd == 0.25);

  const SweepPlan again = read_sweep(text, folder.path + "/s.yaml", {"train.wd=0.25"});
  CHECK(names_of(again) == names_of(plan));
  for (size_t i = 0; i < plan.points.size(); ++i) CHECK(again.points[i].config == plan.points[i].config);
  CHECK_THROWS_AS(read_sweep(text, folder.path + "/s.yaml", {"seed=3"}), UsageError);  // it is swept
}

TEST_CASE("sweep plan: a point that is added later does not rename the others") {
  const SweepFolder folder("plan");
  const std::string at = folder.path + "/s.yaml";
  const auto few = names_of(read_sweep("base_config: base.yaml\nsweep: {train: {lr: [1e-3, 1e-2]}}", at));
  const auto more =
      names_of(read_sweep("base_config: base.yaml\nsweep: {train: {lr: [1e-4, 1e-3, 1e-2]}}", at));
  CHECK(few == std::vector<std::string>{"lr=1e-3", "lr=1e-2"});
  CHECK(std::vector<std::string>(more.begin() + 1, more.end()) == few);
}

TEST_CASE("sweep plan: names are unique, short and fit for a file system") {
  const SweepFolder folder("plan");
  const SweepPlan alike = read_sweep(R"(
format: eigentrace-sweep/1
base_config: base.yaml
set: {train.group_lr: 1e-3}
grid: {train.param_group: ["out proj", out/proj]}
)",
                                     folder.path + "/s.yaml", {});
  CHECK(std::set<std::string>{alike.points[0].name, alike.points[1].name}.size() == 2);
  std::string many = "format: eigentrace-sweep/1\nbase_config: base.yaml\nzip:\n";
  for (const char* key :
       {"dataset.num_train_examples", "dataset.num_test_examples", "dataset.num_validation_examples",
        "train.eval_batch_size", "train.eval_examples", "train.checkpoint_every", "train.clip_grad_norm"})
    many += fmt::format("  {}: [50, 51]\n", key);
  const SweepPlan plan = read_sweep(many, folder.path + "/s.yaml");
  REQUIRE(plan.points.size() == 2);
  CHECK(plan.points[0].name != plan.points[1].name);
  for (const SweepPlan* p : {&alike, &plan})
    for (const SweepPoint& point : p->points) {
      INFO(point.name);
      CHECK(point.name.size() <= 100);
      CHECK(point.name.find_first_of("/ ,[]\"'") == std::string::npos);
    }
}

TEST_CASE("sweep plan: a mistake is an error that says where and what") {
  const SweepFolder folder("plan");
  const std::string base = "base_config: base.yaml\n", ours = "format: eigentrace-sweep/1\n" + base;
  const auto says = [&](const std::string& text, const std::string& part) {
    const std::string message = message_of(folder, text);
    INFO(text << "\n" << message);
    CHECK(message.find(part) != std::string::npos);
  };
  says("[1, 2]", "expected keys");
  says(base, "sweep: is missing");
  says("sweep: {seed: [1]}", "base_config: is missing");
  says("base_config: nowhere.yaml\nsweep: {seed: [1]}", "no file 'nowhere.yaml'");
  says("base_config: [base.yaml]\nsweep: {seed: [1]}", "the path of one file");
  says(base + "swep: {seed: [1]}", "did you mean 'sweep'");
  says(base + "sweep: {seed: [1]}\nseeds: [1]", "allows more");
  says(base + "sweep: {seed: 1}",
       "sweep.yaml:2: seed: expected a list of values, found one; write seed: [1]");
  says(base + "sweep: {seed: []}", "the list is empty");
  says(base + "sweep: {seed: [1, 2, 1]}", "the value 1 stands twice");
  says(base + "sweep: {train: {lr: [{a: 1}]}}", "found a section");
  says(base + "sweep: [1]", "sweep: expected a section");
  says(base + "sweep: {train: {lrr: [1]}}", "point lrr=1: ");
  says(base + "sweep: {train: {lrr: [1]}}", "did you mean 'lr'");
  says(base + "sweep: {train: {lr: [-1]}}", "lr: expected a positive number");
  says("format: eigentrace-sweep/9\n" + base, "expected eigentrace-sweep/1");
  says("format: eigentrace/1\n" + base, "one run's configuration");
  says(ours + "sweep: {seed: [1]}", "there is no such key");
  says(ours + "seeds: 3", "write seeds: [3]");
  says(ours + "grid: {seed: [1]}\nseeds: [2]", "'seed' is given twice");
  says(ours + "grid: {train.lr: [1e-3]}\nset: {train: {lr: 1}}", "'train.lr' is given twice");
  says(ours + "zip: {train.lr: [1e-3, 1e-2], train.wd: [0.1]}", "train.wd has 1 values, train.lr has 2");
  says(ours + "grid: {train.lr: [1e-3, 0.001]}", "lr=1e-3 and lr=0.001 are the same run");
  std::string huge = ours + "seeds: [0";
  for (int i = 1; i < 400; ++i) huge += fmt::format(", {}", i);
  says(huge + huge.substr(huge.find("seeds")).replace(0, 8, "]\ngrid: {train.log_every: [") + "]}",
       "more than 100000 points");
  CHECK(message_of(folder, ours + "grid: {train.lr: [1e-3]}").empty());  // the errors above are their own
}

TEST_CASE("sweep plan: the sweeps that come with the program read") {
  const std::string folder = std::string(EIGENTRACE_TEST_DATA) + "/../tasks/experiments/sweeps/";
  const std::vector<std::pair<std::string, size_t>> sizes = {{"demo", 12},
                                                             {"mqar-sm-attention-seeds", 4},
                                                             {"mqar-sm-attention-layers-lr", 8},
                                                             {"mqar-mamba2-layers-lr", 8},
                                                             {"cifar-sm-attention-layers", 2}};
  for (const auto& sweep : sizes) {
    INFO(sweep.first);
    CHECK(read_sweep_file(folder + sweep.first + ".yaml").points.size() == sweep.second);
  }
}

TEST_CASE("sweep plan: a job array names its points, not their numbers, and takes sbatch's options") {
  SlurmJob job;
  job.name = "try", job.program = "/opt/eigen trace", job.folder = "/tmp/a 100%", job.work_folder = "/tmp";
  job.points = {"lr=1e-3", "it's"};
  job.options = "--partition=gpu --time 1:00:00 -n 1";
  const std::string script = slurm_script(job);
  for (const char* line : {"#SBATCH --array=0-1\n", "#SBATCH --partition=gpu\n", "#SBATCH --time 1:00:00\n",
                           "#SBATCH -n 1\n", "  lr=1e-3\n", "  'it'\\''s'\n", "'/opt/eigen trace' sweep",
                           "--output=\"/tmp/a 100%%/slurm-%A_%a.log\"", "--signal=B:USR1@120"}) {
    INFO(line);
    CHECK(script.find(line) != std::string::npos);
  }
  job.options = "gpu";
  CHECK_THROWS_AS(slurm_script(job), UsageError);
  job.options = "--array=1-3";
  CHECK_THROWS_AS(slurm_script(job), UsageError);
  job.options = "", job.points = {};
  CHECK_THROWS_AS(slurm_script(job), UsageError);
}
