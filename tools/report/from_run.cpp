#include "tools/report/from_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>

#include "spectral/files.h"
#include "tensor/io/file.h"
#include "tools/intervene.h"
#include "tools/report/svg.h"

namespace eigentrace {
namespace {

constexpr int64_t sample_size = 400;  // a head

std::string with_separators(int64_t number) {
  std::string text = std::to_string(number);
  for (int64_t at = int64_t(text.size()) - 3; at > 0; at -= 3) text.insert(size_t(at), 1, ',');
  return text;
}

std::string duration(double seconds) {
  if (!(seconds >= 0)) return "–";
  if (seconds < 60) return fmt::format("{:.1f} s", seconds);
  const int64_t whole = std::llround(seconds);
  if (whole < 3600) return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  return fmt::format("{} h {:02} min", whole / 3600, whole / 60 % 60);
}

BinReport bins_of(const Shares& shares, std::vector<double> edges) {
  // The published phases have one bin more, beyond 180°, which nothing can fall into.
  edges.resize(std::min(edges.size(), shares.mean.size() + 1));
  BinReport bins{std::move(edges), shares.mean, shares.std};
  bins.mean.resize(bins.edges.size() - 1);
  bins.std.resize(std::min(bins.std.size(), bins.mean.size()));
  return bins;
}

SpectrumReport report_of(const LayerSpectrum& spectrum, const SpectrumStatistics& statistics, int head) {
  SpectrumReport out;
  out.layer = int(spectrum.layer);
  out.head = head;
  out.reading = spectrum.reading;
  out.time_varying = spectrum.time_dependent();
  out.radius = bins_of(statistics.radius_percent, {radius_edges.begin(), radius_edges.end()});
  out.phase = bins_of(statistics.phase_percent, {phase_edges_degrees.begin(), phase_edges_degrees.end()});
  const auto& quantiles = statistics.radius.quantiles;  // 1, 5, 25, 50, 75, 95, 99 %
  out.statistics = {{"mean |λ|", statistics.radius.mean},
                    {"std", statistics.radius.std},
                    {"5 %", quantiles[1]},
                    {"median", quantiles[3]},
                    {"95 %", quantiles[5]},
                    {"max |λ|", statistics.spectral_radius},
                    {"% > 1", 100 * statistics.expanding_share},
                    {"% = 1", 100 * statistics.unit_share}};
  out.statistics.emplace_back("steps to 1/2", statistics.half_horizon.quantiles[3]);
  out.statistics.emplace_back("steps to 1/e", statistics.e_horizon.quantiles[3]);
  return out;
}

/// The stage of spectrum_STAGE.npz; "" for any other file.
std::string stage_of(const std::string& file_name) {
  const std::string before = "spectrum_", after = ".npz";
  if (file_name.size() <= before.size() + after.size() || !file_name.starts_with(before) ||
      !file_name.ends_with(after))
    return "";
  return file_name.substr(before.size(), file_name.size() - before.size() - after.size());
}

InterventionReport intervention_report(const InterventionTable& table) {
  InterventionReport out;
  out.about =
      fmt::format("Weights: {}, step {}. Examples: {}{}.", table.stage, with_separators(table.step),
                  table.examples > 0 ? with_separators(table.examples) + " of " : "all of ", table.split);
  const auto accuracy = [](const Evaluation& e) { return e.score(); };
  for (const InterventionResult& row : table.rows) {
    const Evaluation &now = row.evaluation, &before = table.rows.front().evaluation;
    out.rows.push_back({row.change, row.path, now.loss, accuracy(now), now.loss - before.loss,
                        accuracy(now) - accuracy(before)});
  }
  return out;
}

}  // namespace

std::vector<CorrelationReport> correlation_reports(const CorrelationTable& table) {
  std::vector<CorrelationReport> out;
  for (const StatisticCorrelation& row : table.correlations) {
    if (!std::isfinite(row.correlation.rho) || !std::isfinite(row.correlation.p_value)) continue;
    CorrelationReport c;
    c.stage = row.stage, c.statistic = row.statistic, c.figure = table.request.figure;
    c.layer = int(row.layer), c.n = row.correlation.n, c.rho = row.correlation.rho;
    c.low = row.interval.low, c.high = row.interval.high, c.level = row.interval.level;
    c.p_value = row.correlation.p_value, c.q_value = row.q_value;
    for (size_t r = 0; r < table.runs.size() && r < row.values.size(); r++) {
      const CorrelatedRun& run = table.runs[r];
      const std::string& group =
          size_t(run.group) < table.groups.size() ? table.groups[size_t(run.group)].label : run.family;
      if (std::isfinite(row.values[r])) c.points.push_back({run.name, group, row.values[r], run.figure});
    }
    out.push_back(std::move(c));
  }
  std::stable_sort(out.begin(), out.end(), [](const CorrelationReport& a, const CorrelationReport& b) {
    return a.p_value != b.p_value ? a.p_value < b.p_value : std::abs(a.rho) > std::abs(b.rho);
  });
  return out;
}

std::vector<SpectrumReport> spectrum_reports(const LayerSpectrum& spectrum, const std::string& stage,
                                             int64_t step) {
  const LayerStatistics statistics =
      layer_statistics(spectrum, spectrum.reading == "published" ? Binning::published : Binning::exact);
  const bool by_head = spectrum.kind == SpectrumKind::time_varying && statistics.heads.size() > 0;
  const size_t heads = by_head ? statistics.heads.size() : 1;
  std::vector<SpectrumReport> reports;
  for (size_t h = 0; h < heads; h++) {
    reports.push_back(
        report_of(spectrum, by_head ? statistics.heads[h] : statistics.all, by_head ? int(h) : -1));
    reports.back().stage = stage;
    reports.back().step = step;
  }
  const SpectrumSample sample = sample_spectrum(spectrum, sample_size * int64_t(heads));
  for (size_t i = 0; i < sample.log_abs.size(); i++) {
    const size_t h = by_head ? size_t(sample.head[i]) : 0;
    reports[h].eigenvalues.push_back(
        {sample.log_abs[i], sample.arg.empty() ? 0 : sample.arg[i], std::max<int64_t>(sample.step[i], 0)});
  }
  return reports;
}

RunReport run_report(const RunFolder& folder) {
  const RunInfo info = folder.read_info();
  RunReport run;
  run.name = info.name.empty() ? std::filesystem::path(folder.path()).filename().string() : info.name;
  if (std::filesystem::exists(folder.config())) run.config = read_file(folder.config());

  std::map<int64_t, MetricRow> rows;
  std::vector<double> speeds;
  const MetricsRow* last = nullptr;
  const std::vector<MetricsRow> metrics =
      std::filesystem::exists(folder.metrics()) ? folder.read_metrics() : std::vector<MetricsRow>();
  for (const MetricsRow& from : metrics) {
    MetricRow& to = rows[from.step];
    to.step = from.step;
    if (from.split == "train") {
      to.train_loss = from.loss, to.train_accuracy = from.accuracy,
      to.steps_per_second = from.steps_per_second;
      if (from.steps_per_second > 0) speeds.push_back(from.steps_per_second);
    } else {
      // Where both were evaluated at one step, the curve shows validation, the headline the later line.
      if (std::isnan(to.eval_loss) || from.split == "validation")
        to.eval_loss = from.loss, to.eval_accuracy = from.accuracy,
        to.eval_macro_accuracy = from.macro_accuracy.value_or(not_recorded);
      last = &from;
    }
  }
  for (const auto& [step, row] : rows) run.metrics.push_back(row);
  std::sort(speeds.begin(), speeds.end());

  run.headline = {
      {"task", info.task}, {"family", info.family}, {"parameters", with_separators(info.parameters)}};
  run.headline.emplace_back("accuracy", last ? short_number(last->accuracy) : "–");
  if (last && last->macro_accuracy)
    run.headline.emplace_back("macro accuracy", short_number(*last->macro_accuracy));
  run.headline.emplace_back("loss", last ? short_number(last->loss) : "–");
  run.headline.emplace_back("steps", with_separators(info.step));
  run.headline.emplace_back("steps/s", speeds.empty() ? "–" : short_number(speeds[speeds.size() / 2]));
  run.headline.emplace_back("time", duration(info.wall_seconds));
  run.headline.emplace_back("ended", info.reason.empty() ? info.state : info.reason);

  std::map<std::string, std::string> files;  // by stage
  for (const auto& entry : std::filesystem::directory_iterator(folder.path()))
    if (const std::string stage = stage_of(entry.path().filename().string()); !stage.empty())
      files[stage] = entry.path().string();
  for (const auto& [stage, path] : files) {
    int64_t step = stage == "initial" ? 0 : stage == "trained" ? info.step : -1;
    if (stage.starts_with("step") && stage.size() > 4 && stage.size() < 20 &&
        stage.find_first_not_of("0123456789", 4) == std::string::npos)
      step = std::stoll(stage.substr(4));
    for (const LayerSpectrum& spectrum : read_spectra(path))
      for (SpectrumReport& report : spectrum_reports(spectrum, stage, step))
        run.spectra.push_back(std::move(report));
  }
  if (const std::string path = folder.path() + "/interventions.json"; std::filesystem::exists(path))
    run.interventions = intervention_report(read_interventions(path));
  return run;
}

}  // namespace eigentrace
