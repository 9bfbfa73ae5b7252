#pragma once
// From runs to figures: which charts a report has.
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "tools/report/data.h"
#include "tools/report/svg.h"

namespace eigentrace {

/// One moment of a figure with a slider.
struct Frame {
  std::string id, label;  ///< id: a file name without its ending; label: "step 300"
  Svg picture;
};

struct Figure {
  std::string id;     ///< a file name without its ending, unique in a report
  std::string title;  ///< above the picture
  std::string note;   ///< what there is to see, in a sentence; may be empty
  Svg picture;
  std::string csv;
  std::vector<Frame> frames = {};  ///< shown one at a time in place of the picture, which is the last of them
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

/// Bins of the exact and of the published reading side by side, by layer and head; empty where there is one
/// reading.
std::vector<Figure> reading_figures(const RunReport& run, const std::string& prefix);

/// What interventions change: accuracy and loss against the run as it was trained.
std::vector<Figure> intervention_figures(const RunReport& run, const std::string& prefix);

/// Spearman's rho of the first `rows` correlations with intervals, then one chart of points for each of the
/// first `scatters` statistics.
std::vector<Figure> correlation_figures(const Report& report, size_t rows = 12, size_t scatters = 6);

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
