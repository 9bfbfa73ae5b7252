#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <string>

#include "tasks/catalogue.h"
#include "tasks/files.h"
#include "tasks/sha256.h"
#include "tensor/error.h"
#include "tensor/io/npy.h"

using namespace eigentrace;

namespace {

struct Folder {
  explicit Folder(const char* name) : path(std::filesystem::temp_directory_path() / name) {
    std::filesystem::remove_all(path);
  }
  ~Folder() { std::filesystem::remove_all(path); }
  std::filesystem::path path;
};

MqarConfig small_mqar() {
  MqarConfig c;
  c.vocab_size = 100, c.input_seq_length = 16, c.num_kv_pairs = 3;
  c.num_train_examples = 250, c.num_validation_examples = 7, c.num_test_examples = 1;
  return c;
}

bool all_good(const std::vector<Finding>& findings) {
  for (const Finding& f : findings)
    if (!f.good) return false;
  return !findings.empty();
}

// A generator with a fault of each kind that check_task looks for.
class Faulty final : public Task {
 public:
  explicit Faulty(int fault) : fault_(fault) {}
  std::string name() const override { return "faulty"; }
  int64_t size(Split split) const override { return split == Split::train ? 5 : 0; }
  TaskShape shape(Split) const override {
    TaskShape s;
    s.time = 4, s.vocabulary = 3, s.classes = 2;
    return s;
  }

 protected:
  void example(Split, int64_t index, int64_t b, Batch& out) const override {
    out.row(b)[0] = fault_ == 1 && index == 3 ? 3 : 1;
    out.row(b)[1] =
        static_cast<int32_t>(fault_ == 2 ? b % 3 : index % 3);  // depends on the place in the batch
    out.label_sequence(b, fault_ == 3 ? 2 : 1);
  }

 private:
  int fault_;
};

}  // namespace

TEST_CASE(
    "catalogue: every task is listed, described and made from its default configuration if it needs no "
    "files") {
  const auto entries = list_tasks();
  CHECK(entries.size() == std::variant_size_v<TaskConfig>);
  int generators = 0;
  for (const TaskEntry& entry : entries) {
    CAPTURE(entry.name);
    TaskConfig config = task_config(entry.name);
    CHECK(task_name(config) == entry.name);
    CHECK_FALSE(entry.about.empty());
    const std::string text = describe_task(config, nullptr, false);
    CHECK(text.find(entry.name + ": " + entry.about) == 0);
    CHECK(describe_task(config, nullptr, true).find("\"keys\"") != std::string::npos);
    if (entry.reads_files) continue;
    ++generators;
    if (auto* listops = std::get_if<ListOpsConfig>(&config)) listops->num_train_examples = 20;
    const auto task = make_task(config);
    CHECK(task->name() == entry.name);
    CHECK(describe_task(config, task.get(), false).find("training") != std::string::npos);
    for (Split split : {Split::train, Split::validation, Split::test}) {
      CHECK(sample_task(*task, split, 0, false).find("label") != std::string::npos);
      CHECK(sample_task(*task, split, 0, true).find("{\"task\":\"" + entry.name) == 0);
    }
    CHECK(all_good(check_task(*task, 20)));
    CHECK(measure_task(*task, Split::train, 4, 0.001).examples_per_second() > 0);
  }
  CHECK(generators == 10);
  CHECK_THROWS_AS(task_config("mqa"), UsageError);
}

TEST_CASE("catalogue: an example is shown as inputs over labels") {
  ModularConfig c;
  c.length = 5, c.seed = 1;
  const auto task = make_task(c);
  Batch batch;
  task->make(Split::test, std::vector<int64_t>{3}, batch);
  std::string input = "input  ", label = "label  ";
  for (int t = 0; t < 5; ++t) {
    input += std::to_string(batch.tokens[t]) + (t < 4 ? " " : "\n");
    label += std::to_string(batch.labels[t]) + (t < 4 ? " " : "\n");
  }
  CHECK(sample_task(*task, Split::test, 3, false) == "modular test example 3: 5 positions\n" + input + label);
}

