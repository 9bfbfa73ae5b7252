#pragma once
// A small SVG canvas and the parts every chart shares: numbers as text, ticks, axes, legends.
#include <string>
#include <string_view>
#include <vector>

namespace eigentrace {

std::string xml_escaped(std::string_view text);  ///< for text and attributes; what XML forbids becomes U+FFFD
std::string short_number(double value);          ///< four significant digits; NaN "–", infinity "∞"
std::string power_text(double exponent);         ///< 10^exponent, also where a double would overflow
std::string shortened(const std::string& text, size_t most);  ///< to so many characters, the last one "…"
std::string slug(std::string_view text);                      ///< a file name: a–z, 0–9 and single dashes

/// A picture in the making. Colours come from CSS classes (report_style), so that it follows the reader's
/// theme.
class Svg {
 public:
  Svg(double width, double height) : width_(width), height_(height) {}
  double width() const { return width_; }
  double height() const { return height_; }

  void open(const std::string& classes);  ///< a group; close() ends it
  void close();
  void line(double x1, double y1, double x2, double y2, const char* classes);
  void rect(double x, double y, double w, double h, const char* classes, const std::string& hover = "",
            double opacity = 1);
  void circle(double x, double y, double r, const char* classes, const std::string& hover = "");
  void text(double x, double y, const std::string& content, const char* classes,
            const char* anchor = "start");
  void text_upwards(double x, double y, const std::string& content, const char* classes);
  /// Points joined by straight lines; NaN breaks the line.
  void polyline(const std::vector<double>& x, const std::vector<double>& y, const char* classes);
  void path(const std::string& d, const char* classes);

  std::string inlined(const std::string& title) const;   ///< for a page that has report_style()
  std::string document(const std::string& title) const;  ///< a file of its own, with its title above

 private:
  double width_, height_;
  std::string body_;
};

/// Values to pixels, linear or logarithmic (base 10; values at or below 0 land on the low end).
struct Scale {
  double low = 0, high = 1;  ///< in values; on a log scale their log10
  double from = 0, to = 1;   ///< in pixels
  bool log = false;
  double operator()(double value) const;  ///< clamped to a little outside the range
  double at(double position) const;       ///< of low…high (log10 on a log scale), clamped alike
};

struct Tick {
  double position;  ///< in values; on a log scale log10 of them
  std::string label;
};

/// About `count` ticks at 1, 2 or 5 times a power of ten inside [low, high]; on a log scale whole powers of
/// ten.
std::vector<Tick> nice_ticks(double low, double high, int count, bool log = false);

/// Grid lines with labels left of, and below, the plot.
void draw_y_axis(Svg& svg, const Scale& y, double left, double right, const std::string& label,
                 int count = 5);
void draw_x_axis(Svg& svg, const Scale& x, double bottom, const std::string& label, int count = 5);

struct LegendItem {
  std::string name, classes;  ///< classes: of the colour, e.g. "s0"
  bool dot = false;           ///< a dot instead of a line
};
/// Rows of names at the top; returns the height they took.
double draw_legend(Svg& svg, const std::vector<LegendItem>& items, double left, double right);
double legend_height(const std::vector<LegendItem>& items, double left, double right);

}  // namespace eigentrace
