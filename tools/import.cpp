// `eigentrace import`: weights that the study's PyTorch code saved, as a checkpoint of ours.
#include "nn/import.h"

#include <fmt/format.h>

#include <filesystem>
#include <optional>

#include "nn/checkpoint.h"
#include "tasks/config.h"
#include "tensor/error.h"
#include "tensor/io/json_writer.h"
#include "tools/commands.h"
#include "tools/version.h"

namespace eigentrace {
namespace {

/// What the data decide. Without the data's files the configuration's own sizes must do.
void fit_to_task(RunConfig& config) {
  std::optional<TaskShape> shape;
  try {
    shape = make_task(config.dataset)->shape(Split::train);
  } catch (const UsageError&) {
    throw;
  } catch (const Error& error) {
    fmt::print(stderr, "note: the data cannot be read ({}): the sizes are the configuration's own\n",
               error.what());
  }
  if (shape) fit_model(config.model, *shape);
}

void write_names(JsonWriter& json, const char* key, const std::vector<std::string>& names) {
  json.key(key).begin_array();
  for (const std::string& name : names) json.value(name);
  json.end_array();
}

}  // namespace

int import_command(const ImportOptions& options) {
  if (options.dtype != "f64" && options.dtype != "f32")
    fail_usage(fmt::format("--dtype: f32 or f64 expected, found '{}'", options.dtype));
  if (std::filesystem::exists(options.out) && !options.force)
    fail_usage(fmt::format("--out: '{}' exists; give another name, or --force to replace it", options.out));
  const LoadedConfig loaded = read_config_file(options.config, options.set);
  RunConfig config = loaded.config;
  fit_to_task(config);
  const std::unique_ptr<Model> model =
      make_model(config.model, config.seed, options.dtype == "f64" ? DType::f64 : DType::f32);
  const ImportReport report = import_pth(options.file, *model);
  save_weights(options.out, *model, config, {{}, version_line()});

  for (const std::string& name : report.not_finite)
    fmt::print(stderr, "note: {} holds NaN or infinity\n", name);
  if (options.json) {
    JsonWriter json(JsonWriter::Style::pretty);
    json.begin_object().field("file", options.file).field("out", options.out);
    json.field("tensors", report.tensors).field("parameters", model->parameters().count());
    write_names(json, "left_out", report.left_out);
    write_names(json, "ignored", report.ignored);
    write_names(json, "not_finite", report.not_finite);
    fmt::print("{}\n", json.end_object().text());
    return 0;
  }
  fmt::print("{}: {} tensors, {} parameters from {}\n", options.out, report.tensors,
             model->parameters().count(), options.file);
  if (!report.left_out.empty()) fmt::print("left out: {}\n", fmt::join(report.left_out, ", "));
  if (!report.ignored.empty()) fmt::print("beside the weights: {}\n", fmt::join(report.ignored, ", "));
  return 0;
}

}  // namespace eigentrace
