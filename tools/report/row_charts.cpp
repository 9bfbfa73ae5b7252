// Charts of results: bars and intervals a row each, and points of many runs.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "tools/report/charts.h"

namespace eigentrace {
namespace {

constexpr double left = 24, right = chart_width - 24;

/// The range of `values` with some room; [0, 1] if there is none.
std::pair<double, double> roomy(const std::vector<double>& values, double share) {
  double low = INFINITY, high = -INFINITY;
  for (const double v : values)
    if (std::isfinite(v)) low = std::min(low, v), high = std::max(high, v);
  if (!(low <= high)) return {0, 1};
  const double room = high > low ? share * (high - low) : std::max(0.05 * std::abs(high), 1e-6);
  return {low - room, high + room};
}

}  // namespace

Svg draw(const RowChart& chart) {
  const double row = 32, top = 6, bottom = top + row * double(chart.rows.size());
  Svg svg(chart_width, bottom + 40);
  std::vector<double> values{0};
  for (const auto& r : chart.rows)
    for (const double v : {r.value, r.low, r.high}) values.push_back(v);
  auto [low, high] = roomy(values, 0.03);
  if (std::isfinite(chart.low)) low = chart.low;
  if (std::isfinite(chart.high)) high = chart.high;
  const Scale x{low, high, left, right};
  for (size_t i = 0; i < chart.rows.size(); i++) {
    const auto& r = chart.rows[i];
    const double y = top + row * double(i), middle = y + 22;
    for (const Tick& tick : nice_ticks(low, high, 5))  // beside the marks only: names stay free of lines
      svg.line(x.at(tick.position), y + 15, x.at(tick.position), y + row - 3, "grid");
    if (low <= 0 && high >= 0) svg.line(x.at(0), y + 15, x.at(0), y + row - 3, "reference");
    svg.open(r.classes);
    svg.text(left, y + 12, shortened(r.name, 52), "tick");
    svg.text(right, y + 12, short_number(r.value), "tick", "end");
    const bool interval = std::isfinite(r.low) && std::isfinite(r.high);
    std::string hover = fmt::format("{}\n{} {}", r.name, chart.value_name, short_number(r.value));
    if (interval) hover += fmt::format(" [{}, {}]", short_number(r.low), short_number(r.high));
    if (interval) svg.line(x.at(r.low), middle, x.at(r.high), middle, "curve");
    if (std::isfinite(r.value)) {
      if (chart.bars)
        svg.rect(std::min(x.at(0), x.at(r.value)), middle - 5, std::abs(x.at(r.value) - x.at(0)), 10, "bar",
                 hover);
      else
        svg.circle(x.at(r.value), middle, 4, "mark", hover);
    }
    svg.close();
  }
  draw_x_axis(svg, x, bottom, chart.x_label);
  return svg;
}

Svg draw(const ScatterChart& chart) {
  const double from = 60;
  std::vector<LegendItem> legend;
  std::vector<double> xs, ys;
  for (const auto& p : chart.points) {
    xs.push_back(p.x), ys.push_back(p.y);
    if (std::none_of(legend.begin(), legend.end(), [&](const auto& item) { return item.name == p.group; }))
      legend.push_back({p.group, p.classes, true});
  }
  const double top = legend_height(legend, from, right) + 10, bottom = top + 180;
  Svg svg(chart_width, bottom + 40);
  draw_legend(svg, legend, from, right);
  const auto [x_low, x_high] = roomy(xs, 0.06);
  const auto [y_low, y_high] = roomy(ys, 0.08);
  const Scale x{x_low, x_high, from, right}, y{y_low, y_high, bottom, top};
  draw_y_axis(svg, y, from, right, chart.y_label);
  draw_x_axis(svg, x, bottom, chart.x_label, 4);
  for (const auto& p : chart.points) {
    if (!std::isfinite(p.x) || !std::isfinite(p.y)) continue;
    svg.open(p.classes);
    svg.circle(x.at(p.x), y.at(p.y), 4, "mark",
               fmt::format("{}\n{} {}\n{} {}", p.name, chart.x_label, short_number(p.x), chart.y_label,
                           short_number(p.y)));
    svg.close();
  }
  return svg;
}

}  // namespace eigentrace
