#pragma once
// From runs to figures: which charts a report has.
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "tools/report/data.h"
#include "tools/report/svg.h"

namespace eigentrace {

struct Figure {
  std::string id;     ///< a file name without its ending, unique in a report
  std::string title;  ///< above the picture
  std::string note;   ///< what there is to see, in a sentence; may be empty
  Svg picture;
  std::string csv;
};

/// The figures of one layer and head, or of a layer without heads.
struct HeadFigures {
  int layer, head;
  std::string reading;
  std::string title;  ///< "Layer 1, head 2"
  std::vector<Figure> figures;
};

/// Loss, accuracy and speed over steps, all runs in one chart each; without the charts nobody recorded
/// anything for.
std::vector<Figure> curve_figures(const Report& report);

/// λ over time as one heat map a stage, rows are layers and heads; empty for time-invariant or complex
/// spectra.
std::vector<Figure> heat_figures(const RunReport& run, const std::string& prefix);

/// Spectrum and bins, initial against trained, by layer and head.
std::vector<HeadFigures> head_figures(const RunReport& run, const std::string& prefix);

/// File names' common start for the run at this index: unique even if names are not.
std::string run_prefix(const Report& report, size_t run);

/// "s0" …: the colour of the run at this index.
std::string run_classes(size_t run);

/// "Layer 0, head 3"; "Layer 0" without heads; followed by the reading if it is not the exact one.
std::string head_title(int layer, int head, const std::string& reading);

/// A run's spectra by layer, head and reading, each by stage.
using HeadKey = std::tuple<int, int, std::string>;
using StageSpectra = std::map<std::string, const SpectrumReport*>;
std::map<HeadKey, StageSpectra> by_head(const RunReport& run);

}  // namespace eigentrace
