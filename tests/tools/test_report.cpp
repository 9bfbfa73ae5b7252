#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <set>

#include "tests/tensor/io_testing.h"
#include "tests/tools/report_samples.h"
#include "tools/report/charts.h"
#include "tools/report/figures.h"
#include "tools/report/html.h"

using namespace eigentrace;

namespace {

/// How the one script of a page begins: any other is a fault.
const std::string own_script = "document.querySelectorAll(\"figure.moments\")";

/// The first thing wrong with a page or picture as markup: tags that do not match, attributes without quotes,
/// text that is not escaped, an id twice, a number that is none, anything fetched from elsewhere. "" if all
/// is well.
std::string fault_of(const std::string& text) {
  std::vector<std::string> open;
  std::set<std::string> ids;
  const auto around = [&](size_t at) { return " at: " + text.substr(at < 40 ? 0 : at - 40, 120); };
  size_t at = text.rfind("<!DOCTYPE html>\n", 0) == 0 ? 16 : 0;
  while (at < text.size()) {
    if (text[at] == '>') return "bare >" + around(at);
    if (text[at] == '&') {
      const std::string entities[] = {"&amp;", "&lt;", "&gt;", "&quot;", "&#39;"};
      if (std::none_of(std::begin(entities), std::end(entities),
                       [&](const std::string& e) { return text.compare(at, e.size(), e) == 0; }))
        return "bare &" + around(at);
    }
    if (text[at] != '<') {
      at++;
      continue;
    }
    const bool closing = text[at + 1] == '/';
    size_t end = at + 1 + closing;
    while (std::isalnum(static_cast<unsigned char>(text[end]))) end++;
    const std::string name = text.substr(at + 1 + closing, end - at - 1 - closing);
    if (name.empty()) return "bare <" + around(at);
    while (text[end] == ' ') {
      const size_t equals = text.find('=', end), from = equals + 2, to = text.find('"', from);
      if (text[equals + 1] != '"' || to == std::string::npos) return "attribute" + around(end);
      const std::string key = text.substr(end + 1, equals - end - 1), value = text.substr(from, to - from);
      if (value.find('<') != std::string::npos) return "< in attribute" + around(from);
      if (key == "id" && !ids.insert(value).second) return "id twice: " + value;
      if ((key == "src" || key == "href") && value[0] != '#') return "refers to " + value;
      const bool numeric = key == "x" || key == "y" || key == "cx" || key == "cy" || key == "r" ||
                           key == "x1" || key == "x2" || key == "y1" || key == "y2" || key == "width" ||
                           key == "height" || key == "fill-opacity";
      if (numeric && value.find_first_not_of("-.0123456789") != std::string::npos) return "number " + value;
      if (key == "d" && value.find_first_not_of("ML -.0123456789") != std::string::npos)
        return "path " + value;
      end = to + 1;
    }
    const bool alone = text[end] == '/';
    if (text[end + alone] != '>') return "tag" + around(at);
    at = end + alone + 1;
    if (closing) {
      if (open.empty() || open.back() != name)
        return "</" + name + "> closes " + (open.empty() ? "nothing" : open.back()) + around(at);
      open.pop_back();
    } else if (!alone) {
      open.push_back(name);
      if (name == "style") at = text.find("</style>", at);
    }
    if (name == "script" && !closing && text.compare(at, own_script.size(), own_script) == 0) {
      const size_t over = text.find("</script>", at);
      const std::string code = text.substr(at, over - at);
      if (code.find_first_of("<&") != std::string::npos) return "not XML" + around(at);
      if (code.find("fetch") != std::string::npos || code.find("import") != std::string::npos)
        return "fetches" + around(at);
      at = over;
    } else if ((name == "script" && !closing) || name == "link" || name == "img") {
      return "has a " + name;
    }
  }
  if (!open.empty()) return "left open: " + open.back();
  for (const char* word : {"http://", "https://", "url(", "@import"}) {
    const size_t found = text.find(word);
    if (found != std::string::npos && text.compare(found, 26, "http://www.w3.org/2000/svg") != 0)
      return "refers to " + around(found);
  }
  return "";
}

/// The value of an attribute in the n-th tag that starts with `start`.
double attribute(const std::string& text, const std::string& start, const std::string& key, int n = 0) {
  size_t at = text.find(start);
  for (; n > 0; n--) at = text.find(start, at + 1);
  REQUIRE(at != std::string::npos);
  return std::strtod(text.c_str() + text.find(" " + key + "=\"", at) + key.size() + 3, nullptr);
}

}  // namespace

