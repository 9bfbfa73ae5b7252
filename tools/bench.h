#pragma once
// Benchmark lines: what ran, how long, and what share of this machine's measured ceilings it reached.
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "tensor/context.h"

namespace eigentrace {

/// A measured line. share = floor / seconds, floor = max(flops / gemm rate, bytes / copy rate).
struct BenchLine {
  std::string name;
  double seconds = 0;   ///< best of the repetitions
  double flops = 0;     ///< arithmetic that must be done; 0: not counted
  double bytes = 0;     ///< memory that must be moved; 0: not counted
  double peak_mib = 0;  ///< step memory; 0: not measured
  double floor = 0;     ///< seconds; 0: from flops and bytes
  double tokens = 0;    ///< positions a step trains on; 0: not a step
  std::string note;
};

/// A line that can be run. Cases are listed first, so that `bench WORD` runs only what it names.
struct BenchCase {
  std::string name;
  std::function<BenchLine()> run;
};
std::vector<BenchCase> kernel_benchmarks(bool quick);  ///< bench_kernels.cpp
std::vector<BenchCase> step_benchmarks(bool quick);    ///< bench_steps.cpp: whole training steps

/// Best wall time of `repetitions` calls after one to warm up.
double best_seconds(int repetitions, const std::function<void()>& work);

/// What the machine can do, measured in the same run.
struct Ceilings {
  double gemm_f32 = 0;                  ///< FLOP/s of a large float32 matrix product (CPU: on all threads)
  double gemm_tf32 = 0, gemm_bf16 = 0;  ///< GPU only
  double copy = 0;  ///< bytes read and written per second by a copy far larger than the caches
};
Ceilings measure_ceilings(bool quick);

/// The GPU's lines (bench_gpu.cpp: whole steps).
struct GpuBench {
  Device device;
  std::vector<Precision> precisions;
  std::optional<Precision> attention;  ///< of the products inside softmax attention
  bool eager = false;                  ///< not captured
  bool quick = false;                  ///< with eager: two steps and no time, for a profiler
  Ceilings ceilings;
};
Ceilings measure_gpu_ceilings(Device device);
std::vector<BenchCase> gpu_step_benchmarks(const GpuBench& how);
/// bench_spectra.cpp: `seconds` with a reading, `floor` without.
std::vector<BenchCase> gpu_spectra_benchmarks(const GpuBench& how);
std::vector<BenchCase> gpu_kernel_benchmarks(const GpuBench& how);  ///< bench_gpu_kernels.cpp
/// Rate of large products in `precision`.
double gemm_rate(const Ceilings& ceilings, Precision precision);
/// Seconds of one call of `work`, calls in a row without waiting: the median of five rounds.
double steady_seconds(Device device, int calls, const std::function<void()>& work);

}  // namespace eigentrace
