#include "tools/run_folder.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string_view>

#include "tensor/error.h"
#include "tensor/io/file.h"
#include "tensor/io/json_writer.h"

namespace eigentrace {
namespace {

constexpr const char* run_format = "eigentrace-run/1";

/// The fields of a run's description, once: for writing and for reading.
template <class Visitor, class Info>
void visit_run_info(Visitor&& visit, Info& info) {
  visit("name", info.name);
  visit("config_name", info.config_name);
  visit("task", info.task);
  visit("family", info.family);
  visit("seed", info.seed);
  visit("version", info.version);
  visit("commit", info.commit);
  visit("blas_core", info.blas_core);
  visit("device", info.device);
  visit("dtype", info.dtype);
  visit("precision", info.precision);
  visit("attention_precision", info.attention_precision);
  visit("threads", info.threads);
  visit("parameters", info.parameters);
  visit("step", info.step);
  visit("total_steps", info.total_steps);
  visit("state", info.state);
  visit("reason", info.reason);
  visit("wall_seconds", info.wall_seconds);
  visit("peak_step_memory_mib", info.peak_step_memory_mib);
}

template <class Visitor, class Row>
void visit_metrics(Visitor&& visit, Row& row) {
  visit("step", row.step);
  visit("split", row.split);
  visit("loss", row.loss);
  visit("accuracy", row.accuracy);
  if (row.split != "train") return visit("macro_accuracy", row.macro_accuracy);
  visit("learning_rate", row.learning_rate);
  visit("gradient_norm", row.gradient_norm);
  visit("steps_per_second", row.steps_per_second);
}

/// Fills a struct from a JSON object; the writer turns NaN and infinities into null, so null reads as NaN.
struct Reader {
  const nlohmann::json& object;
  template <class T>
  void operator()(const char* key, T& value) const {
    if constexpr (requires { value.has_value(); }) {
      if (object.contains(key)) read(key, value.emplace());
    } else {
      read(key, value);
    }
  }
  template <class T>
  void read(const char* key, T& value) const {
    const std::string_view name = key;
    const bool newer = name == "precision" || name == "attention_precision";  // runs from before have none
    if (newer && !object.contains(key)) return;
    const nlohmann::json& found = object.at(key);
    if constexpr (std::is_floating_point_v<T>)
      value = found.is_null() ? std::numeric_limits<T>::quiet_NaN() : found.get<T>();
    else
      value = found.get<T>();
  }
};

}  // namespace

std::string to_json(const MetricsRow& row) {
  JsonWriter json;
  json.begin_object();
  visit_metrics(
      [&](const char* key, const auto& value) {
        if constexpr (requires { value.has_value(); }) {
          if (value) json.field(key, *value);
        } else {
          json.field(key, value);
        }
      },
      row);
  json.end_object();
  return json.text();
}

RunFolder RunFolder::create(const std::string& path, bool force) {
  RunFolder folder(path);
  if (std::filesystem::exists(folder.info_file()) && !force)
    fail_usage(fmt::format(
        "train: '{}' already holds a run; go on with --resume {}, choose another --out, or replace "
        "it with --force",
        path, path));
  return folder;
}

void RunFolder::prepare() const {
  ensure_directory(path_);
  // run.json first: without it this is no run, so that a program killed here leaves no mixture of two.
  for (const char* name :
       {"run.json", "failed_batch.npz", "failed.safetensors", "metrics.jsonl", "initial.safetensors",
        "checkpoint.safetensors", "spectrum_initial.npz", "spectrum_initial.json", "spectrum_trained.npz",
        "spectrum_trained.json", "interventions.json"})
    std::filesystem::remove(path_ + "/" + name);
  std::vector<std::filesystem::path> along;
  for (const auto& entry : std::filesystem::directory_iterator(path_))
    if (entry.path().filename().string().starts_with("spectrum_step")) along.push_back(entry.path());
  for (const auto& path : along) std::filesystem::remove(path);
}

void search_folders(const std::string& command, const std::string& path,
                    const std::function<bool(const std::string&)>& taken) {
  namespace fs = std::filesystem;
  if (!fs::is_directory(path)) fail_usage(fmt::format("{}: '{}' is no folder", command, path));
  const std::function<void(const std::string&, int)> visit = [&](const std::string& folder, int depth) {
    if (taken(folder) || depth == 0) return;
    std::vector<std::string> below;
    for (const auto& entry : fs::directory_iterator(folder))
      if (entry.is_directory()) below.push_back(entry.path().string());
    std::ranges::sort(below);
    for (const std::string& next : below) visit(next, depth - 1);
  };
  const size_t last = path.find_last_not_of('/');
  visit(last == std::string::npos ? path : path.substr(0, last + 1), 4);
}

bool RunFolder::exists(const std::string& path) {
  return std::filesystem::exists(RunFolder(path).info_file());
}

RunFolder RunFolder::open(const std::string& path) {
  RunFolder folder(path);
  if (!exists(path))
    fail(fmt::format("'{}' is no run folder: it has no run.json (folders that `eigentrace train` wrote have)",
                     path));
  folder.read_info();
  return folder;
}

void RunFolder::write_info(const RunInfo& info) const {
  JsonWriter json(JsonWriter::Style::pretty);
  json.begin_object();
  json.field("format", run_format);
  visit_run_info([&](const char* key, const auto& value) { json.field(key, value); }, info);
  json.end_object();
  write_atomically(info_file(), json.text() + "\n");
}

RunInfo RunFolder::read_info() const {
  RunInfo info;
  try {
    const nlohmann::json object = nlohmann::json::parse(read_file(info_file()));
    const std::string format = object.at("format").get<std::string>();
    if (format != run_format)
      fail(fmt::format("{}: format '{}', this program reads '{}'", info_file(), format, run_format));
    visit_run_info(Reader{object}, info);
  } catch (const nlohmann::json::exception& error) {
    fail(fmt::format("{}: not a run's description: {}", info_file(), error.what()));
  }
  return info;
}

std::vector<MetricsRow> RunFolder::read_metrics() const {
  std::vector<MetricsRow> rows;
  if (!std::filesystem::exists(metrics())) return rows;
  const std::string text = read_file(metrics(), uint64_t{1} << 32);
  size_t start = 0, number = 1;
  for (size_t end; (end = text.find('\n', start)) != std::string::npos; start = end + 1, ++number) {
    MetricsRow row;
    try {
      const nlohmann::json object = nlohmann::json::parse(text.begin() + static_cast<int64_t>(start),
                                                          text.begin() + static_cast<int64_t>(end));
      row.split = object.at("split").get<std::string>();
      visit_metrics(Reader{object}, row);
    } catch (const nlohmann::json::exception& error) {
      fail(fmt::format("{}: line {} is no metrics line: {}", metrics(), number, error.what()));
    }
    rows.push_back(row);
  }
  return rows;
}

}  // namespace eigentrace
