#pragma once
// The look of charts and of the page around them: light and dark, screen and paper.
#include <string>

namespace eigentrace {

/// Colours as CSS variables and the classes that charts use; enough for an SVG file of its own.
std::string chart_style();
/// chart_style and everything else the HTML page needs.
std::string page_style();

inline constexpr int series_colours = 8;  ///< classes s0 … s7

}  // namespace eigentrace
