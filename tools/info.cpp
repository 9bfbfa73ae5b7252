#include <fmt/format.h>
#include <omp.h>
#include <unistd.h>

#include <filesystem>

#include "nn/checkpoint.h"
#include "tensor/blas.h"
#include "tensor/device.h"
#include "tensor/io/json_writer.h"
#include "tools/commands.h"
#include "tools/run_folder.h"
#include "tools/version.h"

namespace eigentrace {

namespace {

/// One checkpoint or file of weights, its checksum compared.
void describe_file(const std::string& path, bool as_json) {
  const CheckpointAbout about = describe_checkpoint(path);
  const std::string made_by = about.made_by.empty() ? "unknown" : about.made_by;
  const std::string kind = about.state ? "checkpoint of training" : "weights";
  if (as_json) {
    JsonWriter json;
    json.begin_object().field("file", path).field("kind", kind).field("made_by", made_by);
    json.field("checksum", about.checksum).field("tensors", about.tensors).field("weights", about.weights);
    json.field("dtype", about.dtype).field("bytes", about.bytes);
    if (about.config) json.field("task", task_name(about.config->dataset)).field("seed", about.config->seed);
    if (about.state) json.field("step", about.state->step);
    json.key("not_finite").values(about.not_finite);
    fmt::print("{}\n", json.end_object().text());
    return;
  }
  fmt::print("{}\n  {}{}, {}\n", path, kind,
             about.state ? fmt::format(" after step {}", about.state->step) : "",
             about.checksum ? "checksum verified" : "no checksum (another program's file)");
  fmt::print("  {} tensors, {} weights, {}, {} bytes\n", about.tensors, about.weights, about.dtype,
             about.bytes);
  if (about.config) fmt::print("  task {}, seed {}\n", task_name(about.config->dataset), about.config->seed);
  fmt::print("  made by {}\n", made_by);
  if (!about.not_finite.empty())
    fmt::print("  not finite: {}{}\n", about.not_finite[0],
               about.not_finite.size() > 1 ? fmt::format(" and {} more", about.not_finite.size() - 1) : "");
}

}  // namespace

int info_command(const InfoOptions& options) {
  if (!options.path.empty()) {
    if (!std::filesystem::is_directory(options.path)) return describe_file(options.path, options.json), 0;
    const RunFolder folder = RunFolder::open(options.path);
    const RunInfo info = folder.read_info();
    if (!options.json)
      fmt::print("{}: {} after step {} of {} ({})\n", options.path, info.state, info.step, info.total_steps,
                 info.reason);
    for (const std::string& file : {folder.initial(), folder.checkpoint(), folder.failed_state()})
      if (std::filesystem::exists(file)) describe_file(file, options.json);
    return 0;
  }
  const double memory =
      static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE)) / (1 << 30);
  std::vector<std::string> gpus;
  for (int i = 0; i < cuda_device_count(); ++i) gpus.push_back(describe({DeviceKind::cuda, i}));
  if (options.json) {
    JsonWriter json(JsonWriter::Style::pretty);
    json.begin_object();
    json.field("version", version()).field("commit", commit()).field("compiler", compiler());
    json.field("cuda", cuda_version()).field("blas_core", blas_core());
    json.field("processor", describe(Device{}))
        .field("threads", omp_get_max_threads())
        .field("memory_gib", memory);
    json.key("gpus").values(gpus);
    json.end_object();
    fmt::print("{}\n", json.text());
    return 0;
  }
  fmt::print("{}\n", version_line());
  fmt::print("processor  {}, {} threads, {:.1f} GiB\n", describe(Device{}), omp_get_max_threads(), memory);
  fmt::print("products   OpenBLAS, core {}\n", blas_core());
  fmt::print("CUDA       {}\n", built_with_cuda() ? "toolkit " + cuda_version() : "not built in");
  for (size_t i = 0; i < gpus.size(); ++i) fmt::print("cuda:{}     {}\n", i, gpus[i]);
  if (gpus.empty()) fmt::print("GPUs       none usable; everything runs on the CPU\n");
  return 0;
}

}  // namespace eigentrace