TEST_CASE("catalogue: check_task finds planted faults") {
  CHECK(all_good(check_task(Faulty(0), 0)));
  for (int fault : {1, 2, 3}) {
    CAPTURE(fault);
    CHECK_FALSE(all_good(check_task(Faulty(fault), 0)));
  }
  const std::vector<Finding> labels = check_task(Faulty(3), 0);
  CHECK(std::ranges::any_of(labels, [](const Finding& f) {
    return f.text.find("label 2 of train example 0 is out of range 0…1") != std::string::npos;
  }));
  // Equal numbers of training and test examples under published_split: told apart by their fillers alone.
  MqarConfig c = small_mqar();
  c.published_split = true, c.random_non_queries = false, c.num_test_examples = c.num_train_examples;
  for (const Finding& f : check_task(*make_task(c), 0))
    if (f.what == "split overlap") CHECK(f.text == "250 of 500 inputs stand in two splits");
}

TEST_CASE("catalogue: exported arrays and lines hold what the task makes") {
  const Folder dir("eigentrace_export");
  const MqarConfig c = small_mqar();
  ExportOptions options;
  options.out = dir.path.string(), options.limit = 150;
  const auto files = export_task(c, options);
  CHECK(files.size() == 9);
  const HostArray tokens = read_npy((dir.path / "train_tokens.npy").string());
  const HostArray labels = read_npy((dir.path / "train_labels.npy").string());
  CHECK(tokens.shape == std::vector<int64_t>{150, 16});
  CHECK(read_npy((dir.path / "validation_tokens.npy").string()).shape == std::vector<int64_t>{7, 16});
  Batch batch;
  make_task(c)->make(Split::train, std::vector<int64_t>{149}, batch);
  for (int t = 0; t < 16; ++t) CHECK(tokens.as<int32_t>()[149 * 16 + t] == batch.tokens[t]);
  int64_t labelled = 0;
  for (int32_t y : labels.as<int32_t>()) labelled += y != -100;
  CHECK(labelled == 150 * 3);
  for (int i = 0; i < 3; ++i) CHECK(labels.as<int32_t>()[149 * 16 + batch.label_rows[i]] == batch.labels[i]);
  options.format = "jsonl", options.splits = {Split::test};
  const auto lines = export_task(c, options);
  REQUIRE(lines.size() == 1);
  CHECK(read_data(lines[0], {"", "", ""}) == sample_task(*make_task(c), Split::test, 0, true));
  options.format = "official";
  CHECK_THROWS_AS(export_task(c, options), UsageError);
  options.format = "csv";
  CHECK_THROWS_AS(export_task(c, options), UsageError);
}

TEST_CASE("catalogue: what is exported in the official form is read back the same") {
  const Folder dir("eigentrace_official");
  ExportOptions options;
  options.out = dir.path.string(), options.format = "official", options.limit = 0;
  ListOpsConfig listops;
  listops.num_train_examples = 30, listops.num_validation_examples = 2, listops.num_test_examples = 3;
  export_task(listops, options);
  ListOpsConfig from_files = listops;
  from_files.data_dir = options.out;
  Batch a, b;
  const std::vector<int64_t> indices = {0, 2};
  const auto generated = make_task(listops), read = make_task(from_files);
  generated->make(Split::test, indices, a);
  read->make(Split::test, indices, b);
  CHECK(a.tokens == b.tokens);
  CHECK(a.labels == b.labels);
  for (const Finding& f : read->inspect())
    if (f.what.ends_with("values")) CHECK(f.good);
  PathfinderConfig pathfinder;
  pathfinder.num_train_examples = 8, pathfinder.num_validation_examples = 1, pathfinder.num_test_examples = 1;
  pathfinder.tokenize = true;
  export_task(pathfinder, options);
  pathfinder.data_dir = options.out;
  const auto images = make_task(pathfinder);
  CHECK(images->size(Split::train) + images->size(Split::validation) + images->size(Split::test) == 10);
  CHECK(all_good(check_task(*images, 0)));
}

TEST_CASE("sha256: the digests are those of the standard's examples") {
  CHECK(sha256("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(sha256("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  CHECK(sha256(std::string(1'000'000, 'a')) ==
        "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}
