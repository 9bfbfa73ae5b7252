// `eigentrace intervene`: evaluation with other eigenvalues.
#include "tools/intervene.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>

#include "nn/checkpoint.h"
#include "tensor/error.h"
#include "tensor/io/file.h"
#include "tensor/io/json_writer.h"
#include "tools/commands.h"
#include "tools/progress.h"

namespace eigentrace {
namespace {

std::vector<int64_t> places(const std::string& text, const char* option) {
  if (text.empty()) return {};
  try {  // one grammar for both ways of saying it
    return parse_interventions("abs<=1 layers=" + text)[0].layers;
  } catch (const UsageError&) {
    fail_usage(fmt::format("{}: numbers from 0 such as 0,2 expected, found '{}'", option, text));
  }
}

}  // namespace

InterventionTable run_interventions(const RunFolder& folder, const InterveneRequest& request) {
  if (request.stage != "trained" && request.stage != "initial")
    fail_usage(fmt::format("--stage: trained or initial expected, found '{}'", request.stage));
  const std::string weights = request.stage == "initial" ? folder.initial() : folder.checkpoint();
  if (!std::filesystem::exists(weights))
    fail(fmt::format("{}: the run has no checkpoint yet", folder.path()));
  LoadedModel loaded = load_model(weights, request.dtype, request.device);
  const RunConfig& config = loaded.config;
  const Model& model = *loaded.model;
  const std::unique_ptr<Task> task = make_task(config.dataset);
  if (const std::vector<std::string> symbols = checkpoint_symbols(weights); !symbols.empty())
    check_symbols(*task, symbols);
  const Split split = request.split == EvalSplit::test ? Split::test : Split::validation;
  if (task->size(split) == 0) fail_usage(fmt::format("--split: {} has no such split", task->name()));
  const bool published = config.train.schedule == ScheduleKind::published;
  int64_t batch = request.batch > 0 ? request.batch : config.train.eval_batch_size;
  if (batch == 0) batch = config.train.batch_size;
  Context ctx(request.device);

  InterventionTable table;
  table.name = std::filesystem::path(folder.path()).lexically_normal().filename().string();
  if (table.name.empty()) table.name = folder.path();
  table.stage = request.stage, table.split = split_name(split), table.step = loaded.step;
  table.dtype = request.dtype == DType::f64 ? "f64" : "f32";
  table.examples = request.examples > 0 ? request.examples : config.train.eval_examples;

  const std::vector<Intervention> own = interventions_of(config);
  std::vector<std::pair<std::string, std::vector<Intervention>>> rows{{"as trained", own}};
  if (!own.empty()) rows.push_back({"without", {}});
  for (const std::string& change : request.changes) {
    std::vector<Intervention> list = own;
    std::string text;
    for (Intervention& one : parse_interventions(change, request.layers, request.heads)) {
      text += (text.empty() ? "" : "; ") + one.text;
      list.push_back(std::move(one));
    }
    const auto say = [&](const char* what, const std::vector<int64_t>& list_of) {
      if (list_of.empty() || text.find(what) != std::string::npos) return;
      text += fmt::format(" {}={}", what, fmt::join(list_of, ","));
    };
    say("layers", request.layers), say("heads", request.heads);
    rows.push_back({text, std::move(list)});
  }
  // What is wrong with any of them is said before the first evaluation.
  std::vector<std::shared_ptr<Interventions>> resolved;
  for (const auto& [text, list] : rows)
    resolved.push_back(resolve_interventions(ctx, config, *task, list, model, folder.initial(), true));
  for (size_t n = 0; n < rows.size(); ++n) {
    InterventionHook hook(resolved[n], model, folder.initial(), request.path);
    const auto start = std::chrono::steady_clock::now();
    InterventionResult row;
    row.change = rows[n].first;
    row.evaluation = evaluate(ctx, model, *task, split, batch, published, table.examples,
                              rows[n].second.empty() ? PassHook() : hook.hook());
    row.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    row.path = rows[n].second.empty() ? "none" : hook.replayed() ? "replay" : "ops";
    row.condition = hook.condition();
    table.rows.push_back(std::move(row));
  }
  return table;
}

std::string interventions_json(const InterventionTable& table) {
  JsonWriter json(JsonWriter::Style::pretty);
  json.begin_object().field("format", interventions_format).key("about").begin_object();
  json.field("run", table.name).field("stage", table.stage).field("step", table.step);
  json.field("split", table.split).field("dtype", table.dtype).field("examples", table.examples).end_object();
  json.key("rows").begin_array();
  const Evaluation& first = table.rows.at(0).evaluation;
  for (const InterventionResult& row : table.rows) {
    const Evaluation& e = row.evaluation;
    json.begin_object().field("change", row.change).field("path", row.path);
    json.field("loss", e.loss).field("accuracy", e.accuracy);
    if (e.macro_accuracy) json.field("macro_accuracy", *e.macro_accuracy);
    json.field("loss_change", e.loss - first.loss).field("accuracy_change", e.accuracy - first.accuracy);
    json.field("labels", e.labels).field("seconds", row.seconds);
    if (row.condition > 0) json.field("condition", row.condition);
    json.end_object();
  }
  json.end_array().end_object();
  return json.text();
}

std::string interventions_text(const InterventionTable& table) {
  size_t wide = 12;
  for (const InterventionResult& row : table.rows) wide = std::max(wide, row.change.size());
  std::string text = fmt::format("{:<{}} {:>7} {:>10} {:>9} {:>10} {:>10} {:>8}\n", "change", wide, "path",
                                 "loss", "accuracy", "Δ loss", "Δ accuracy", "s");
  const Evaluation& first = table.rows.at(0).evaluation;
  for (const InterventionResult& row : table.rows) {
    const Evaluation& e = row.evaluation;
    text += fmt::format("{:<{}} {:>7} {:>10.4f} {:>9.4f} {:>+10.4f} {:>+10.4f} {:>8.1f}\n", row.change, wide,
                        row.path, e.loss, e.accuracy, e.loss - first.loss, e.accuracy - first.accuracy,
                        row.seconds);
  }
  return text;
}

int intervene_command(const InterveneOptions& options) {
  const RunFolder folder = RunFolder::open(options.run);
  if (options.changes.empty())
    fail_usage("intervene: --clamp: at least one change expected, such as 'abs<=0.9'");
  if (options.examples < 0 || options.batch < 0)
    fail_usage("intervene: --examples, --batch: a number from 1, or 0 for the configuration's");
  InterveneRequest request;
  request.changes = options.changes;
  request.layers = places(options.layers, "--layers"), request.heads = places(options.heads, "--heads");
  request.stage = options.stage, request.examples = options.examples, request.batch = options.batch;
  request.device = parse_device(options.device);
  if (options.replay) request.path = InterventionPath::replay;
  const std::string dtype = options.dtype.empty() ? folder.read_info().dtype : options.dtype;
  if (dtype != "f32" && dtype != "f64")
    fail_usage(fmt::format("--dtype: f32 or f64 expected, found '{}'", dtype));
  request.dtype = dtype == "f64" ? DType::f64 : DType::f32;
  request.split = read_config_file(folder.config()).config.train.eval_split;
  if (!options.split.empty() && options.split != "test" && options.split != "validation")
    fail_usage(fmt::format("--split: validation or test expected, found '{}'", options.split));
  if (!options.split.empty())
    request.split = options.split == "test" ? EvalSplit::test : EvalSplit::validation;
  const InterventionTable table = run_interventions(folder, request);
  const std::string json = interventions_json(table);
  write_atomically(folder.path() + "/interventions.json", json + "\n");
  fmt::print("{}", options.json ? json + "\n" : interventions_text(table));
  fmt::print(stderr, "intervene: {}/interventions.json\n", folder.path());
  return 0;
}

}  // namespace eigentrace
