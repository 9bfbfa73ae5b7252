#pragma once
// Timings of the heavy kernels at the published sizes.
#include <functional>
#include <string>
#include <vector>

#include "tensor/context.h"

namespace eigentrace {

/// One timed call. flops and bytes are what the algorithm needs at least (causal products count their lower
/// triangle), so flops / seconds is comparable with the ceiling.
struct BenchLine {
  std::string name;
  double seconds, flops, bytes;
};

/// The best of `repeats` wall times of f, in seconds, after one call that warms up.
double best_seconds(int repeats, const std::function<void()>& f);

/// Ceiling of matrix products on this machine: 2048³ in float32 on all threads.
BenchLine bench_gemm_ceiling(int repeats);
/// linear [32768,128]×[384,128], softmax attention and ssd at B 64, T 512, H 1, N = P = 128, the vocabulary
/// head at 4096×128×8192: forward and forward + backward, float32.
std::vector<BenchLine> bench_kernels(Context& ctx, int repeats);
/// ssd forward + backward, B 4, N = P = 128, for T = 512, 1024, … 8192: time must grow linearly.
std::vector<BenchLine> bench_ssd_lengths(Context& ctx, int repeats);

}  // namespace eigentrace
