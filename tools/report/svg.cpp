#include "tools/report/svg.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "tensor/io/json_writer.h"
#include "tools/report/style.h"

namespace eigentrace {
namespace {

/// A coordinate: two decimals at most. Charts clamp what they draw, so nothing here is far off or NaN.
std::string px(double value) {
  if (!std::isfinite(value)) return "0";
  std::string text = fmt::format("{:.2f}", value);
  while (text.back() == '0') text.pop_back();
  if (text.back() == '.') text.pop_back();
  return text == "-0" ? "0" : text;
}

std::string with_minus_sign(std::string text) {
  if (!text.empty() && text[0] == '-') text.replace(0, 1, "−");
  return text;
}

/// Characters as the eye counts them, for widths.
size_t characters(std::string_view text) {
  return size_t(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

}  // namespace

std::string shortened(const std::string& text, size_t most) {
  if (characters(text) <= most) return text;
  size_t end = 0;
  for (size_t seen = 0; end < text.size(); end++)
    if ((text[end] & 0xC0) != 0x80 && ++seen == most) break;
  return text.substr(0, end) + "…";
}

std::string xml_escaped(std::string_view text) {
  std::string clean;
  std::string_view source = text;
  if (!is_utf8(text)) {  // bytes that are no character would make the whole page unreadable as XML
    for (const char c : text) {
      if (static_cast<unsigned char>(c) < 0x80)
        clean += c;
      else if (clean.size() < 3 || clean.substr(clean.size() - 3) != "\xEF\xBF\xBD")
        clean += "\xEF\xBF\xBD";
    }
    source = clean;
  }
  std::string out;
  out.reserve(source.size());
  for (const char c : source) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        if (static_cast<unsigned char>(c) >= 0x20 || c == '\n' || c == '\t')
          out += c;
        else
          out += "\xEF\xBF\xBD";
    }
  }
  return out;
}

std::string short_number(double value) {
  if (std::isnan(value)) return "–";
  if (std::isinf(value)) return value > 0 ? "∞" : "−∞";
  if (value == 0) return "0";
  const double size = std::abs(value);
  std::string text = size >= 1e6 || size < 1e-4 ? fmt::format("{:.2e}", value) : fmt::format("{:.4g}", value);
  if (size >= 1000 && size < 1e6) text = fmt::format("{:.0f}", value);
  return with_minus_sign(text);
}

std::string power_text(double exponent) {
  if (std::isnan(exponent)) return "–";
  if (std::isinf(exponent)) return exponent > 0 ? "∞" : "0";
  if (std::abs(exponent) < 300) return short_number(std::pow(10.0, exponent));
  const double whole = std::floor(exponent);
  return fmt::format("{:.2f}e{}{:.0f}", std::pow(10.0, exponent - whole), whole < 0 ? "−" : "+",
                     std::abs(whole));
}

std::string slug(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const char lower = c >= 'A' && c <= 'Z' ? char(c - 'A' + 'a') : c;
    if ((lower >= 'a' && lower <= 'z') || (lower >= '0' && lower <= '9'))
      out += lower;
    else if (!out.empty() && out.back() != '-')
      out += '-';
  }
  while (!out.empty() && out.back() == '-') out.pop_back();
  return out.empty() ? "unnamed" : out;
}

// --- the canvas ----------------------------------------------------------------------------------

void Svg::open(const std::string& classes) { body_ += fmt::format("<g class=\"{}\">", classes); }
void Svg::close() { body_ += "</g>\n"; }

void Svg::line(double x1, double y1, double x2, double y2, const char* classes) {
  body_ += fmt::format("<line class=\"{}\" x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\"/>", classes, px(x1),
                       px(y1), px(x2), px(y2));
}

void Svg::rect(double x, double y, double w, double h, const char* classes, const std::string& hover,
               double opacity) {
  body_ += fmt::format("<rect class=\"{}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"", classes, px(x),
                       px(y), px(std::max(w, 0.0)), px(std::max(h, 0.0)));
  if (opacity < 1) body_ += fmt::format(" fill-opacity=\"{}\"", px(opacity));
  body_ += hover.empty() ? "/>" : fmt::format("><title>{}</title></rect>", xml_escaped(hover));
}