TEST_CASE("report: the checker of these tests finds planted faults") {
  CHECK(fault_of("<a><b></b></a>") == "");
  CHECK_FALSE(fault_of("<a><b></a></b>").empty());
  CHECK_FALSE(fault_of("<a>").empty());
  CHECK_FALSE(fault_of("<a>x & y</a>").empty());
  CHECK_FALSE(fault_of("<a>x < y</a>").empty());
  CHECK_FALSE(fault_of("<p id=\"a\"/><p id=\"a\"/>").empty());
  CHECK_FALSE(fault_of("<circle r=\"nan\"/>").empty());
  CHECK_FALSE(fault_of("<a href=\"x.html\">x</a>").empty());
  CHECK_FALSE(fault_of("<p>https://example.org</p>").empty());
  CHECK_FALSE(fault_of("<script>1</script>").empty());
}

TEST_CASE("report: the page is well-formed and needs nothing from elsewhere") {
  const std::string html = report_html(sample_report());
  CHECK(fault_of(html) == "");
  CHECK(html.size() < 2'500'000);
  for (const char* part :
       {"<h2>Results</h2>", "<h2>Learning</h2>", "Layer 1, head 2", "Complex plane", "Phases", "Magnitudes",
        "λ over time, change", "Along training", "Layer 0, head 0, published reading", "Configuration",
        "Spectrum along training", "Statistics against accuracy", "Two readings compared", "Interventions",
        "Macro accuracy", "0.993", "prefers-color-scheme:dark", "@media print"})
    CHECK(contains(html, part));
}

TEST_CASE("report: the same runs give the same bytes") {
  CHECK(report_html(sample_report()) == report_html(sample_report()));
}

TEST_CASE("report: names and texts are escaped wherever they appear") {
  Report report = sample_report();
  const std::string evil = "<script>alert(\"1\")</script> & 'x' \xFF \x01";
  report.title = report.subtitle = evil;
  report.runs.resize(1);
  report.runs[0].name = report.runs[0].config = evil;
  report.runs[0].headline = {{evil, evil}};
  for (SpectrumReport& s : report.runs[0].spectra) s.statistics = {{evil, 1}};
  report.runs[0].interventions = {evil, {{evil, evil, 1, 1, 0, 0}, {evil, evil, 1, 1, 0, 0}}};
  for (CorrelationReport& c : report.correlations) {
    c.statistic = c.figure = evil;
    for (auto& p : c.points) p.run = p.group = evil;
  }
  CHECK(fault_of(report_html(report)) == "");
  for (const Figure& figure : curve_figures(report)) CHECK(fault_of(figure.picture.document(evil)) == "");
  CHECK(xml_escaped("a<b>&\"'\x02") == "a&lt;b&gt;&amp;&quot;&#39;\xEF\xBF\xBD");
  CHECK(xml_escaped("\xFFz") == "\xEF\xBF\xBDz");
}

