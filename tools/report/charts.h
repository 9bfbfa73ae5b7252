#pragma once
// Charts as data: each struct is drawn by draw() and written as numbers by csv().
#include <limits>
#include <string>
#include <vector>

#include "tools/report/data.h"
#include "tools/report/svg.h"

namespace eigentrace {

/// Every chart is as wide as this, so that text has one size all over the report.
inline constexpr double chart_width = 420;

struct Series {
  enum class Kind { curve, faint, dots };  ///< curve: with marks that show their values on hover
  std::string name, classes;
  Kind kind = Kind::curve;
  std::vector<double> x, y;  ///< y: log10 of the values if the chart is logarithmic; NaN: no value
  bool in_legend = true;
};

/// Curves and dots over a common x.
struct LineChart {
  std::string x_label, y_label, y_name;  ///< y_name: what a hovered value is called
  std::vector<Series> series;
  bool log_y = false;
  double low = not_recorded, high = not_recorded;        ///< range of y; NaN: from the data
  double reference = not_recorded;                       ///< a dashed line at this y
  double first_x = not_recorded, last_x = not_recorded;  ///< range of x; NaN: from the data
};

/// Points in the complex plane with the unit circle, one panel a stage, all with the same scale.
struct PlaneChart {
  struct Panel {
    std::string name, classes;
    std::vector<EigenvalueSample> points;
  };
  std::vector<Panel> panels;
  double reach = not_recorded;  ///< of the axes; NaN: from the data
};

/// Groups of bars with whiskers of one standard deviation, in percent.
struct BarChart {
  struct Group {
    std::string name, classes;
    std::vector<double> mean, std;  ///< std may be empty
  };
  std::string x_label, y_label;
  std::vector<std::string> bins;
  std::vector<Group> groups;
};

/// Rows of cells over x, coloured by log10|λ|: cold below |λ| = 1, hot above.
struct HeatMap {
  struct Cell {
    int64_t first, last;  ///< the time steps it stands for
    double log10_abs;     ///< NaN: none
  };
  std::vector<std::string> rows;
  std::vector<std::vector<Cell>> cells;  ///< one list a row
  int64_t first = 0, last = 0;           ///< the time steps of the whole map
  double limit = 1;                      ///< the colours are full at |λ| = 10^±limit
  std::string x_label, value_name = "median |λ|";
};

/// Rows of one value each, their names above them: bars from 0, or dots with an interval.
struct RowChart {
  struct Row {
    std::string name, classes;
    double value = not_recorded, low = not_recorded, high = not_recorded;  ///< NaN: none
  };
  std::string x_label, value_name;
  std::vector<Row> rows;
  bool bars = true;
  double low = not_recorded, high = not_recorded;  ///< range of x; NaN: from the data
};

/// Points of several groups.
struct ScatterChart {
  struct Point {
    std::string name, group, classes;
    double x = 0, y = 0;
  };
  std::string x_label, y_label;
  std::vector<Point> points;
};

Svg draw(const LineChart& chart);
Svg draw(const PlaneChart& chart);
Svg draw(const BarChart& chart);
Svg draw(const HeatMap& chart);
Svg draw(const RowChart& chart);
Svg draw(const ScatterChart& chart);

std::string csv(const LineChart& chart);
std::string csv(const PlaneChart& chart);
std::string csv(const BarChart& chart);
std::string csv(const HeatMap& chart);
std::string csv(const RowChart& chart);
std::string csv(const ScatterChart& chart);

/// "0.1–0.5", "≥ 100": one name a bin.
std::vector<std::string> bin_names(const std::vector<double>& edges, const std::string& unit = "");

}  // namespace eigentrace
