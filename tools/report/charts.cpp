#include "tools/report/charts.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

namespace eigentrace {
namespace {

constexpr double left = 56, right = chart_width - 18, below = 40;

bool finite(double value) { return std::isfinite(value); }

std::string value_text(double y, bool log) { return log ? power_text(y) : short_number(y); }

/// The range of finite values; of many, without the outermost half percent (those are drawn at the edge).
std::pair<double, double> range_of(std::vector<double> values) {
  std::erase_if(values, [](double v) { return !finite(v); });
  if (values.empty()) return {0, 1};
  std::sort(values.begin(), values.end());
  const size_t cut = values.size() / 200;
  return {values[cut], values[values.size() - 1 - cut]};
}

std::vector<LegendItem> legend_of(const LineChart& chart) {
  std::vector<LegendItem> items;
  for (const Series& s : chart.series)
    if (s.in_legend) items.push_back({s.name, s.classes, s.kind == Series::Kind::dots});
  return items;
}

/// At most `most` positions out of n, the last one included.
std::vector<size_t> thinned(size_t n, size_t most) {
  std::vector<size_t> keep;
  const size_t step = std::max<size_t>(1, (n + most - 1) / most);
  for (size_t i = 0; i < n; i += step) keep.push_back(i);
  if (n > 0 && keep.back() != n - 1) keep.push_back(n - 1);
  return keep;
}

std::string hover_of(const LineChart& chart, const Series& s, size_t i) {
  const std::string name = chart.series.size() > 1 && s.kind != Series::Kind::dots ? s.name + "\n" : "";
  return fmt::format("{}{} {}: {} {}", name, chart.x_label, short_number(s.x[i]),
                     chart.y_name.empty() ? chart.y_label : chart.y_name, value_text(s.y[i], chart.log_y));
}

}  // namespace

std::vector<std::string> bin_names(const std::vector<double>& edges, const std::string& unit) {
  std::vector<std::string> names;
  for (size_t i = 0; i + 1 < edges.size(); i++)
    names.push_back(std::isinf(edges[i + 1])
                        ? "≥ " + short_number(edges[i]) + unit
                        : short_number(edges[i]) + "–" + short_number(edges[i + 1]) + unit);
  return names;
}

// --- lines ---------------------------------------------------------------------------------------

Svg draw(const LineChart& chart) {
  std::vector<double> all, xs;
  for (const Series& s : chart.series) {
    all.insert(all.end(), s.y.begin(), s.y.end());
    xs.insert(xs.end(), s.x.begin(), s.x.end());
  }
  std::erase_if(xs, [](double v) { return !finite(v); });
  auto [low, high] = range_of(all);
  if (finite(chart.reference)) low = std::min(low, chart.reference), high = std::max(high, chart.reference);
  const double room = high > low ? 0.05 * (high - low) : std::max(0.05 * std::abs(high), 1e-6);
  low = finite(chart.low) ? chart.low : low - room;
  high = finite(chart.high) ? chart.high : high + room;
  if (!(high > low)) high = low + 1;

  const auto legend = legend_of(chart);
  const double top = legend_height(legend, left, right) + 10, bottom = top + 180;
  Svg svg(chart_width, bottom + below);
  draw_legend(svg, legend, left, right);
  double x_low = xs.empty() ? 0 : *std::min_element(xs.begin(), xs.end());
  double x_high = xs.empty() ? 1 : *std::max_element(xs.begin(), xs.end());
  if (finite(chart.first_x)) x_low = chart.first_x;
  if (finite(chart.last_x)) x_high = chart.last_x;
  if (!(x_high > x_low)) x_low -= 1, x_high += 1;
  const Scale x{x_low, x_high, left, right}, y{low, high, bottom, top, chart.log_y};
  draw_y_axis(svg, y, left, right, chart.y_label);
  draw_x_axis(svg, x, bottom, chart.x_label);
  if (finite(chart.reference))
    svg.line(left, y.at(chart.reference), right, y.at(chart.reference), "reference");
  if (all.empty()) svg.text((left + right) / 2, (top + bottom) / 2, "nothing recorded", "label", "middle");

  for (const Series& s : chart.series) {
    svg.open(s.classes);
    std::vector<double> px, py;
    std::vector<size_t> present;
    for (size_t i = 0; i < s.x.size(); i++) {
      if (!std::isnan(s.x[i]) && !std::isnan(s.y[i])) present.push_back(i);
    }
    if (s.kind == Series::Kind::dots) {
      for (const size_t i : present)
        svg.circle(x.at(s.x[i]), y.at(s.y[i]), 2.1, "dot", hover_of(chart, s, i));
    } else {
      for (const size_t k : thinned(present.size(), 600)) {
        px.push_back(x.at(s.x[present[k]]));
        py.push_back(y.at(s.y[present[k]]));
      }
      const bool faint = s.kind == Series::Kind::faint;
      if (!faint) svg.polyline(px, py, "halo");
      svg.polyline(px, py, faint ? "faint" : "curve");
      // Few points are shown as marks; many only answer to the pointer.
      const bool few = present.size() <= 40;
      if (!faint)
        for (const size_t k : thinned(present.size(), 80)) {
          const size_t i = present[k];
          svg.circle(x.at(s.x[i]), y.at(s.y[i]), few ? 2.8 : 5, few ? "mark" : "target",
                     hover_of(chart, s, i));
        }
    }
    svg.close();
  }
  return svg;
}

// --- the complex plane ---------------------------------------------------------------------------

Svg draw(const PlaneChart& chart) {
  const double gap = 14, side = (right - left + 22 - gap) / 2, first = left - 22, top = 26;
  Svg svg(chart_width, top + side + 24);
  std::vector<double> radii;
  for (const auto& panel : chart.panels)
    for (const auto& p : panel.points) radii.push_back(std::exp(std::min(p.log_abs, 700.0)));
  const double reach = finite(chart.reach) ? chart.reach
                       : radii.empty()     ? 1.15
                                           : std::max(1.15, 1.06 * range_of(radii).second);

  const double start = chart.panels.size() == 1 ? (chart_width - side) / 2 : first;
  for (size_t k = 0; k < chart.panels.size(); k++) {
    const auto& panel = chart.panels[k];
    const double x0 = start + double(k) * (side + gap), y0 = top;
    const Scale re{-reach, reach, x0, x0 + side}, im{-reach, reach, y0 + side, y0};
    svg.open(panel.classes);
    svg.circle(x0 + 5, 12, 4, "dot solid");
    svg.text(x0 + 14, 16, panel.name, "panel");
    svg.rect(x0, y0, side, side, "frame");
    svg.line(x0, im.at(0), x0 + side, im.at(0), "grid");
    svg.line(re.at(0), y0, re.at(0), y0 + side, "grid");
    for (const Tick& tick : nice_ticks(-reach, reach, 4)) {
      svg.line(re.at(tick.position), y0 + side, re.at(tick.position), y0 + side + 3, "axis");
      svg.text(re.at(tick.position), y0 + side + 15, tick.label, "tick", "middle");
      if (k == 0) svg.text(x0 - 5, im.at(tick.position) + 3.5, tick.label, "tick", "end");
    }
    svg.circle(re.at(0), im.at(0), re.at(1) - re.at(0), "unit");
    for (const auto& p : panel.points) {
      if (std::isnan(p.log_abs) || std::isnan(p.arg)) continue;
      const double radius = std::exp(std::min(p.log_abs, 700.0)), shown = std::min(radius, reach);
      const std::string hover =
          fmt::format("|λ| = {}, arg λ = {}°\nλ = {} {} {}i", power_text(p.log_abs / std::numbers::ln10),
                      short_number(p.arg * 180 / std::numbers::pi), short_number(radius * std::cos(p.arg)),
                      std::sin(p.arg) < 0 ? "−" : "+", short_number(std::abs(radius * std::sin(p.arg))));
      svg.circle(re.at(shown * std::cos(p.arg)), im.at(shown * std::sin(p.arg)), radius > reach ? 3 : 2.6,
                 radius > reach ? "beyond" : "dot", hover);
    }
    svg.close();
  }
  return svg;
}

// --- bars ----------------------------------------------------------------------------------------

Svg draw(const BarChart& chart) {
  std::vector<LegendItem> legend;
  for (const auto& group : chart.groups) legend.push_back({group.name, group.classes, true});
  const double top = legend_height(legend, left, right) + 10, bottom = top + 160;
  Svg svg(chart_width, bottom + below);
  draw_legend(svg, legend, left, right);
  const Scale y{0, 100, bottom, top};
  draw_y_axis(svg, y, left, right, chart.y_label, 4);
  const double slot = (right - left) / double(std::max<size_t>(1, chart.bins.size()));
  const double bar = 0.74 * slot / double(std::max<size_t>(1, chart.groups.size()));
  for (size_t g = 0; g < chart.groups.size(); g++) {
    const auto& group = chart.groups[g];
    svg.open(group.classes);
    for (size_t b = 0; b < chart.bins.size() && b < group.mean.size(); b++) {
      if (!finite(group.mean[b])) continue;
      const double x = left + slot * (double(b) + 0.13) + bar * double(g), mean = group.mean[b];
      const double std = b < group.std.size() && finite(group.std[b]) ? group.std[b] : 0;
      const double at = y.at(std::clamp(mean, 0.0, 100.0));
      svg.rect(x + 0.5, at, bar - 1, bottom - at, "bar",
               fmt::format("{}\n{} {}: {} ± {} %", group.name, chart.x_label, chart.bins[b],
                           short_number(mean), short_number(std)));
      if (std > 0.2)
        svg.line(x + bar / 2, y.at(std::clamp(mean - std, 0.0, 100.0)), x + bar / 2,
                 y.at(std::clamp(mean + std, 0.0, 100.0)), "whisker");
    }
    svg.close();
  }
  svg.line(left, bottom, right, bottom, "axis");
  for (size_t b = 0; b < chart.bins.size(); b++)
    svg.text(left + slot * (double(b) + 0.5), bottom + 16, chart.bins[b], "tick", "middle");
  svg.text((left + right) / 2, bottom + 32, chart.x_label, "label", "middle");
  return svg;
}

// --- heat maps -----------------------------------------------------------------------------------

Svg draw(const HeatMap& chart) {
  const double top = 8, row = std::clamp(180.0 / double(std::max<size_t>(1, chart.rows.size())), 9.0, 24.0);
  const double bottom = top + row * double(chart.rows.size()), key = bottom + 46;
  Svg svg(chart_width, key + 26);
  const double span = double(std::max<int64_t>(1, chart.last - chart.first + 1));
  const auto at = [&](double step) { return left + (right - left) * (step - double(chart.first)) / span; };
  const auto colour = [&](double log10_abs) { return log10_abs <= 0 ? "cold" : "hot"; };
  const auto strength = [&](double log10_abs) {
    return std::clamp(std::abs(log10_abs) / chart.limit, 0.0, 1.0);
  };
  for (size_t r = 0; r < chart.rows.size() && r < chart.cells.size(); r++) {
    const double y = top + row * double(r);
    svg.rect(left, y, right - left, row - 1, "none");
    for (const auto& cell : chart.cells[r]) {
      if (std::isnan(cell.log10_abs)) continue;
      svg.rect(at(double(cell.first)), y, at(double(cell.last) + 1) - at(double(cell.first)), row - 1,
               colour(cell.log10_abs),
               fmt::format("{}, steps {}–{}: {} {}", chart.rows[r], cell.first, cell.last, chart.value_name,
                           power_text(cell.log10_abs)),
               0.995 * strength(cell.log10_abs));
    }
    if (row >= 11 || r % 2 == 0) svg.text(left - 6, y + row / 2 + 3, chart.rows[r], "tick", "end");
  }
  draw_x_axis(svg,
              Scale{double(chart.first), double(chart.last), at(double(chart.first) + 0.5),
                    at(double(chart.last) + 0.5)},
              bottom, chart.x_label);

  // The key: what the colours say.
  const int steps = 40;
  const double width = 150, from = right - width;
  svg.rect(from, key, width, 9, "none");
  for (int i = 0; i < steps; i++) {
    const double v = chart.limit * (2.0 * (i + 0.5) / steps - 1);
    svg.rect(from + width * i / steps, key, width / steps, 9, colour(v), "", 0.995 * strength(v));
  }
  const bool powers = chart.limit >= 3;
  const double factor = std::pow(10.0, powers ? 0 : chart.limit);
  const std::string exponent = fmt::format("{:.0f}", chart.limit);
  svg.text(from, key + 21, powers ? "1e−" + exponent : "1/" + short_number(factor), "tick", "middle");
  svg.text(from + width / 2, key + 21, "1", "tick", "middle");
  svg.text(right, key + 21, powers ? "1e" + exponent : short_number(factor), "tick", "middle");
  svg.text(from - 22, key + 8, chart.value_name, "tick", "end");
  return svg;
}

}  // namespace eigentrace
