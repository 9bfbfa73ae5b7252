// The report's figures of results: moments with a slider, readings, interventions, correlations.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>

#include "tests/tensor/io_testing.h"
#include "tests/tools/report_samples.h"
#include "tools/correlate.h"
#include "tools/report/charts.h"
#include "tools/report/figures.h"
#include "tools/report/from_run.h"
#include "tools/report/html.h"

using namespace eigentrace;

namespace {

size_t count(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) n++;
  return n;
}

/// The value of an attribute in the n-th tag that starts with `start`.
double attribute(const std::string& text, const std::string& start, const std::string& key, int n = 0) {
  size_t at = text.find(start);
  for (; n > 0; n--) at = text.find(start, at + 1);
  REQUIRE(at != std::string::npos);
  return std::strtod(text.c_str() + text.find(" " + key + "=\"", at) + key.size() + 3, nullptr);
}

/// One head of 63 eigenvalues at so many steps of training, |λ| = 0.5 + step/1000.
RunReport moving(int64_t moments, bool complex) {
  RunReport run;
  run.name = "moving";
  for (int64_t k = 0; k < moments; k++) {
    SpectrumReport s;
    s.stage = k == 0 ? "initial" : "step" + std::to_string(10 * k);
    s.step = 10 * k;
    s.time_varying = !complex;
    for (int64_t i = 0; i < 63; i++)
      s.eigenvalues.push_back({std::log(0.5 + 0.01 * double(k)), complex ? 0.1 * double(i) : 0, i});
    run.spectra.push_back(s);
  }
  return run;
}

const Figure* moments_of(const std::vector<HeadFigures>& heads) {
  for (const HeadFigures& head : heads)
    for (const Figure& figure : head.figures)
      if (!figure.frames.empty()) return &figure;
  return nullptr;
}

}  // namespace

TEST_CASE(
    "report: spectra along training are frames of one figure, in the order of the steps, with one scale") {
  for (const bool complex : {false, true}) {
    const auto heads = head_figures(moving(12, complex), "moving");
    const Figure* figure = moments_of(heads);
    REQUIRE(figure);
    REQUIRE(figure->frames.size() == 12);
    for (size_t k = 0; k < 12; k++) CHECK(figure->frames[k].label == "step " + std::to_string(10 * k));
    CHECK(count(figure->csv, "\n") == 1 + 12 * 63);
    CHECK(contains(figure->csv, "step 110,"));
    if (!complex) continue;
    const std::string first = figure->frames.front().picture.inlined("t"),
                      last = figure->frames.back().picture.inlined("t");
    const std::string unit = "<circle class=\"unit\"", dot = "<circle class=\"dot\"";
    CHECK(attribute(first, unit, "r") == attribute(last, unit, "r"));
    const double r = attribute(last, unit, "r");
    CHECK(std::abs(attribute(first, dot, "cx") - attribute(first, unit, "cx") - 0.5 * r) < 0.02);
    CHECK(std::abs(attribute(last, dot, "cx") - attribute(last, unit, "cx") - 0.61 * r) < 0.02);
  }
  CHECK(moments_of(head_figures(moving(2, true), "moving")) == nullptr);
  const auto many = head_figures(moving(100, false), "moving");  // thinned, both ends kept
  REQUIRE(moments_of(many));
  CHECK(moments_of(many)->frames.size() == 24);
  CHECK(moments_of(many)->frames.front().label == "step 0");
  CHECK(moments_of(many)->frames.back().label == "step 990");
}

TEST_CASE("report: a page with moments has a slider over them, a page without has no script") {
  Report report;
  report.runs = {moving(5, true)};
  const std::string html = report_html(report);
  CHECK(count(html, "<input type=\"range\" min=\"0\" max=\"4\" value=\"4\"") == 1);
  CHECK(count(html, "<div class=\"moment\"") == 5);
  CHECK(count(html, "<script>") == 1);
  CHECK_FALSE(contains(html, "http"));
  report.runs = {moving(2, true)};
  CHECK(count(report_html(report), "<script") == 0);
  TestFolder folder;
  report.runs = {moving(5, true)};
  write_figures(folder / "figures", report);
  for (const char* name :
       {"moving-layer-0-moments.csv", "moving-layer-0-moments-at-0.svg", "moving-layer-0-moments-at-40.svg"})
    CHECK(std::filesystem::exists(folder / ("figures/" + std::string(name))));
}

