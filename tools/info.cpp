#include <fmt/format.h>
#include <omp.h>
#include <unistd.h>

#include "tensor/blas.h"
#include "tensor/device.h"
#include "tensor/io/json_writer.h"
#include "tools/commands.h"
#include "tools/version.h"

namespace eigentrace {

int info_command(const CommonOptions& options) {
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
