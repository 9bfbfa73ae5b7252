// `eigentrace bench`: ceilings first, then every line against them, in one run.
#include "tools/bench.h"

#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "tensor/blas.h"
#include "tensor/error.h"
#include "tensor/io/json_writer.h"
#include "tools/commands.h"
#include "tools/progress.h"
#include "tools/version.h"

namespace eigentrace {

double best_seconds(int repetitions, const std::function<void()>& work) {
  using Clock = std::chrono::steady_clock;
  double best = 1e300;
  for (int i = 0; i <= repetitions; ++i) {  // the first one warms up: page faults, caches, clock frequency
    const Clock::time_point start = Clock::now();
    work();
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    if (i > 0 || repetitions == 0) best = std::min(best, seconds);
  }
  return best;
}

Ceilings measure_ceilings(bool quick) {
  Ceilings ceilings;
  const int64_t n = quick ? 1024 : 2048;
  const std::vector<float> a(static_cast<size_t>(n * n), 0.5f), b(a);
  std::vector<float> c(a);
  const double gemm_seconds = best_seconds(3, [&] {
    parallel_gemm<float>(n, n, n, 1.0f, {a.data(), n}, {b.data(), n}, 0.0f, {c.data(), n});
  });
  ceilings.gemm_f32 =
      2.0 * static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n) / gemm_seconds;

  const int64_t bytes = quick ? 64 << 20 : 256 << 20;
  std::vector<char> from(static_cast<size_t>(bytes), 1), to(from);
  const int threads = omp_get_max_threads();
  const double copy_seconds = best_seconds(3, [&] {
#pragma omp parallel for schedule(static)
    for (int t = 0; t < threads; ++t) {
      const int64_t begin = bytes * t / threads, end = bytes * (t + 1) / threads;
      std::memcpy(to.data() + begin, from.data() + begin, static_cast<size_t>(end - begin));
    }
  });
  ceilings.copy = 2.0 * static_cast<double>(bytes) / copy_seconds;
  return ceilings;
}

