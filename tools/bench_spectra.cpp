// What a reading of every layer's eigenvalues adds to the training step that it is part of: steps with and
// without one in turn, in one run.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <future>

#include "tools/bench_gpu.h"
#include "tools/spectrum.h"

namespace eigentrace {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

/// Every fourth step of a round is read, all sequences of it. A worker takes the values over as in training;
/// its statistics are timed apart, since a training has many steps to make them in.
BenchLine time_reading(const std::string& experiment, const TaskShape& task, const GpuBench& how,
                       Precision precision) {
  constexpr int rounds = 9, readings = 16, every = 4;
  StudyStep s(experiment, task, how, precision);
  StepReading reading(how.device, s.batch.batch);
  std::future<std::vector<StepReading::Layer>> worker;
  const auto round = [&](bool read) {
    synchronise(how.device);
    const Clock::time_point start = Clock::now();
    for (int i = 0; i < readings * every; ++i) {
      const bool now = read && i % every == 0;
      if (now && worker.valid()) worker.get();
      s.step.run(s.data.input(), s.data.labels(), now ? &reading : nullptr);
      if (now) worker = std::async(std::launch::async, [&] { return reading.wait(); });
    }
    synchronise(how.device);
    const double seconds = seconds_since(start);
    s.step.results();
    return seconds;
  };
  round(true);  // both graphs are captured
  std::vector<double> plain, added;
  for (int i = 0; i < rounds; ++i) {
    plain.push_back(round(false));
    added.push_back((round(true) - plain.back()) / readings);
  }
  const std::vector<StepReading::Layer> layers = worker.get();
  const Clock::time_point start = Clock::now();
  const Shape input{s.batch.batch, s.shape.time};
  const SpectrumRecord record = step_spectra(*s.model, layers, input);
  const double statistics = seconds_since(start);
  int64_t eigenvalues = 0;
  for (const LayerRecord& layer : record.layers) eigenvalues += layer.spectrum.full_count;

  BenchLine line;
  line.floor = median(plain) / (readings * every);
  line.seconds = line.floor + median(added);
  line.tokens = static_cast<double>(s.batch.batch * s.shape.time);
  line.peak_mib = static_cast<double>(s.ctx.slab().peak()) / 1048576.0;
  line.note = fmt::format(
      "a reading adds {:.4f} ms, {:.2f}% of a step; {} eigenvalues, {:.2f} MiB; beside training {:.0f} ms",
      median(added) * 1e3, 100 * median(added) / line.floor, eigenvalues,
      static_cast<double>(reading.bytes()) / 1048576.0, statistics * 1e3);
  return line;
}

}  // namespace

std::vector<BenchCase> gpu_spectra_benchmarks(const GpuBench& how) {
  std::vector<BenchCase> cases;
  for (const StudySize& size : study_sizes())
    for (const char* family : size.families)
      for (const Precision precision : how.precisions) {
        const std::string experiment = fmt::format("{}-{}", size.task, family);
        cases.push_back(
            {fmt::format("spectra: {}, {}", experiment, name_of(precision)),
             [=, shape = size.shape] { return time_reading(experiment, shape, how, precision); }});
      }
  return cases;
}

}  // namespace eigentrace