TEST_CASE("report: empty, missing and extreme values are drawn or left out, never broken") {
  const double infinity = std::numeric_limits<double>::infinity(), nan = not_recorded;
  Report report;
  CHECK(fault_of(report_html(report)) == "");
  CHECK(contains(report_html(report), "There is no run"));
  report.runs.resize(5);
  CHECK(fault_of(report_html(report)) == "");
  CHECK(contains(report_html(report), "No spectrum was read"));
  CHECK_FALSE(contains(report_html(report), "<h2>Learning</h2>"));

  report.runs[0].metrics = {{5, nan, nan, nan, nan, nan}};
  report.runs[1].metrics = {{7, 2.5, infinity, nan, 0.5, nan}};
  report.runs[2].metrics = {{1, 1e300, 0, 1e-300, 1, -1}, {2, -1e300, 0, 0, 1, 0}, {3, 0, 0, 0, 1, 0}};
  SpectrumReport s;
  s.stage = "trained";
  report.runs[0].spectra = {s};  // no eigenvalue
  for (const double log_abs : {0.0, -infinity, infinity, nan, 1e5, -1e5})
    for (const double arg : {0.0, 1.0, nan})
      for (const bool moving : {false, true}) {
        s.time_varying = moving;
        s.layer++;
        s.eigenvalues.assign(1, {log_abs, arg, 3});
        s.radius = {{0, 1, infinity}, {nan, 200}, {}};
        s.phase = {{0, 180}, {100}, {nan}};
        s.statistics = {{"value", log_abs}};
        report.runs[1].spectra.push_back(s);
      }
  s.eigenvalues.clear();
  for (const double log_abs : {0.0, -infinity, infinity, nan, 1e5, -1e5})
    s.eigenvalues.push_back({log_abs, 0, -2});
  s.radius = {{0, 1}, {1, 2, 3}, {}};  // edges and bins that do not match
  for (int64_t step = 0; step < 4; step++) {
    s.step = step;
    s.stage = step == 0 ? "initial" : "step" + std::to_string(step);
    report.runs[3].spectra.push_back(s);
  }
  report.runs[2].spectra = {s};
  const std::string html = report_html(report);
  CHECK(fault_of(html) == "");
  for (const char* word : {">nan<", ">inf<", "nan ", " inf", "-inf"}) CHECK_FALSE(contains(html, word));
}

TEST_CASE("report: every figure is written as SVG and CSV, whatever the runs are called") {
  TestFolder folder;
  Report report = sample_report();
  report.runs.resize(2);
  report.runs[1].name = report.runs[0].name = "../same name?";
  const size_t figures = write_figures(folder / "figures", report);
  size_t svg = 0, csv = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder / "figures")) {
    const std::string text = read_file(entry.path().string());
    if (entry.path().extension() == ".svg") {
      svg++;
      CHECK(fault_of(text) == "");
    } else {
      csv++;
      CHECK(std::count(text.begin(), text.end(), '\n') > 1);
    }
  }
  CHECK(svg == figures);
  CHECK(csv == figures);
  // Curves, correlations, and per run: heat maps, heads, interventions. The second run has a published
  // reading of one head more, and its comparison.
  CHECK(figures == 3 + 3 + 2 * (3 + 6 * 3 + 2) + 3 + 1);
  CHECK(folder.files() == 1);
}

TEST_CASE("report: CSV numbers read back to the same bits, names with commas are quoted") {
  BarChart bars{"|λ|", "%", {"0–1", "≥ 1"}, {{"a, \"b\"", "s0", {0.1, not_recorded}, {1.0 / 3}}}};
  CHECK(csv(bars) == "bin,\"a, \"\"b\"\" mean\",\"a, \"\"b\"\" std\"\n0–1,0.1,0.3333333333333333\n≥ 1,,\n");
}

TEST_CASE("report: λ = i lies on top of the unit circle, λ = 1 at its right, 0 at its centre") {
  PlaneChart chart;
  const double infinity = std::numeric_limits<double>::infinity();
  chart.panels.push_back(
      {"trained", "trained", {{0, std::numbers::pi / 2, 0}, {0, 0, 0}, {-infinity, 0, 0}}});
  const std::string svg = draw(chart).inlined("t");
  const std::string unit = "<circle class=\"unit\"", dot = "<circle class=\"dot\"";
  const double cx = attribute(svg, unit, "cx"), cy = attribute(svg, unit, "cy"),
               r = attribute(svg, unit, "r");
  CHECK(r > 50);
  CHECK(std::abs(attribute(svg, dot, "cx", 0) - cx) < 0.02);
  CHECK(std::abs(attribute(svg, dot, "cy", 0) - (cy - r)) < 0.02);
  CHECK(std::abs(attribute(svg, dot, "cx", 1) - (cx + r)) < 0.02);
  CHECK(std::abs(attribute(svg, dot, "cy", 1) - cy) < 0.02);
  CHECK(std::abs(attribute(svg, dot, "cx", 2) - cx) < 0.02);
  CHECK(contains(svg, "<title>|λ| = 1, arg λ = 90°"));
}

