#include "tools/report/figures.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numbers>
#include <tuple>

#include "tools/report/charts.h"
#include "tools/report/style.h"

namespace eigentrace {
namespace {

const char* const stages[] = {"initial", "trained"};  // their names are also the CSS classes of their colours

double log10_abs(const EigenvalueSample& sample) { return sample.log_abs / std::numbers::ln10; }

template <class Chart>
Figure figure_of(const std::string& id, const std::string& title, const std::string& note,
                 const Chart& chart) {
  return {id, title, note, draw(chart), csv(chart)};
}

bool is_complex(const SpectrumReport& spectrum) {
  return std::any_of(spectrum.eigenvalues.begin(), spectrum.eigenvalues.end(),
                     [](const EigenvalueSample& s) { return std::abs(std::sin(s.arg)) > 1e-6; });
}

/// Real and moving in time: shown over time. Everything else is shown in the complex plane.
bool shown_over_time(const StageSpectra& spectra) {
  return std::all_of(spectra.begin(), spectra.end(), [](const auto& entry) {
    return entry.second->time_varying && !is_complex(*entry.second);
  });
}

/// What is drawn of a sample: evenly spread over it, so that large samples make no large pages.
std::vector<EigenvalueSample> drawn(const std::vector<EigenvalueSample>& sample, size_t most) {
  if (sample.size() <= most) return sample;
  std::vector<EigenvalueSample> out;
  for (size_t i = 0; i < most; i++) out.push_back(sample[i * sample.size() / most]);
  return out;
}

/// A linear axis shows a factor of twenty well; beyond, powers of ten do. low, high: log10.
bool wants_powers(double low, double high) { return high - low > 1.3; }

double median(std::vector<double>& values) {
  const auto middle = values.begin() + std::ptrdiff_t(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// log10|λ| in at most `most` windows of equal length over the time steps first…last; windows without a
/// sample are left out.
std::vector<HeatMap::Cell> over_time(const SpectrumReport& spectrum, int64_t first, int64_t last,
                                     int64_t most) {
  const int64_t width = std::max<int64_t>(1, (last - first + most) / most);
  std::map<int64_t, std::vector<double>> windows;
  for (const EigenvalueSample& s : spectrum.eigenvalues)
    if (!std::isnan(s.log_abs)) windows[(s.time - first) / width].push_back(log10_abs(s));
  std::vector<HeatMap::Cell> cells;
  for (auto& [window, values] : windows)
    cells.push_back(
        {first + window * width, std::min(last, first + (window + 1) * width - 1), median(values)});
  return cells;
}

std::pair<int64_t, int64_t> time_range(const std::vector<const SpectrumReport*>& spectra) {
  int64_t first = INT64_MAX, last = INT64_MIN;
  for (const SpectrumReport* spectrum : spectra)
    for (const EigenvalueSample& s : spectrum->eigenvalues)
      first = std::min(first, s.time), last = std::max(last, s.time);
  return first <= last ? std::pair(first, last) : std::pair<int64_t, int64_t>(0, 0);
}

/// Axes that several charts over time share.
struct TimeAxes {
  double low = 0, high = 0;  ///< log10
  bool log_y = false;
  int64_t first = 0, last = 0;
  double value(double log10_value) const { return log_y ? log10_value : std::pow(10.0, log10_value); }
};

TimeAxes time_axes(const std::vector<const SpectrumReport*>& all) {
  std::vector<double> logs;
  for (const SpectrumReport* spectrum : all)
    for (const EigenvalueSample& s : spectrum->eigenvalues)
      if (std::isfinite(s.log_abs)) logs.push_back(log10_abs(s));
  std::sort(logs.begin(), logs.end());
  const size_t cut =
      logs.size() / 100;  // a few extremes must not flatten the rest: they are drawn at the edge
  TimeAxes axes;
  if (!logs.empty())
    axes.low = std::min(0.0, logs[cut]), axes.high = std::max(0.0, logs[logs.size() - 1 - cut]);
  axes.log_y = wants_powers(axes.low, axes.high);
  std::tie(axes.first, axes.last) = time_range(all);
  return axes;
}

LineChart time_chart(const SpectrumReport& spectrum, const TimeAxes& axes, const char* classes, size_t most) {
  LineChart chart{"time step i", "|λᵢ|", "|λ|", {}, axes.log_y, 0, axes.value(axes.high) * 1.06,
                  axes.value(0)};
  if (axes.log_y) {
    const double room = 0.04 * (axes.high - axes.low);
    chart.low = axes.low - room, chart.high = axes.high + room;
  }
  Series dots{"sample", classes, Series::Kind::dots, {}, {}, false},
      line{"median", classes, Series::Kind::curve, {}, {}, false};
  for (const EigenvalueSample& s : drawn(spectrum.eigenvalues, most)) {
    dots.x.push_back(double(s.time));
    dots.y.push_back(axes.value(log10_abs(s)));
  }
  for (const HeatMap::Cell& cell : over_time(spectrum, axes.first, axes.last, 24)) {
    line.x.push_back(0.5 * double(cell.first + cell.last));
    line.y.push_back(axes.value(cell.log10_abs));
  }
  chart.series = {dots, line};
  chart.first_x = double(axes.first), chart.last_x = double(axes.last);
  return chart;
}

/// One chart a stage, all with the same axes.
void add_time_figures(std::vector<Figure>& figures, const StageSpectra& spectra, const std::string& id) {
  std::vector<const SpectrumReport*> all;
  for (const char* stage : stages)
    if (spectra.count(stage)) all.push_back(spectra.at(stage));
  const TimeAxes axes = time_axes(all);
  for (const char* stage : stages)
    if (spectra.count(stage))
      figures.push_back(figure_of(fmt::format("{}-over-time-{}", id, stage),
                                  fmt::format("Over time, {}", stage), "",
                                  time_chart(*spectra.at(stage), axes, stage, 240)));
}

/// The spectrum at every moment of training (at most 24 of them), one picture each with the same axes; not
/// for fewer than three.
void add_frames(std::vector<Figure>& figures, const StageSpectra& spectra, const std::string& id,
                bool over_time) {
  constexpr size_t most_frames = 24, most_dots = 160;
  std::map<int64_t, const SpectrumReport*> by_step;
  for (const auto& [stage, spectrum] : spectra)  // "trained" comes last and replaces the same step's reading
    if (spectrum->step >= 0 && !spectrum->eigenvalues.empty()) by_step[spectrum->step] = spectrum;
  if (by_step.size() < 3) return;
  std::vector<const SpectrumReport*> moments;
  for (const auto& [step, spectrum] : by_step) moments.push_back(spectrum);
  if (moments.size() > most_frames) {
    std::vector<const SpectrumReport*> kept;
    for (size_t k = 0; k < most_frames; k++)
      kept.push_back(moments[k * (moments.size() - 1) / (most_frames - 1)]);
    moments = kept;
  }
  const TimeAxes axes = time_axes(moments);
  std::vector<double> radii;
  for (const SpectrumReport* spectrum : moments)
    for (const EigenvalueSample& s : spectrum->eigenvalues)
      if (std::isfinite(s.log_abs)) radii.push_back(std::exp(std::min(s.log_abs, 700.0)));
  std::sort(radii.begin(), radii.end());
  const double reach = radii.empty() ? 1.15 : std::max(1.15, 1.06 * radii[(radii.size() - 1) * 199 / 200]);
  std::vector<Frame> frames;
  std::string numbers;
  for (const SpectrumReport* spectrum : moments) {
    const char* classes = spectrum->stage == "initial" ? "initial" : "trained";
    const std::string label = fmt::format("step {}", spectrum->step);
    const auto add = [&](const auto& chart) {
      frames.push_back({fmt::format("{}-at-{}", id, spectrum->step), label, draw(chart)});
    };
    if (over_time)
      add(time_chart(*spectrum, axes, classes, most_dots));
    else
      add(PlaneChart{{{label, classes, drawn(spectrum->eigenvalues, most_dots)}}, reach});
    PlaneChart all{{{label, classes, spectrum->eigenvalues}}};
    const std::string table = csv(all);
    numbers += numbers.empty() ? table : table.substr(table.find('\n') + 1);
  }
  figures.push_back({id, "Spectrum along training", "Move the slider, or use the arrow keys.",
                     frames.back().picture, numbers, std::move(frames)});
}

/// Full colour at a round factor near the 95th percentile of |log10|.
double colour_limit(std::vector<double> sizes) {
  std::sort(sizes.begin(), sizes.end());
  const double wanted = sizes.empty() ? 0 : sizes[(sizes.size() - 1) * 95 / 100];
  for (const double factor : {1.01, 1.02, 1.05, 1.1, 1.2, 1.5, 2.0, 5.0, 10.0, 20.0, 50.0})
    if (std::log10(factor) >= wanted) return std::log10(factor);
  return std::ceil(wanted);
}

Figure plane_figure(const StageSpectra& spectra, const std::string& id) {
  PlaneChart chart;
  for (const char* stage : stages)
    if (spectra.count(stage))
      chart.panels.push_back({stage, stage, drawn(spectra.at(stage)->eigenvalues, 400)});
  return figure_of(id, "Complex plane", "", chart);
}

/// Quantiles of |λ| over the steps of training, if there are three moments or more.
void add_along_training(std::vector<Figure>& figures, const StageSpectra& spectra, const std::string& id) {
  std::map<int64_t, std::vector<double>> moments;  // log10|λ|, sorted
  for (const auto& [stage, spectrum] : spectra)
    for (const EigenvalueSample& s : spectrum->eigenvalues)
      if (spectrum->step >= 0 && !std::isnan(s.log_abs)) moments[spectrum->step].push_back(log10_abs(s));
  if (moments.size() < 3) return;
  struct Quantile {
    const char *name, *classes;
    double share;
  };
  const Quantile quantiles[] = {{"95 %", "s5", 0.95}, {"median", "trained", 0.5}, {"5 %", "s6", 0.05}};
  double low = 0, high = 0;
  for (auto& [step, values] : moments) {
    std::sort(values.begin(), values.end());
    if (std::isfinite(values.front())) low = std::min(low, values.front());
    if (std::isfinite(values.back())) high = std::max(high, values.back());
  }
  LineChart chart{"step", "|λ|", "|λ|", {}};
  chart.log_y = wants_powers(low, high);
  chart.reference = chart.log_y ? 0 : 1;
  for (const Quantile& q : quantiles) {
    Series series{q.name, q.classes, Series::Kind::curve, {}, {}, true};
    for (const auto& [step, values] : moments) {
      const double value = values[size_t(q.share * double(values.size() - 1) + 0.5)];
      series.x.push_back(double(step));
      series.y.push_back(chart.log_y ? value : std::pow(10.0, value));
    }
    chart.series.push_back(std::move(series));
  }
  figures.push_back(figure_of(id + "-along-training", "Along training", "Quantiles of |λ|.", chart));
}

/// Medians of at most 40 neighbours: what a noisy series does on the whole.
void smooth(Series& series) {
  const size_t width = (series.x.size() + 39) / 40;
  Series out = series;
  out.x.clear(), out.y.clear();
  for (size_t i = 0; i < series.x.size(); i += width) {
    const size_t end = std::min(i + width, series.x.size());
    std::vector<double> values(series.y.begin() + std::ptrdiff_t(i), series.y.begin() + std::ptrdiff_t(end));
    out.x.push_back(series.x[end - 1]);
    out.y.push_back(median(values));
  }
  series = std::move(out);
}

/// Initial against trained; nothing if no stage has bins.
void add_bins(std::vector<Figure>& figures, const StageSpectra& spectra, const std::string& id, bool phase) {
  BarChart chart{phase ? "|arg λ|" : "|λ|", "% of eigenvalues", {}, {}};
  for (const char* stage : stages) {
    if (!spectra.count(stage)) continue;
    const BinReport& bins = phase ? spectra.at(stage)->phase : spectra.at(stage)->radius;
    if (bins.mean.empty() || bins.edges.size() != bins.mean.size() + 1) continue;
    if (chart.bins.empty()) chart.bins = bin_names(bins.edges, phase ? "°" : "");
    if (chart.bins.size() == bins.mean.size()) chart.groups.push_back({stage, stage, bins.mean, bins.std});
  }
  if (chart.groups.empty()) return;
  figures.push_back(figure_of(id, phase ? "Phases" : "Magnitudes", "", chart));
}

}  // namespace

std::string run_classes(size_t run) { return fmt::format("s{}", run % series_colours); }

std::string head_title(int layer, int head, const std::string& reading) {
  const std::string title =
      head < 0 ? fmt::format("Layer {}", layer) : fmt::format("Layer {}, head {}", layer, head);
  return reading.empty() ? title : fmt::format("{}, {} reading", title, reading);
}

std::map<HeadKey, StageSpectra> by_head(const RunReport& run) {
  std::map<HeadKey, StageSpectra> heads;
  for (const SpectrumReport& s : run.spectra)
    heads[{s.layer, s.head, s.reading == "exact" ? "" : s.reading}][s.stage] = &s;
  return heads;
}

std::string run_prefix(const Report& report, size_t run) {
  const std::string name = slug(report.runs[run].name);
  return report.runs.size() == 1 ? name : fmt::format("{:02}-{}", run, name);
}

std::vector<Figure> curve_figures(const Report& report) {
  struct Kind {
    const char *id, *title, *y_label;
    double MetricRow::*train;
    double MetricRow::*eval;
  };
  const Kind kinds[] = {
      {"loss", "Loss", "loss", &MetricRow::train_loss, &MetricRow::eval_loss},
      {"accuracy", "Accuracy", "accuracy", &MetricRow::train_accuracy, &MetricRow::eval_accuracy},
      {"macro-accuracy", "Macro accuracy", "macro accuracy", nullptr, &MetricRow::eval_macro_accuracy},
      {"speed", "Speed", "steps per second", &MetricRow::steps_per_second, nullptr}};
  std::vector<Figure> figures;
  for (const Kind& kind : kinds) {
    LineChart chart{"step", kind.y_label, kind.y_label, {}};
    bool both = false;
    double smallest = INFINITY, largest = 0;
    for (size_t r = 0; r < report.runs.size(); r++) {
      const RunReport& run = report.runs[r];
      Series train{run.name, run_classes(r), Series::Kind::faint, {}, {}, false}, eval = train;
      for (const MetricRow& row : run.metrics) {
        const auto add = [&](Series& series, double value) {
          if (!std::isfinite(value)) return;
          series.x.push_back(double(row.step));
          series.y.push_back(value);
          smallest = std::min(smallest, value), largest = std::max(largest, value);
        };
        if (kind.train) add(train, row.*kind.train);
        if (kind.eval) add(eval, row.*kind.eval);
      }
      if (!kind.eval) smooth(train);
      Series& main = eval.x.empty() ? train : eval;
      if (main.x.empty()) continue;
      both |= !train.x.empty() && !eval.x.empty();
      main.kind = Series::Kind::curve;
      main.in_legend = true;
      if (!train.x.empty() && !eval.x.empty()) {
        train.name += ", training";
        chart.series.insert(chart.series.begin(), train);  // below all bold curves
      }
      chart.series.push_back(main);
    }
    if (chart.series.empty()) continue;
    if (kind.eval == &MetricRow::eval_accuracy || !kind.train) {
      chart.low = 0, chart.high = 1;
    } else if (!kind.eval) {
      chart.low = 0;
    } else if (smallest > 0 && largest > 30 * smallest) {
      chart.log_y = true;
      for (Series& series : chart.series)
        for (double& y : series.y) y = std::log10(y);
    }
    figures.push_back(figure_of(kind.id, kind.title,
                                both ? "Bold: on held-out data. Thin: on training batches." : "", chart));
  }
  return figures;
}

std::vector<Figure> heat_figures(const RunReport& run, const std::string& prefix) {
  std::vector<const SpectrumReport*> shown;
  for (const auto& [key, spectra] : by_head(run))
    if (shown_over_time(spectra) && std::get<2>(key).empty())
      for (const char* stage : stages)
        if (spectra.count(stage) && !spectra.at(stage)->eigenvalues.empty())
          shown.push_back(spectra.at(stage));
  if (shown.size() < 2) return {};
  const auto [first, last] = time_range(shown);
  std::map<std::string, HeatMap> maps;
  std::vector<double> sizes;
  for (const SpectrumReport* spectrum : shown) {
    HeatMap& map = maps[spectrum->stage];
    map.first = first, map.last = last, map.x_label = "time step i";
    map.rows.push_back(spectrum->head < 0 ? fmt::format("layer {}", spectrum->layer)
                                          : fmt::format("L{} · H{}", spectrum->layer, spectrum->head));
    map.cells.push_back(over_time(*spectrum, first, last, 48));
    for (const auto& cell : map.cells.back())
      if (std::isfinite(cell.log10_abs)) sizes.push_back(std::abs(cell.log10_abs));
  }
  // Stages share their colours, so that they can be compared.
  std::vector<Figure> figures;
  for (const char* stage : stages) {
    if (!maps.count(stage)) continue;
    maps[stage].limit = colour_limit(sizes);
    figures.push_back(figure_of(fmt::format("{}-heat-{}", prefix, stage),
                                fmt::format("λ over time, {}", stage),
                                "Blue: forgets. Red: grows. The stronger, the more.", maps[stage]));
  }
  if (figures.size() == 2 && maps["initial"].rows == maps["trained"].rows) {
    HeatMap change = maps["trained"];
    std::vector<double> changes;
    for (size_t r = 0; r < change.rows.size(); r++)
      for (HeatMap::Cell& cell : change.cells[r]) {
        const auto& before = maps["initial"].cells[r];
        const auto same = std::find_if(before.begin(), before.end(),
                                       [&](const auto& other) { return other.first == cell.first; });
        cell.log10_abs = same == before.end() ? NAN : cell.log10_abs - same->log10_abs;
        if (std::isfinite(cell.log10_abs)) changes.push_back(std::abs(cell.log10_abs));
      }
    change.limit = colour_limit(changes);
    change.value_name = "trained / initial";
    figures.push_back(figure_of(prefix + "-heat-change", "λ over time, change",
                                "Blue: forgets more than before training. Red: less.", change));
  }
  return figures;
}

std::vector<HeadFigures> head_figures(const RunReport& run, const std::string& prefix) {
  std::vector<HeadFigures> out;
  for (const auto& [key, spectra] : by_head(run)) {
    const auto& [layer, number, reading] = key;
    HeadFigures head{layer, number, reading, head_title(layer, number, reading), {}};
    const std::string id = fmt::format("{}-{}", prefix, slug(head.title));
    const bool empty = std::all_of(spectra.begin(), spectra.end(),
                                   [](const auto& entry) { return entry.second->eigenvalues.empty(); });
    const bool over_time = shown_over_time(spectra);
    if (!empty && over_time) add_time_figures(head.figures, spectra, id);
    if (!empty && !over_time) head.figures.push_back(plane_figure(spectra, id + "-plane"));
    add_bins(head.figures, spectra, id + "-magnitudes", false);
    const bool has_phases = std::any_of(spectra.begin(), spectra.end(),
                                        [](const auto& entry) { return is_complex(*entry.second); });
    if (has_phases) add_bins(head.figures, spectra, id + "-phases", true);
    if (!empty) add_frames(head.figures, spectra, id + "-moments", over_time);
    add_along_training(head.figures, spectra, id);
    if (!head.figures.empty()) out.push_back(std::move(head));
  }
  return out;
}

}  // namespace eigentrace
