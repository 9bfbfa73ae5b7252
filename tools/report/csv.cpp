// The numbers behind each chart.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "tools/report/charts.h"

namespace eigentrace {
namespace {

/// A field, quoted where commas, quotes or line ends would break the row.
std::string field(const std::string& text) {
  if (text.find_first_of(",\"\n\r") == std::string::npos) return text;
  std::string out = "\"";
  for (const char c : text) out += c == '"' ? "\"\"" : std::string(1, c);
  return out + '"';
}

/// Empty for NaN; enough digits to read back the same float64.
std::string number(double value) { return std::isnan(value) ? "" : fmt::format("{}", value); }

}  // namespace

std::string csv(const LineChart& chart) {
  std::string out = fmt::format("series,x,{}\n", chart.log_y ? "log10_y" : "y");
  for (const Series& s : chart.series)
    for (size_t i = 0; i < s.x.size(); i++)
      if (!std::isnan(s.y[i]))
        out += fmt::format("{},{},{}\n", field(s.name), number(s.x[i]), number(s.y[i]));
  return out;
}

std::string csv(const PlaneChart& chart) {
  std::string out = "stage,log_abs,arg,re,im,time\n";
  for (const auto& panel : chart.panels)
    for (const auto& p : panel.points)
      out += fmt::format("{},{},{},{},{},{}\n", field(panel.name), number(p.log_abs), number(p.arg),
                         number(std::exp(p.log_abs) * std::cos(p.arg)),
                         number(std::exp(p.log_abs) * std::sin(p.arg)), p.time);
  return out;
}

std::string csv(const BarChart& chart) {
  std::string out = "bin";
  for (const auto& group : chart.groups)
    out += fmt::format(",{},{}", field(group.name + " mean"), field(group.name + " std"));
  out += '\n';
  for (size_t b = 0; b < chart.bins.size(); b++) {
    out += field(chart.bins[b]);
    for (const auto& group : chart.groups)
      out += fmt::format(",{},{}", number(b < group.mean.size() ? group.mean[b] : NAN),
                         number(b < group.std.size() ? group.std[b] : NAN));
    out += '\n';
  }
  return out;
}

std::string csv(const HeatMap& chart) {
  std::string out = "row,first_step,last_step,log10_abs\n";
  for (size_t r = 0; r < chart.rows.size() && r < chart.cells.size(); r++)
    for (const auto& cell : chart.cells[r])
      out +=
          fmt::format("{},{},{},{}\n", field(chart.rows[r]), cell.first, cell.last, number(cell.log10_abs));
  return out;
}

std::string csv(const RowChart& chart) {
  const bool intervals = std::any_of(chart.rows.begin(), chart.rows.end(),
                                     [](const RowChart::Row& row) { return !std::isnan(row.low); });
  std::string out = fmt::format("row,{}{}\n", field(chart.value_name), intervals ? ",low,high" : "");
  for (const auto& row : chart.rows) {
    out += fmt::format("{},{}", field(row.name), number(row.value));
    if (intervals) out += fmt::format(",{},{}", number(row.low), number(row.high));
    out += '\n';
  }
  return out;
}

std::string csv(const ScatterChart& chart) {
  std::string out = fmt::format("run,group,{},{}\n", field(chart.x_label), field(chart.y_label));
  for (const auto& p : chart.points)
    out += fmt::format("{},{},{},{}\n", field(p.name), field(p.group), number(p.x), number(p.y));
  return out;
}

}  // namespace eigentrace