namespace {

bool wanted(const BenchOptions& options, const std::string& name) {
  if (options.only.empty()) return true;
  return std::any_of(options.only.begin(), options.only.end(),
                     [&](const std::string& word) { return name.find(word) != std::string::npos; });
}

double floor_seconds(const BenchLine& line, const Ceilings& ceilings) {
  if (line.floor > 0) return line.floor;
  return std::max(line.flops / ceilings.gemm_f32, line.bytes / ceilings.copy);
}

void print_gpu_lines(const std::vector<BenchLine>& lines) {
  fmt::print("{:<52} {:>9} {:>11} {:>9} {:>9} {:>9}\n", "line", "ms", "tokens/s", "step MiB", "floor ms",
             "roofline");
  for (const BenchLine& line : lines)
    fmt::print("{:<52} {:>9.3f} {:>10.2f}M {:>9.0f} {:>9.3f} {:>8.0f}%  {}\n", line.name, line.seconds * 1e3,
               line.tokens / line.seconds / 1e6, line.peak_mib, line.floor * 1e3,
               100 * line.floor / line.seconds, line.note);
}

void print_table(const std::vector<BenchLine>& lines, const Ceilings& ceilings, Device device) {
  fmt::print("{}\n", version_line());
  if (device.is_cuda()) {
    fmt::print("{}\n", describe(device));
    fmt::print(
        "rates measured now, TFLOP/s: fp32 {:.1f}, tf32 {:.0f}, bf16 operands {:.0f}; copy {:.0f} GB/s\n\n",
        ceilings.gemm_f32 / 1e12, ceilings.gemm_tf32 / 1e12, ceilings.gemm_bf16 / 1e12, ceilings.copy / 1e9);
    print_gpu_lines(lines);
    return;
  }
  fmt::print("{}, {} threads\n", describe(Device{}), omp_get_max_threads());
  fmt::print("ceilings measured now: matrix product {:.0f} GFLOP/s, copy {:.1f} GB/s\n\n",
             ceilings.gemm_f32 / 1e9, ceilings.copy / 1e9);
  fmt::print("{:<58} {:>10} {:>9} {:>8} {:>11} {:>9}\n", "line", "ms", "GFLOP/s", "GB/s", "time/floor",
             "step MiB");
  for (const BenchLine& line : lines) {
    const double floor = floor_seconds(line, ceilings);
    const auto optional = [](double value, const char* format) {
      return value > 0 ? fmt::format(fmt::runtime(format), value) : std::string("–");
    };
    fmt::print("{:<58} {:>10.3f} {:>9} {:>8} {:>11} {:>9}{}\n", line.name, line.seconds * 1e3,
               optional(line.flops / line.seconds / 1e9, "{:.1f}"),
               optional(line.bytes / line.seconds / 1e9, "{:.1f}"),
               optional(floor > 0 ? line.seconds / floor : 0, "{:.2f}"), optional(line.peak_mib, "{:.0f}"),
               line.note.empty() ? "" : "  " + line.note);
  }
}

void print_json(const std::vector<BenchLine>& lines, const Ceilings& ceilings, Device device) {
  JsonWriter json(JsonWriter::Style::pretty);
  json.begin_object();
  json.field("version", version()).field("commit", commit()).field("blas_core", blas_core());
  json.field("processor", describe(device)).field("threads", omp_get_max_threads());
  json.field("gemm_flops_per_second", ceilings.gemm_f32);
  if (device.is_cuda())
    json.field("gemm_tf32_flops_per_second", ceilings.gemm_tf32)
        .field("gemm_bf16_flops_per_second", ceilings.gemm_bf16);
  json.field("copy_bytes_per_second", ceilings.copy);
  json.key("lines").begin_array();
  for (const BenchLine& line : lines) {
    json.begin_object();
    json.field("name", line.name)
        .field("seconds", line.seconds)
        .field("flops", line.flops)
        .field("bytes", line.bytes);
    json.field("floor_seconds", floor_seconds(line, ceilings))
        .field("peak_mib", line.peak_mib)
        .field("note", line.note);
    json.end_object();
  }
  json.end_array().end_object();
  fmt::print("{}\n", json.text());
}

}  // namespace

int bench_command(const BenchOptions& options) {
  const Device device = parse_device(options.device);
  Ceilings ceilings;
  std::vector<BenchLine> lines;
  std::vector<BenchCase> cases;
  if (device.is_cuda()) {
    GpuBench how{device, {}, {}, options.eager, options.quick, {}};
    for (const std::string& name : options.precisions) how.precisions.push_back(parse_precision(name));
    if (!options.attention_precision.empty()) how.attention = parse_precision(options.attention_precision);
    if (!(options.eager && options.quick)) ceilings = how.ceilings = measure_gpu_ceilings(device);
    cases = gpu_step_benchmarks(how);
    for (BenchCase& c : gpu_spectra_benchmarks(how)) cases.push_back(std::move(c));
    for (BenchCase& c : gpu_kernel_benchmarks(how)) cases.push_back(std::move(c));
  } else {
    ceilings = measure_ceilings(options.quick);
    cases = kernel_benchmarks(options.quick);
    for (BenchCase& c : step_benchmarks(options.quick)) cases.push_back(std::move(c));
  }
  std::erase_if(cases, [&](const BenchCase& c) { return !wanted(options, c.name); });
  if (cases.empty()) fail_usage("bench: no line's name contains one of the words given");
  Progress progress("bench", static_cast<int64_t>(cases.size()));
  for (BenchCase& c : cases) {
    progress.update(static_cast<int64_t>(lines.size()), c.name);
    lines.push_back(c.run());
    lines.back().name = c.name;
  }
  progress.update(static_cast<int64_t>(lines.size()), "");
  progress.finish();
  options.json ? print_json(lines, ceilings, device) : print_table(lines, ceilings, device);
  return 0;
}

}  // namespace eigentrace
