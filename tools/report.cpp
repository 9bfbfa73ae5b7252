// `eigentrace report`: run folders → one HTML page, and a summary table on standard output.
#include <fmt/format.h>

#include <cmath>
#include <filesystem>

#include "spectral/files.h"
#include "tensor/error.h"
#include "tensor/io/file.h"
#include "tensor/io/json_writer.h"
#include "tools/commands.h"
#include "tools/report/html.h"
#include "tools/run_folder.h"

namespace eigentrace {
namespace {

constexpr int64_t sample_per_head = 600;  // eigenvalues a picture shows of a head

struct RunSummary {
  RunInfo info;
  double best_accuracy = not_recorded, final_loss = not_recorded, final_accuracy = not_recorded;
  /// Mean |λ| over all layers and heads, before and after training.
  double initial_radius = not_recorded, trained_radius = not_recorded;
};

BinReport bins(const Shares& shares, std::span<const double> edges) {
  return {{edges.begin(), edges.end()}, shares.mean, shares.std};
}

SpectrumReport spectrum_report(const std::string& stage, const LayerSpectrum& spectrum, int head,
                               const SpectrumStatistics& s, const SpectrumSample& sample) {
  SpectrumReport report;
  report.stage = stage;
  report.layer = static_cast<int>(spectrum.layer);
  report.head = head;
  report.time_varying = spectrum.time_dependent();
  for (size_t i = 0; i < sample.log_abs.size(); ++i)
    if (head < 0 || sample.head[i] == head)
      report.eigenvalues.push_back({sample.log_abs[i], sample.arg.empty() ? 0 : sample.arg[i],
                                    sample.step[i] < 0 ? 0 : sample.step[i]});
  report.radius = bins(s.radius_percent, radius_edges);
  report.phase = bins(s.phase_percent, phase_edges_degrees);
  report.statistics = {{"mean |λ|", s.radius.mean},
                       {"std |λ|", s.radius.std},
                       {"median |λ|", s.radius.quantiles[3]},
                       {"mean log|λ|", s.log_radius.mean},
                       {"expanding share", s.expanding_share},
                       {"spectral radius", s.spectral_radius},
                       {"steps to ½ (median)", s.half_horizon.quantiles[3]},
                       {"steps to 1/e (median)", s.e_horizon.quantiles[3]}};
  if (!s.time_varying) report.statistics.push_back({"time constant (median)", s.time_constant.quantiles[3]});
  return report;
}

/// Adds the spectra of one stage; returns the mean |λ| over layers (NaN: not read).
double add_spectra(const RunFolder& folder, const std::string& stage, RunReport& run) {
  const std::string file = folder.spectrum(stage) + ".npz";
  if (!std::filesystem::exists(file)) return not_recorded;
  double sum = 0, layers = 0;
  for (const LayerSpectrum& spectrum : read_spectra(file)) {
    if (spectrum.reading != "exact") continue;
    const LayerStatistics statistics = layer_statistics(spectrum);
    const int64_t heads = spectrum.heads();
    const SpectrumSample sample = sample_spectrum(spectrum, sample_per_head * std::max<int64_t>(heads, 1));
    if (heads == 0)
      run.spectra.push_back(spectrum_report(stage, spectrum, -1, statistics.all, sample));
    else
      for (int64_t h = 0; h < heads; ++h)
        run.spectra.push_back(spectrum_report(stage, spectrum, static_cast<int>(h),
                                              statistics.heads[static_cast<size_t>(h)], sample));
    sum += statistics.all.radius.mean, layers += 1;
  }
  return sum / layers;
}

std::string cell(double value, int digits = 4) {
  return std::isfinite(value) ? fmt::format("{:.{}f}", value, digits) : "–";
}

RunReport read_run(const std::string& path, RunSummary& summary) {
  const RunFolder folder = RunFolder::open(path);
  RunReport run;
  summary.info = folder.read_info();
  run.name = summary.info.name;
  run.config = read_file(folder.config());
  for (const MetricsRow& row : folder.read_metrics()) {
    if (run.metrics.empty() || run.metrics.back().step != row.step) run.metrics.push_back({.step = row.step});
    MetricRow& at = run.metrics.back();
    if (row.split == "train") {
      at.train_loss = row.loss, at.train_accuracy = row.accuracy, at.steps_per_second = row.steps_per_second;
    } else {
      at.eval_loss = summary.final_loss = row.loss;
      at.eval_accuracy = summary.final_accuracy = row.accuracy;
      summary.best_accuracy = std::fmax(summary.best_accuracy, row.accuracy);
    }
  }
  summary.initial_radius = add_spectra(folder, "initial", run);
  summary.trained_radius = add_spectra(folder, "trained", run);
  run.headline = {{"mixer", summary.info.family},
                  {"parameters", fmt::format("{}", summary.info.parameters)},
                  {"steps", fmt::format("{}", summary.info.step)},
                  {"accuracy", cell(summary.final_accuracy)},
                  {"best", cell(summary.best_accuracy)},
                  {"loss", cell(summary.final_loss)},
                  {"mean |λ| initial", cell(summary.initial_radius)},
                  {"mean |λ| trained", cell(summary.trained_radius)},
                  {"time", fmt::format("{:.0f} s", summary.info.wall_seconds)},
                  {"state", summary.info.state}};
  return run;
}

void print_table(const std::vector<RunSummary>& runs) {
  fmt::print("{:<16} {:<15} {:>10} {:>7} {:>9} {:>9} {:>9} {:>12} {:>12} {:>7}\n", "run", "mixer", "parameters", "steps",
             "accuracy", "best", "loss", "|λ| initial", "|λ| trained", "s");
  for (const RunSummary& run : runs)
    fmt::print("{:<16} {:<15} {:>10} {:>7} {:>9} {:>9} {:>9} {:>12} {:>12} {:>7.0f}\n", run.info.name, run.info.family,
               run.info.parameters, run.info.step, cell(run.final_accuracy), cell(run.best_accuracy),
               cell(run.final_loss), cell(run.initial_radius), cell(run.trained_radius), run.info.wall_seconds);
}

void print_json(const std::vector<RunSummary>& runs, const std::string& out) {
  JsonWriter json(JsonWriter::Style::pretty);
  json.begin_object().field("report", out).key("runs").begin_array();
  for (const RunSummary& run : runs) {
    json.begin_object().field("name", run.info.name).field("mixer", run.info.family);
    json.field("parameters", run.info.parameters).field("steps", run.info.step).field("state", run.info.state);
    json.field("accuracy", run.final_accuracy).field("best_accuracy", run.best_accuracy);
    json.field("loss", run.final_loss).field("wall_seconds", run.info.wall_seconds);
    json.field("mean_radius_initial", run.initial_radius).field("mean_radius_trained", run.trained_radius);
    json.end_object();
  }
  json.end_array().end_object();
  fmt::print("{}\n", json.text());
}

}  // namespace

int report_command(const ReportOptions& options) {
  Report report;
  std::vector<RunSummary> summaries;
  for (const std::string& path : options.runs) report.runs.push_back(read_run(path, summaries.emplace_back()));
  const RunInfo& first = summaries.front().info;
  report.subtitle = fmt::format("{} · seed {} · {} · eigentrace {} ({})", first.task, first.seed, first.device,
                                first.version, first.commit);
  write_report(options.out, report);
  if (!options.figures.empty()) {
    ensure_directory(options.figures);
    const size_t figures = write_figures(options.figures, report);
    fmt::print(stderr, "{} figures as .svg and .csv in {}\n", figures, options.figures);
  }
  options.json ? print_json(summaries, options.out) : print_table(summaries);
  fmt::print(stderr, "report: {}\n", options.out);
  return 0;
}

}  // namespace eigentrace