void Svg::circle(double x, double y, double r, const char* classes, const std::string& hover) {
  body_ += fmt::format("<circle class=\"{}\" cx=\"{}\" cy=\"{}\" r=\"{}\"", classes, px(x), px(y), px(r));
  body_ += hover.empty() ? "/>" : fmt::format("><title>{}</title></circle>", xml_escaped(hover));
}

void Svg::text(double x, double y, const std::string& content, const char* classes, const char* anchor) {
  body_ += fmt::format("<text class=\"{}\" x=\"{}\" y=\"{}\"", classes, px(x), px(y));
  if (std::string_view(anchor) != "start") body_ += fmt::format(" text-anchor=\"{}\"", anchor);
  body_ += fmt::format(">{}</text>", xml_escaped(content));
}

void Svg::text_upwards(double x, double y, const std::string& content, const char* classes) {
  body_ += fmt::format(
      "<text class=\"{}\" transform=\"translate({} {}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
      classes, px(x), px(y), xml_escaped(content));
}

void Svg::polyline(const std::vector<double>& x, const std::vector<double>& y, const char* classes) {
  std::string d;
  bool drawing = false;
  for (size_t i = 0; i < x.size(); i++) {
    if (!std::isfinite(x[i]) || !std::isfinite(y[i])) {
      drawing = false;
      continue;
    }
    d += fmt::format("{}{} {}", drawing ? "L" : "M", px(x[i]), px(y[i]));
    drawing = true;
  }
  if (!d.empty()) path(d, classes);
}

void Svg::path(const std::string& d, const char* classes) {
  body_ += fmt::format("<path class=\"{}\" d=\"{}\"/>\n", classes, d);
}

std::string Svg::inlined(const std::string& title) const {
  return fmt::format("<svg class=\"chart\" viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">\n{}</svg>\n",
                     px(width_), px(height_), xml_escaped(title), body_);
}

std::string Svg::document(const std::string& title) const {
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"chart\" viewBox=\"0 -30 {} {}\" width=\"{}\" "
      "role=\"img\" aria-label=\"{}\">\n"
      "<style>{}</style>\n<rect class=\"paper\" x=\"0\" y=\"-30\" width=\"{}\" height=\"{}\"/>\n"
      "<text class=\"chart-title\" x=\"10\" y=\"-11\">{}</text>\n{}</svg>\n",
      px(width_), px(height_ + 30), px(1.5 * width_), xml_escaped(title), chart_style(), px(width_),
      px(height_ + 30), xml_escaped(shortened(title, 64)), body_);
}

// --- axes ----------------------------------------------------------------------------------------

double Scale::operator()(double value) const {
  if (!log) return at(value);
  return at(value > 0 ? std::log10(value) : low);
}

double Scale::at(double position) const {
  if (std::isnan(position)) return position;
  const double share = high > low ? (position - low) / (high - low) : 0.5;
  return from + std::clamp(share, -0.02, 1.02) * (to - from);
}