TEST_CASE("report: interventions are bars from zero, as long as what they change") {
  const Report report = sample_report();
  const auto figures = intervention_figures(report.runs[0], "r");
  REQUIRE(figures.size() == 2);
  CHECK(figures[0].csv ==
        "row,accuracy change\nabs<=inf,0\nabs<=0.9; lambda=0 layers=0 heads=1,-0.96\nfreeze=mean,0.005\n");
  CHECK(figures[1].csv ==
        "row,loss change\nabs<=inf,0\nabs<=0.9; lambda=0 layers=0 heads=1,5\nfreeze=mean,-0.01\n");
  const RowChart chart{"x", "x", {{"a", "s0", 0.5}, {"b", "s1", -0.25}, {"c", "s0", 0}}};
  const std::string svg = draw(chart).inlined("t"), bar = "<rect class=\"bar\"";
  const double zero = attribute(svg, "<line class=\"reference\"", "x1");
  CHECK(std::abs(attribute(svg, bar, "x", 0) - zero) < 0.02);
  CHECK(std::abs(attribute(svg, bar, "x", 1) + attribute(svg, bar, "width", 1) - zero) < 0.02);
  CHECK(std::abs(attribute(svg, bar, "width", 0) - 2 * attribute(svg, bar, "width", 1)) < 0.03);
  CHECK(attribute(svg, bar, "width", 0) > 50);
  CHECK(attribute(svg, bar, "width", 2) == 0);
  CHECK(intervention_figures(report.runs[2], "r").empty());
}

TEST_CASE("report: correlations show rho with its interval and every run once") {
  const Report report = sample_report();
  const auto figures = correlation_figures(report);
  REQUIRE(figures.size() == 3);
  CHECK(contains(figures[0].csv, "trained,\"radius.q50\",-1,accuracy,4,1,0.25,1,0.95,0.083,0.17\n"));
  CHECK(contains(figures[0].csv, "trained,\"expanding_share\",1,accuracy,4,-0.8,-1,0.5,0.95,0.33,0.33\n"));
  CHECK(contains(figures[1].note, "ρ = +1 [0.25, 1], p = 0.083, q = 0.17, n = 4."));
  CHECK(figures[1].csv ==
        "run,group,radius.q50,accuracy\nsoftmax attention,first,0.5,0\nlinear attention,first,1.5,0.25\n"
        "\"norm attention, exp\",second,2.5,0.5\nlru,second,3.5,0.75\n");
  const std::string svg = figures[1].picture.inlined("t"), mark = "<circle class=\"mark\"";
  CHECK(count(svg, mark) == 4);
  const auto x = [&](int n) { return attribute(svg, mark, "cx", n); };
  CHECK(x(1) > x(0));
  CHECK(std::abs((x(3) - x(0)) - 3 * (x(1) - x(0))) < 0.05);
  CHECK(attribute(svg, mark, "cy", 3) < attribute(svg, mark, "cy", 0));
  CHECK(correlation_figures({}).empty());
}

TEST_CASE("report: a table of correlations comes ordered by p, without those that have no rho") {
  CorrelationTable table;
  table.request.figure = "loss";
  table.runs = {{"a", "", "lru", 1, 0, 0.5}, {"b", "", "lru", 2, 0, 0.25}, {"c", "", "s5", 1, 1, 0.75}};
  table.groups.resize(2);
  table.groups[0].label = "lru", table.groups[1].label = "s5";
  for (int k = 0; k < 3; k++) {
    StatisticCorrelation row;
    row.stage = "trained", row.statistic = std::string(1, char('x' + k)), row.layer = k;
    row.correlation.n = 3, row.correlation.rho = k == 1 ? not_recorded : 0.5 * k;
    row.correlation.p_value = k == 1 ? not_recorded : 1 - 0.25 * k;
    row.values = {1.0, k == 2 ? not_recorded : 2.0, 3.0};
    table.correlations.push_back(row);
  }
  const auto reports = correlation_reports(table);
  REQUIRE(reports.size() == 2);
  CHECK(reports[0].statistic == "z");
  CHECK(reports[0].figure == "loss");
  CHECK(reports[1].p_value == 1);
  REQUIRE(reports[0].points.size() == 2);  // the run without a value is left out
  CHECK(reports[0].points[1].run == "c");
  CHECK(reports[0].points[1].group == "s5");
  CHECK(reports[0].points[1].figure == 0.75);
  CHECK(reports[1].points.size() == 3);
}

TEST_CASE("report: two readings stand side by side where both were made") {
  const Report report = sample_report();
  const auto figures = reading_figures(report.runs[0], "r");
  REQUIRE(figures.size() == 1);
  CHECK(figures[0].title == "Layer 0, head 0, trained: magnitudes");
  CHECK(contains(figures[0].csv, "bin,exact mean,exact std,published mean,published std\n"));
  CHECK(reading_figures(report.runs[1], "r").empty());
}

TEST_CASE("report: macro accuracy is a curve of its own") {
  Report report = sample_report();
  const auto has = [&] {
    const auto figures = curve_figures(report);
    return std::any_of(figures.begin(), figures.end(),
                       [](const Figure& f) { return f.id == "macro-accuracy"; });
  };
  CHECK(has());
  report.runs.resize(3);
  CHECK_FALSE(has());
}
