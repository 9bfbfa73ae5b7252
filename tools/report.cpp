// `eigentrace report`: run folders → one HTML page, and a summary table on standard output.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "tensor/io/file.h"
#include "tensor/io/json_writer.h"
#include "tools/commands.h"
#include "tools/report/from_run.h"
#include "tools/report/html.h"
#include "tools/run_folder.h"

namespace eigentrace {
namespace {

/// A row of the table on standard output.
struct RunSummary {
  RunInfo info;
  double best_accuracy = not_recorded, final_loss = not_recorded, final_accuracy = not_recorded;
  double initial_radius = not_recorded, trained_radius = not_recorded;  ///< median |λ|, mean over heads
};

/// Mean over layers and heads of a stage's median |λ| (a mean of |λ| is ruled by a few huge steps); NaN: not
/// read.
double median_radius(const RunReport& run, const std::string& stage) {
  double sum = 0, count = 0;
  for (const SpectrumReport& spectrum : run.spectra)
    for (const auto& [name, value] : spectrum.statistics)
      if (spectrum.stage == stage && spectrum.reading == "exact" && name == "median")
        sum += value, count += 1;
  return sum / count;
}

RunSummary summarise(const RunFolder& folder, const RunReport& run) {
  RunSummary summary;
  summary.info = folder.read_info();
  for (const MetricRow& row : run.metrics) {
    if (std::isnan(row.eval_accuracy)) continue;
    summary.final_loss = row.eval_loss, summary.final_accuracy = row.eval_accuracy;
    summary.best_accuracy = std::fmax(summary.best_accuracy, row.eval_accuracy);
  }
  summary.initial_radius = median_radius(run, "initial");
  summary.trained_radius = median_radius(run, "trained");
  return summary;
}

std::string cell(double value) { return std::isfinite(value) ? fmt::format("{:.4f}", value) : "–"; }

void print_table(const std::vector<RunSummary>& runs) {
  fmt::print("{:<16} {:<15} {:>10} {:>7} {:>9} {:>9} {:>9} {:>12} {:>12} {:>7}\n", "run", "mixer",
             "parameters", "steps", "accuracy", "best", "loss", "median |λ|", "trained", "s");
  for (const RunSummary& run : runs)
    fmt::print("{:<16} {:<15} {:>10} {:>7} {:>9} {:>9} {:>9} {:>12} {:>12} {:>7.0f}\n", run.info.name,
               run.info.family, run.info.parameters, run.info.step, cell(run.final_accuracy),
               cell(run.best_accuracy), cell(run.final_loss), cell(run.initial_radius),
               cell(run.trained_radius), run.info.wall_seconds);
}

void print_json(const std::vector<RunSummary>& runs, const std::string& out) {
  JsonWriter json(JsonWriter::Style::pretty);
  json.begin_object().field("report", out).key("runs").begin_array();
  for (const RunSummary& run : runs) {
    json.begin_object().field("name", run.info.name).field("mixer", run.info.family);
    json.field("parameters", run.info.parameters)
        .field("steps", run.info.step)
        .field("state", run.info.state);
    json.field("accuracy", run.final_accuracy).field("best_accuracy", run.best_accuracy);
    json.field("loss", run.final_loss).field("wall_seconds", run.info.wall_seconds);
    json.field("median_radius_initial", run.initial_radius)
        .field("median_radius_trained", run.trained_radius);
    json.end_object();
  }
  json.end_array().end_object();
  fmt::print("{}\n", json.text());
}

/// The runs that have both an evaluation and a trained spectrum.
std::vector<RunFolder> comparable(const std::vector<std::string>& paths, const Report& report) {
  std::vector<RunFolder> folders;
  for (size_t r = 0; r < paths.size(); r++) {
    const RunReport& run = report.runs[r];
    const bool evaluated = std::any_of(run.metrics.begin(), run.metrics.end(),
                                       [](const MetricRow& row) { return std::isfinite(row.eval_accuracy); });
    const bool read = std::any_of(run.spectra.begin(), run.spectra.end(),
                                  [](const SpectrumReport& s) { return s.stage == "trained"; });
    if (evaluated && read) folders.push_back(RunFolder::open(paths[r]));
  }
  return folders;
}

}  // namespace

int report_command(const ReportOptions& options) {
  Report report;
  std::vector<RunSummary> summaries;
  for (const std::string& path : options.runs) {
    const RunFolder folder = RunFolder::open(path);
    report.runs.push_back(run_report(folder));
    summaries.push_back(summarise(folder, report.runs.back()));
  }
  const RunInfo& first = summaries.front().info;
  report.subtitle = fmt::format("{} · seed {} · {} · eigentrace {} ({})", first.task, first.seed,
                                first.device, first.version, first.commit);
  if (!options.correlations.empty())
    report.correlations = correlation_reports(read_correlations(options.correlations));
  else if (std::vector<RunFolder> folders; (folders = comparable(options.runs, report)).size() >= 3)
    report.correlations = correlation_reports(correlate_runs(folders, {}));
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
