// `eigentrace tasks`: what there is to train on, seen from the command line.
#include <fmt/format.h>

#include "nn/config/config.h"
#include "tasks/catalogue.h"
#include "tensor/error.h"
#include "tensor/io/json_writer.h"
#include "tools/commands.h"

namespace eigentrace {
namespace {

int list(bool as_json) {
  JsonWriter json(JsonWriter::Style::pretty);
  json.begin_array();
  for (const TaskEntry& entry : list_tasks()) {
    json.begin_object().field("name", entry.name).field("about", entry.about);
    json.field("reads_files", entry.reads_files).end_object();
    if (!as_json)
      fmt::print("{:<22} {}{}\n", entry.name, entry.about, entry.reads_files ? " (reads files)" : "");
  }
  json.end_array();
  if (as_json) fmt::print("{}\n", json.text());
  return 0;
}

/// Sizes are part of a description where the task can be made; where files are missing it says so instead.
int describe(const TaskConfig& config, bool as_json) {
  std::unique_ptr<Task> task;
  try {
    task = make_task(config);
  } catch (const UsageError&) {
    throw;
  } catch (const Error& error) {
    fmt::print(stderr, "sizes not shown: {}\n", error.what());
  }
  fmt::print("{}\n", describe_task(config, task.get(), as_json));
  return 0;
}

int check(const Task& task, int64_t limit, bool as_json) {
  bool good = true;
  JsonWriter json(JsonWriter::Style::pretty);
  json.begin_array();
  for (const Finding& finding : check_task(task, limit)) {
    good = good && finding.good;
    json.begin_object().field("what", finding.what).field("text", finding.text).field("good", finding.good);
    json.end_object();
    if (!as_json) fmt::print("{:<5} {:<24} {}\n", finding.good ? "ok" : "BAD", finding.what, finding.text);
  }
  json.end_array();
  if (as_json) fmt::print("{}\n", json.text());
  return good ? 0 : 1;
}

int speed(const Task& task, Split split, bool as_json) {
  const Throughput made = measure_task(task, split, 64, 1.0);
  if (as_json)
    fmt::print("{{\"task\": \"{}\", \"examples_per_second\": {}}}\n", task.name(),
               made.examples_per_second());
  else
    fmt::print("{}: {:.0f} examples/s on one core\n", task.name(), made.examples_per_second());
  return 0;
}

}  // namespace

int tasks_command(const TasksOptions& options) {
  if (options.action == "list") return list(options.json);
  const std::string actions = "list, describe, sample, export, check or speed";
  if (options.action != "describe" && options.action != "sample" && options.action != "export" &&
      options.action != "check" && options.action != "speed")
    fail_usage(fmt::format("tasks: {} expected, found '{}'", actions, options.action));
  if (options.name.empty())
    fail_usage(fmt::format("tasks {}: which task? `tasks list` shows them", options.action));
  const TaskConfig config = read_task_config(options.name, options.set);
  if (options.action == "describe") return describe(config, options.json);
  if (options.action == "export") {
    if (options.out.empty()) fail_usage("tasks export: --out FOLDER is missing");
    ExportOptions how;
    how.out = options.out;
    how.format = options.format;
    how.limit = options.limit;
    for (const std::string& file : export_task(config, how)) fmt::print("{}\n", file);
    return 0;
  }
  const std::unique_ptr<Task> task = make_task(config);
  const Split split = split_from_name(options.split);
  if (options.action == "check") return check(*task, options.limit, options.json);
  if (options.action == "speed") return speed(*task, split, options.json);
  for (int64_t i = 0; i < options.count; ++i)
    fmt::print("{}\n", sample_task(*task, split, options.index + i, options.json));
  return 0;
}

}  // namespace eigentrace