TEST_CASE("report: bars are as high as their shares") {
  BarChart chart{"|λ|", "%", {"a", "b", "c"}, {{"trained", "trained", {25, 50, 0}, {}}}};
  const std::string svg = draw(chart).inlined("t");
  const double quarter = attribute(svg, "<rect class=\"bar\"", "height", 0);
  CHECK(quarter > 20);
  CHECK(std::abs(attribute(svg, "<rect class=\"bar\"", "height", 1) - 2 * quarter) < 0.02);
  CHECK(attribute(svg, "<rect class=\"bar\"", "height", 2) == 0);
}

TEST_CASE("report: ticks are round, ascending, inside the range and neither few nor many") {
  for (uint64_t seed = 0; seed < 500; seed++) {
    const double span = std::pow(10.0, 12 * sample_uniform(seed, 1) - 6),
                 low = span * (20 * sample_uniform(seed, 2) - 10);
    for (const int count : {4, 5, 6}) {
      const auto ticks = nice_ticks(low, low + span, count);
      CAPTURE(low);
      CAPTURE(span);
      CHECK(ticks.size() >= 2);
      CHECK(ticks.size() <= 10);
      for (size_t i = 0; i < ticks.size(); i++) {
        CHECK(ticks[i].position >= low - 1e-6 * span);
        CHECK(ticks[i].position <= low + span * (1 + 1e-6));
        if (i > 0) CHECK(ticks[i].position > ticks[i - 1].position);
        if (i > 0) CHECK(ticks[i].label != ticks[i - 1].label);
      }
    }
  }
  CHECK(nice_ticks(0, 1, 5).size() == 6);
  CHECK(nice_ticks(0, 2000, 5)[1].label == "500");
  CHECK(nice_ticks(0, 20000, 5)[1].label == "5k");
  CHECK(nice_ticks(-1, 1, 4)[0].label == "−1.0");
  CHECK(nice_ticks(-6, 0, 3, true)[0].label == "1e−6");
  CHECK(nice_ticks(-1, 0, 3, true).size() == 4);
  CHECK(nice_ticks(1, 1, 5).empty());
  CHECK(nice_ticks(0, std::numeric_limits<double>::infinity(), 5).empty());
  CHECK(nice_ticks(not_recorded, 1, 5).empty());
}

TEST_CASE("report: numbers and names as text") {
  CHECK(short_number(0.123456) == "0.1235");
  CHECK(short_number(-12345.6) == "−12346");
  CHECK(short_number(0) == "0");
  CHECK(short_number(1.5e-7) == "1.50e-07");
  CHECK(short_number(not_recorded) == "–");
  CHECK(power_text(-2) == "0.01");
  CHECK(power_text(-1000.5) == "3.16e−1001");
  CHECK(slug("LRU, run #3 (λ)") == "lru-run-3");
  CHECK(slug("λ") == "unnamed");
  CHECK(bin_names({0, 0.5, std::numeric_limits<double>::infinity()}) ==
        std::vector<std::string>{"0–0.5", "≥ 0.5"});
}

TEST_CASE("report: a failing write leaves the old page") {
  TestFolder folder;
  Report report;
  report.title = std::string(600000, 'x');
  CHECK(fail_every_call(folder, folder / "report.html",
                        [&] { write_report(folder / "report.html", report); }) >= 6);
}

TEST_CASE("report: the sample is written where EIGENTRACE_REPORT_PREVIEW says") {
  const char* folder = std::getenv("EIGENTRACE_REPORT_PREVIEW");
  if (!folder) return;
  ensure_directory(folder);
  write_report(std::string(folder) + "/report.html", sample_report());
  CHECK(write_figures(std::string(folder) + "/figures", sample_report()) > 10);
}
