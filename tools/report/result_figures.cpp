// Figures of results: two readings compared, interventions, statistics against accuracy.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "tools/report/charts.h"
#include "tools/report/figures.h"
#include "tools/report/style.h"

namespace eigentrace {
namespace {

template <class Chart>
Figure figure_of(const std::string& id, const std::string& title, const std::string& note,
                 const Chart& chart) {
  return {id, title, note, draw(chart), csv(chart)};
}

const SpectrumReport* at_stage(const StageSpectra& spectra, const std::string& stage) {
  const auto found = spectra.find(stage);
  return found == spectra.end() ? nullptr : found->second;
}

bool has_bins(const BinReport& bins) {
  return !bins.mean.empty() && bins.edges.size() == bins.mean.size() + 1;
}

std::string with_sign(double value) { return (value > 0 ? "+" : "") + short_number(value); }

}  // namespace

std::vector<Figure> reading_figures(const RunReport& run, const std::string& prefix) {
  std::vector<Figure> figures;
  const auto heads = by_head(run);
  for (const auto& [key, published] : heads) {
    const auto& [layer, head, reading] = key;
    if (reading != "published") continue;
    const auto exact = heads.find({layer, head, ""});
    if (exact == heads.end()) continue;
    for (const char* stage : {"trained", "initial"}) {
      const SpectrumReport *a = at_stage(exact->second, stage), *b = at_stage(published, stage);
      if (!a || !b) continue;
      const std::string where = head_title(layer, head, "");
      for (const bool phase : {false, true}) {
        const BinReport &ours = phase ? a->phase : a->radius, &theirs = phase ? b->phase : b->radius;
        const bool turns = std::any_of(a->eigenvalues.begin(), a->eigenvalues.end(),
                                       [](const auto& e) { return std::abs(std::sin(e.arg)) > 1e-6; });
        if ((phase && !turns) || !has_bins(ours) || ours.mean.size() != theirs.mean.size()) continue;
        const BarChart chart{
            phase ? "|arg λ|" : "|λ|",
            "% of eigenvalues",
            bin_names(ours.edges, phase ? "°" : ""),
            {{"exact", "s2", ours.mean, ours.std}, {"published", "s1", theirs.mean, theirs.std}}};
        figures.push_back(
            figure_of(fmt::format("{}-readings-{}-{}", prefix, slug(where), phase ? "phases" : "magnitudes"),
                      fmt::format("{}, {}: {}", where, stage, phase ? "phases" : "magnitudes"), "", chart));
      }
      break;
    }
  }
  return figures;
}

std::vector<Figure> intervention_figures(const RunReport& run, const std::string& prefix) {
  const auto& rows = run.interventions.rows;
  if (rows.size() < 2) return {};
  RowChart accuracy{fmt::format("change of accuracy (as trained: {})", short_number(rows[0].accuracy)),
                    "accuracy change",
                    {}};
  RowChart loss{
      fmt::format("change of loss (as trained: {})", short_number(rows[0].loss)), "loss change", {}};
  for (size_t i = 1; i < rows.size(); i++) {
    const auto& row = rows[i];
    accuracy.rows.push_back({row.change, row.accuracy_change < 0 ? "s1" : "s0", row.accuracy_change});
    loss.rows.push_back({row.change, row.loss_change > 0 ? "s1" : "s0", row.loss_change});
  }
  return {figure_of(prefix + "-interventions-accuracy", "Accuracy with changed eigenvalues",
                    "Orange: worse than as trained.", accuracy),
          figure_of(prefix + "-interventions-loss", "Loss with changed eigenvalues",
                    "Orange: worse than as trained.", loss)};
}

std::vector<Figure> correlation_figures(const Report& report, size_t rows, size_t scatters) {
  if (report.correlations.empty()) return {};
  std::vector<Figure> figures;
  RowChart chart{"Spearman's ρ", "rho", {}, false, -1.05, 1.05};
  std::string numbers = "stage,statistic,layer,figure,n,rho,low,high,level,p_value,q_value\n";
  std::map<std::string, std::string> colours;  // by group
  const auto value = [](double v) { return std::isnan(v) ? std::string() : fmt::format("{}", v); };
  const auto place = [](const CorrelationReport& c) {
    return c.layer < 0 ? std::string("mean over layers") : fmt::format("layer {}", c.layer);
  };
  for (const CorrelationReport& c : report.correlations) {
    if (chart.rows.size() < rows)
      chart.rows.push_back({fmt::format("{}, {}, {}", c.statistic, place(c), c.stage),
                            c.rho < 0 ? "s1" : "s0", c.rho, c.low, c.high});
    std::string name = c.statistic;
    for (size_t at = 0; (at = name.find('"', at)) != std::string::npos; at += 2) name.insert(at, 1, '"');
    numbers +=
        fmt::format("{},\"{}\",{},{},{},{},{},{},{},{},{}\n", c.stage, name, c.layer, c.figure, c.n,
                    value(c.rho), value(c.low), value(c.high), c.level, value(c.p_value), value(c.q_value));
    for (const auto& p : c.points)
      colours.try_emplace(p.group, fmt::format("s{}", colours.size() % series_colours));
  }
  const CorrelationReport& first = report.correlations.front();
  figures.push_back({"correlations", fmt::format("Statistics against {}", first.figure),
                     fmt::format("Rank correlation over {} runs; lines are {} % intervals, runs resampled.",
                                 first.n, short_number(100 * first.level)),
                     draw(chart), numbers});
  std::set<std::string> shown;  // of one statistic its most telling stage and layer
  for (const CorrelationReport& c : report.correlations) {
    if (shown.size() >= scatters) break;
    if (!shown.insert(c.statistic).second) continue;
    ScatterChart points{c.statistic, c.figure, {}};
    for (const auto& p : c.points)
      points.points.push_back({p.run, p.group, colours[p.group], p.value, p.figure});
    figures.push_back(figure_of(
        fmt::format("correlation-{:02}-{}", shown.size(), slug(c.statistic)),
        fmt::format("{}, {}, {}", c.statistic, place(c), c.stage),
        fmt::format("ρ = {} [{}, {}], p = {}, q = {}, n = {}.", with_sign(c.rho), short_number(c.low),
                    short_number(c.high), short_number(c.p_value), short_number(c.q_value), c.n),
        points));
  }
  return figures;
}

}  // namespace eigentrace
