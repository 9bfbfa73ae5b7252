#pragma once
// The report: one HTML file that needs nothing else.
#include <string>

#include "tools/report/data.h"

namespace eigentrace {

/// Headline table over runs, curves, then each run's spectra, statistics and configuration. Valid as HTML and
/// as XML; no scripts, no references to other files; light and dark by the reader's preference. Empty parts
/// are left out.
std::string report_html(const Report& report);

/// report_html into a file, atomically.
void write_report(const std::string& path, const Report& report);

/// Every figure of the report as NAME.svg beside its numbers in NAME.csv (with a slider: a NAME-at-STEP.svg
/// for each moment). Returns how many figures.
size_t write_figures(const std::string& folder, const Report& report);

}  // namespace eigentrace