std::vector<Tick> nice_ticks(double low, double high, int count, bool log) {
  std::vector<Tick> ticks;
  if (!(high > low) || !std::isfinite(high - low) || count < 1) return ticks;
  if (log && high - low < 2.2) {  // fewer than two or three powers of ten: 2 and 5 between them
    for (double power = std::floor(low); power <= high; power++)
      for (const double factor : {1.0, 2.0, 5.0}) {
        const double at = power + std::log10(factor);
        if (at >= low - 1e-9 && at <= high + 1e-9) ticks.push_back({at, power_text(at)});
      }
    return ticks;
  }
  double step = (high - low) / count;
  const double power = std::pow(10.0, std::floor(std::log10(step))), lead = step / power;
  step = power * (lead < 1.42 ? 1 : lead < 3.16 ? 2 : lead < 7.07 ? 5 : 10);
  if (log) step = std::max(1.0, std::round(step));
  const int decimals = std::clamp(int(std::ceil(-std::log10(step) - 1e-9)), 0, 12);
  const double largest = std::max(std::abs(low), std::abs(high));
  for (double k = std::ceil(low / step - 1e-9); k * step <= high + 1e-9 * step && ticks.size() < 100; k++) {
    const double at = k * step == 0 ? 0 : k * step;
    std::string label;
    if (log)
      label =
          std::abs(at) <= 3 ? power_text(at) : fmt::format("1e{}", with_minus_sign(fmt::format("{:g}", at)));
    else if (at == 0)
      label = "0";
    else if (largest >= 1e6 || largest < 1e-3)
      label = fmt::format("{:.3g}", at);
    else if (largest >= 10000 && step >= 100)
      label = fmt::format("{:g}k", at / 1000);
    else
      label = fmt::format("{:.{}f}", at, decimals);
    ticks.push_back({at, with_minus_sign(label)});
  }
  return ticks;
}

void draw_y_axis(Svg& svg, const Scale& y, double left, double right, const std::string& label, int count) {
  for (const Tick& tick : nice_ticks(y.low, y.high, count, y.log)) {
    const double at = y.at(tick.position);
    svg.line(left, at, right, at, "grid");
    svg.text(left - 6, at + 3.5, tick.label, "tick", "end");
  }
  if (!label.empty()) svg.text_upwards(11, (y.from + y.to) / 2, label, "label");
}

void draw_x_axis(Svg& svg, const Scale& x, double bottom, const std::string& label, int count) {
  svg.line(x.from, bottom, x.to, bottom, "axis");
  for (const Tick& tick : nice_ticks(x.low, x.high, count, x.log)) {
    const double at = x.at(tick.position);
    svg.line(at, bottom, at, bottom + 4, "axis");
    svg.text(at, bottom + 16, tick.label, "tick", "middle");
  }
  if (!label.empty()) svg.text((x.from + x.to) / 2, bottom + 32, label, "label", "middle");
}

// --- legends -------------------------------------------------------------------------------------

namespace {

constexpr size_t most_items = 12, most_characters = 44;
constexpr double row_height = 17, swatch = 18, gap = 16, character = 6.1;

/// Calls place(item, x, row) for each item and returns the number of rows.
template <class Place>
int lay_out(const std::vector<LegendItem>& items, double left, double right, Place&& place) {
  double x = left;
  int row = 0;
  for (size_t i = 0; i < items.size() && i < most_items; i++) {
    const double width =
        swatch + 5 + character * double(std::min(characters(items[i].name), most_characters));
    if (x > left && x + width > right) {
      x = left;
      row++;
    }
    place(items[i], x, row);
    x += width + gap;
  }
  if (items.size() > most_items) {
    if (x + 100 > right) {
      x = left;
      row++;
    }
    place(LegendItem{fmt::format("and {} more", items.size() - most_items), "", false}, x, row);
  }
  return items.empty() ? 0 : row + 1;
}

}  // namespace

double legend_height(const std::vector<LegendItem>& items, double left, double right) {
  return row_height * lay_out(items, left, right, [](const LegendItem&, double, int) {});
}

double draw_legend(Svg& svg, const std::vector<LegendItem>& items, double left, double right) {
  const int rows = lay_out(items, left, right, [&](const LegendItem& item, double x, int row) {
    const double y = 9 + row_height * row;
    if (!item.classes.empty()) {
      svg.open(item.classes);
      if (item.dot)
        svg.circle(x + swatch / 2, y, 4, "dot solid");
      else
        svg.line(x, y, x + swatch, y, "curve");
      svg.close();
    }
    svg.text(item.classes.empty() ? x : x + swatch + 5, y + 3.5, shortened(item.name, most_characters),
             "tick");
  });
  return row_height * rows;
}

}  // namespace eigentrace
