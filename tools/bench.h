#pragma once
// Benchmark lines: what ran, how long, and what share of this machine's measured ceilings it reached.
#include <functional>
#include <string>
#include <vector>

#include "tensor/context.h"

namespace eigentrace {

/// A measured line. share = floor_seconds / seconds, floor = max(flops / gemm rate, bytes / copy rate).
struct BenchLine {
  std::string name;
  double seconds = 0;   ///< best of the repetitions
  double flops = 0;     ///< arithmetic that must be done; 0: not counted
  double bytes = 0;     ///< memory that must be moved; 0: not counted
  double peak_mib = 0;  ///< step memory; 0: not measured
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
  double gemm_f32 = 0;  ///< FLOP/s of a large float32 matrix product on all threads
  double copy = 0;      ///< bytes read and written per second by a copy far larger than the caches
};
Ceilings measure_ceilings(bool quick);

}  // namespace eigentrace
