// Spectra as text for the terminal.
#include <fmt/format.h>

#include <cmath>

#include "tools/spectrum.h"

namespace eigentrace {

namespace {

constexpr size_t median = 3;  // of quantile_levels

/// Calls visit(head or −1, statistics) for each head of a layer, or once for a layer without heads.
template <class Visit>
void for_each_part(const LayerRecord& layer, const Visit& visit) {
  if (layer.statistics.heads.empty()) return visit(int64_t(-1), layer.statistics.all);
  for (size_t h = 0; h < layer.statistics.heads.size(); ++h) visit(int64_t(h), layer.statistics.heads[h]);
}

std::string number(double value) {
  if (std::isnan(value)) return "–";
  if (std::isinf(value)) return value > 0 ? "∞" : "−∞";
  return fmt::format("{:.4g}", value);
}

/// "[0.1,0.5)"; the published bins are closed at both ends.
std::vector<std::string> bin_titles(bool closed) {
  std::vector<std::string> titles;
  for (size_t k = 0; k + 1 < radius_edges.size(); ++k) {
    const bool last = k + 2 == radius_edges.size();
    titles.push_back(
        last ? fmt::format("≥{:g}", radius_edges[k])
             : fmt::format("{:g}–{:g}{}", radius_edges[k], radius_edges[k + 1], closed ? "]" : ""));
  }
  return titles;
}

/// Pads by what is seen: a byte count would misalign names with ≥ or –.
std::string padded(const std::string& text, size_t width) {
  size_t seen = 0;
  for (const char c : text) seen += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return std::string(seen < width ? width - seen : 0, ' ') + text;
}

std::string percent_line(const std::vector<double>& mean, const std::vector<double>* std) {
  std::string line;
  for (size_t k = 0; k < mean.size(); ++k)
    line += padded(
        std != nullptr ? fmt::format("{:.1f}±{:.1f}", mean[k], (*std)[k]) : fmt::format("{:.1f}", mean[k]),
        std != nullptr ? 12 : 9);
  return line;
}

std::string titles_line(bool closed, size_t width) {
  std::string line;
  for (const std::string& title : bin_titles(closed)) line += padded(title, width);
  return line;
}

}  // namespace

std::string spectrum_table(const SpectrumRecord& record) {
  const bool closed = !record.layers.empty() && record.layers[0].statistics.all.binning == Binning::published;
  std::string text = fmt::format("{:>5} {:>4}{}{}{}{}\n", "layer", "head", titles_line(closed, 12),
                                 padded("median |λ|", 12), padded("|λ|>1 %", 9), padded("half-life", 11));
  for (const LayerRecord& layer : record.layers)
    for_each_part(layer, [&](int64_t head, const SpectrumStatistics& s) {
      text += fmt::format("{:>5} {:>4}{}{}{}{}\n", layer.spectrum.layer, head < 0 ? "" : std::to_string(head),
                          percent_line(s.radius_percent.mean, &s.radius_percent.std),
                          padded(number(s.radius.quantiles[median]), 12),
                          padded(fmt::format("{:.1f}", 100 * s.expanding_share), 9),
                          padded(number(s.half_horizon.quantiles[median]), 11));
    });
  return text;
}

std::string comparison_table(const SpectrumRecord& record) {
  std::string text, notes;
  for (const LayerRecord& layer : record.layers)
    if (layer.comparison && text.empty())
      text = fmt::format("{:>5} {:>10}{}{}{}{}{}\n", "layer", "reading", padded("mean |λ|", 11),
                         padded("std |λ|", 11), padded("|difference|", 14), padded("its median", 12),
                         titles_line(false, 9));
  for (const LayerRecord& layer : record.layers) {
    if (!layer.comparison) continue;
    const ReadingComparison& c = *layer.comparison;
    const auto line = [&](const char* reading, double mean, double std, const std::string& difference,
                          const std::string& middle, const std::vector<double>& percent) {
      text += fmt::format("{:>5} {:>10}{}{}{}{}{}\n", c.layer, reading, padded(number(mean), 11),
                          padded(number(std), 11), padded(difference, 14), padded(middle, 12),
                          percent_line(percent, nullptr));
    };
    line("exact", c.exact_mean, c.exact_std, "", "", c.exact_percent);
    line("published", c.published_mean, c.published_std, number(c.mean_difference),
         number(c.median_difference), c.published_percent);
    if (c.non_finite > 0)
      notes += fmt::format("layer {}: {} of {} differences left out: a λ is beyond the range of double\n",
                           c.layer, c.non_finite, c.non_finite + c.count);
  }
  if (text.empty()) return "no layer has a published reading\n";
  return text + notes;
}

std::string replay_table(const SpectrumRecord& record, double tolerance) {
  std::string text;
  for (const LayerRecord& layer : record.layers)
    if (layer.replay)
      text += fmt::format("layer {}: {}: {}\n", layer.spectrum.layer,
                          layer.replay->agrees(tolerance) ? "agrees" : "DISAGREES", layer.replay->text());
  return text;
}

}  // namespace eigentrace
