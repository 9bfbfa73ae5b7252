#pragma once
// Invented runs that have everything a report can show.
#include <cmath>
#include <limits>
#include <numbers>
#include <string>

#include "tools/report/data.h"

namespace eigentrace {

/// Uniform in (0, 1), a pure function of its arguments.
inline double sample_uniform(uint64_t seed, uint64_t index) {
  uint64_t z = (seed * 0x9E3779B97F4A7C15ull) ^ (index + 0x632BE59BD9B4E019ull);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return (double((z ^ (z >> 31)) >> 11) + 0.5) * 0x1p-53;
}

inline double sample_normal(uint64_t seed, uint64_t index) {
  return std::sqrt(-2 * std::log(sample_uniform(seed, 2 * index))) *
         std::cos(2 * std::numbers::pi * sample_uniform(seed, 2 * index + 1));
}

/// Bins and statistics from the sample itself.
inline void finish_sample(SpectrumReport& s) {
  const double infinity = std::numeric_limits<double>::infinity();
  s.radius.edges = {0, 0.1, 0.5, 0.9, 1, 10, 100, infinity};
  s.phase.edges = {0, 1, 10, 45, 90, 180};
  s.radius.mean.assign(7, 0), s.phase.mean.assign(5, 0);
  s.radius.std.assign(7, 4), s.phase.std.assign(5, 3);
  const double share = 100.0 / double(s.eigenvalues.size());
  double mean = 0, largest = 0;
  for (const EigenvalueSample& e : s.eigenvalues) {
    const double radius = std::exp(e.log_abs), degrees = std::abs(e.arg) * 180 / std::numbers::pi;
    for (size_t b = 0; b < 7; b++)
      s.radius.mean[b] += radius >= s.radius.edges[b] && radius < s.radius.edges[b + 1] ? share : 0;
    for (size_t b = 0; b < 5; b++)
      s.phase.mean[b] +=
          degrees >= s.phase.edges[b] && (b == 4 || degrees < s.phase.edges[b + 1]) ? share : 0;
    mean += radius * share / 100, largest = std::max(largest, radius);
  }
  s.statistics = {{"mean |λ|", mean},
                  {"spectral radius", largest},
                  {"share |λ| > 1", mean / 7},
                  {"half-life (steps)", 1 / (1.001 - std::min(mean, 1.0))}};
}

/// Like attention: real, moving in time. sharp: the trained kind, with forgetting at some steps.
inline SpectrumReport attention_sample(const std::string& stage, int layer, int head, bool sharp,
                                       double spread) {
  SpectrumReport s;
  s.stage = stage, s.layer = layer, s.head = head;
  const uint64_t seed = uint64_t(layer * 8 + head + 1);
  for (uint64_t i = 0; i < 320; i++) {
    const int64_t t = 1 + int64_t(i * 127 / 320);
    const double calm = std::log(double(t) / double(t + 1)) * (0.6 + 0.8 * sample_uniform(seed, i));
    const bool forgets = sharp && sample_uniform(seed + 99, uint64_t(t)) < 0.12 + 0.1 * head;
    s.eigenvalues.push_back({forgets ? -spread * sample_uniform(seed + 7, i)
                                     : calm + (sharp ? 0.02 * spread * sample_normal(seed, i) : 0),
                             0, t});
  }
  finish_sample(s);
  return s;
}

/// Like a linear recurrent unit: complex, fixed.
inline SpectrumReport recurrent_sample(const std::string& stage, int layer, bool trained) {
  SpectrumReport s;
  s.stage = stage, s.layer = layer, s.time_varying = false;
  for (uint64_t i = 0; i < 128; i++) {
    const double u = sample_uniform(uint64_t(layer) + 31, i), v = sample_uniform(uint64_t(layer) + 47, i);
    const double radius = std::sqrt(u * (0.99 * 0.99 - 0.8 * 0.8) + 0.8 * 0.8);
    const double moved =
        trained ? std::min(0.9995, radius + 0.1 * (1 - radius) * sample_normal(5, i) + 0.3 * (1 - radius))
                : radius;
    const double phase = 2 * std::numbers::pi * v * (trained ? 0.5 + 0.1 * sample_normal(9, i) : 1);
    s.eigenvalues.push_back({std::log(std::abs(moved)), std::remainder(phase, 2 * std::numbers::pi), 0});
  }
  finish_sample(s);
  return s;
}

inline std::vector<MetricRow> learning_sample(uint64_t seed, double start, double middle, double best) {
  std::vector<MetricRow> rows;
  for (int64_t step = 0; step <= 2000; step += 10) {
    const double progress = 1 / (1 + std::exp(-(double(step) - middle) / 120));
    MetricRow row;
    row.step = step;
    row.train_loss =
        start * (1 - progress * 0.97) + 0.08 * sample_normal(seed, uint64_t(step)) * (1.1 - progress);
    row.train_accuracy =
        std::min(1.0, std::max(0.0, best * progress + 0.02 * sample_normal(seed + 1, uint64_t(step))));
    if (step % 100 == 0) {
      row.eval_loss = start * (1 - progress * 0.96);
      row.eval_accuracy = best * progress;
    }
    row.steps_per_second = 41 + 2 * sample_normal(seed + 2, uint64_t(step)) - double(seed);
    rows.push_back(row);
  }
  return rows;
}

inline Report sample_report() {
  Report report;
  report.title = "Associative recall, four models";
  report.subtitle = "Invented numbers, for looking at the report itself.";
  const char* const config =
      "seed: 1\nmodel:\n  layer: transformer\n  attention_fn: sm-attention\n  num_layers: 2\n  hidden_dim: "
      "64\ntrain:\n  lr: 0.001\n"
      "  batch_size: 64\n  note: \"quotes & <tags>\"\n";
  RunReport softmax{"softmax attention",
                    config,
                    {{"parameters", "412,160"},
                     {"accuracy", "0.993"},
                     {"loss", "0.061"},
                     {"steps", "2000"},
                     {"steps/s", "41.0"},
                     {"time", "48 s"}},
                    {},
                    {}};
  softmax.metrics = learning_sample(1, 4.1, 700, 0.993);
  RunReport linear = softmax, norm = softmax, lru = softmax;
  for (int layer = 0; layer < 2; layer++)
    for (int head = 0; head < 3; head++) {
      softmax.spectra.push_back(attention_sample("initial", layer, head, false, 0));
      softmax.spectra.push_back(attention_sample("trained", layer, head, true, 6));
      linear.spectra.push_back(attention_sample("initial", layer, head, false, 0));
      linear.spectra.push_back(attention_sample("trained", layer, head, layer == 1, 1));
    }
  linear.name = "linear attention";
  linear.headline = {{"parameters", "412,160"}, {"accuracy", "0.412"}, {"loss", "2.310"},
                     {"steps", "2000"},         {"steps/s", "39.2"},   {"time", "51 s"}};
  linear.metrics = learning_sample(2, 4.1, 1500, 0.42);
  norm.name = "norm attention, exp";
  norm.metrics = learning_sample(3, 4.1, 1000, 0.97);
  norm.headline = {{"accuracy", "0.970"}, {"loss", "0.143"}};
  for (int head = 0; head < 2; head++) norm.spectra.push_back(attention_sample("trained", 0, head, true, 40));
  lru.name = "lru";
  lru.metrics = learning_sample(4, 4.1, 1200, 0.83);
  for (int layer = 0; layer < 2; layer++) {
    lru.spectra.push_back(recurrent_sample("initial", layer, false));
    lru.spectra.back().step = 0;
    for (int64_t step = 250; step < 2000; step += 250) {
      lru.spectra.push_back(recurrent_sample("step" + std::to_string(step), layer, false));
      lru.spectra.back().step = step;
      for (EigenvalueSample& e : lru.spectra.back().eigenvalues) e.log_abs *= 1 - 0.0003 * double(step);
    }
    lru.spectra.push_back(recurrent_sample("trained", layer, true));
    lru.spectra.back().step = 2000;
  }
  for (const char* stage : {"initial", "trained"}) {
    softmax.spectra.push_back(attention_sample(stage, 0, 0, false, 0));
    softmax.spectra.back().reading = "published";
  }
  for (RunReport* run : {&softmax, &linear})
    run->interventions = {"Weights: trained.",
                          {{"as trained", "none", 0.06, 0.99, 0, 0},
                           {"abs<=inf", "ops", 0.06, 0.99, 0, 0},
                           {"abs<=0.9; lambda=0 layers=0 heads=1", "ops", 5.06, 0.03, 5, -0.96},
                           {"freeze=mean", "replay", 0.05, 0.995, -0.01, 0.005}}};
  for (MetricRow& row : lru.metrics) row.eval_macro_accuracy = row.eval_accuracy / 2;
  report.runs = {softmax, linear, norm, lru};
  for (const bool second : {false, true}) {
    CorrelationReport c;
    c.stage = "trained", c.statistic = second ? "expanding_share" : "radius.q50", c.figure = "accuracy";
    c.layer = second ? 1 : -1;
    c.n = 4, c.rho = second ? -0.8 : 1, c.low = second ? -1 : 0.25, c.high = second ? 0.5 : 1;
    c.p_value = second ? 0.33 : 0.083, c.q_value = second ? 0.33 : 0.17;
    for (int k = 0; k < 4; k++)
      c.points.push_back(
          {report.runs[size_t(k)].name, k < 2 ? "first" : "second", second ? 4.0 - k : k + 0.5, 0.25 * k});
    report.correlations.push_back(c);
  }
  return report;
}

}  // namespace eigentrace
