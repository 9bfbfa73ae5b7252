#include "tools/report/html.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "tensor/io/file.h"
#include "tools/report/figures.h"
#include "tools/report/style.h"

namespace eigentrace {
namespace {

constexpr const char* reading_help =
    "<section>\n<h2>How to read the spectra</h2>\n"
    "<p class=\"note\">Every layer carries a state from step to step: h<sub>i</sub> = Λ<sub>i</sub> "
    "h<sub>i−1</sub> + B<sub>i</sub> u<sub>i</sub>. "
    "An eigenvalue λ of Λ<sub>i</sub> says what one step does to what the layer remembers: |λ| = 1 keeps it "
    "(the dashed line, the unit circle), "
    "|λ| &lt; 1 lets it fade, |λ| &gt; 1 makes it grow; arg λ turns it. Dots are single eigenvalues, lines "
    "their medians over neighbouring steps, "
    "bars their shares by size or angle, whiskers one standard deviation over sequences. Grey is the model "
    "before training, blue after.</p>\n</section>\n";

/// Without it every moment of a figure is shown, in order; with it one at a time.
constexpr const char* slider_script =
    R"(<script>document.querySelectorAll("figure.moments").forEach(function(f){
var s=f.querySelector("input"),o=f.querySelector("output"),m=f.querySelectorAll(".moment");
function show(){m.forEach(function(e,i){e.classList.toggle("now",i==s.value)});o.textContent=m[s.value].dataset.at}
s.addEventListener("input",show);f.classList.add("live");show()});</script>
)";

std::string esc(const std::string& text) { return xml_escaped(text); }

/// Names in the order they first appear in any of the lists.
template <class Lists, class NameOf>
std::vector<std::string> columns_of(const Lists& lists, NameOf&& pairs_of) {
  std::vector<std::string> names;
  for (const auto& list : lists)
    for (const auto& [name, value] : pairs_of(list))
      if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  return names;
}

template <class Value>
const Value* find(const std::vector<std::pair<std::string, Value>>& pairs, const std::string& name) {
  for (const auto& [key, value] : pairs)
    if (key == name) return &value;
  return nullptr;
}

std::string swatch(size_t run) { return fmt::format("<span class=\"swatch {}\"></span>", run_classes(run)); }

std::string headline_table(const Report& report) {
  const auto columns = columns_of(report.runs, [](const RunReport& run) { return run.headline; });
  std::string html = "<div class=\"table\"><table>\n<thead><tr><th>Run</th>";
  for (const std::string& column : columns) html += fmt::format("<th>{}</th>", esc(column));
  html += "</tr></thead>\n<tbody>\n";
  for (size_t r = 0; r < report.runs.size(); r++) {
    const RunReport& run = report.runs[r];
    html += fmt::format("<tr><td><div class=\"name\">{}<a href=\"#run-{}\">{}</a></div></td>", swatch(r), r,
                        esc(run.name));
    for (const std::string& column : columns) {
      const std::string* cell = find(run.headline, column);
      html += cell ? fmt::format("<td>{}</td>", esc(*cell)) : "<td class=\"gone\">–</td>";
    }
    html += "</tr>\n";
  }
  return html + "</tbody></table></div>\n";
}

std::string figure_html(const Figure& figure) {
  std::string caption = esc(figure.title);
  if (!figure.note.empty()) caption += fmt::format("<span>{}</span>", esc(figure.note));
  if (figure.frames.empty())
    return fmt::format("<figure id=\"{}\"><figcaption>{}</figcaption>\n{}</figure>\n", esc(figure.id),
                       caption, figure.picture.inlined(figure.title));
  const size_t last = figure.frames.size() - 1;
  std::string html = fmt::format(
      "<figure class=\"moments\" id=\"{}\"><figcaption>{}</figcaption>\n<label class=\"slider\"><input "
      "type=\"range\" min=\"0\" max=\"{}\" value=\"{}\" aria-label=\"moment of "
      "training\"/><output>{}</output></label>\n",
      esc(figure.id), caption, last, last, esc(figure.frames[last].label));
  for (const Frame& frame : figure.frames)
    html += fmt::format("<div class=\"moment\" data-at=\"{}\"><p class=\"at\">{}</p>\n{}</div>\n",
                        esc(frame.label), esc(frame.label),
                        frame.picture.inlined(figure.title + ", " + frame.label));
  return html + "</figure>\n";
}

std::string figures_html(const std::vector<Figure>& figures) {
  if (figures.empty()) return "";
  std::string html = fmt::format("<div class=\"figures{}\">\n", figures.size() % 3 == 0 ? " three" : "");
  for (const Figure& figure : figures) html += figure_html(figure);
  return html + "</div>\n";
}

/// Figures under a heading; "" without figures.
std::string titled(const char* level, const std::string& title, const std::string& note,
                   const std::vector<Figure>& figures) {
  if (figures.empty()) return "";
  return fmt::format("<{}>{}</{}>\n<p class=\"note\">{}</p>\n{}", level, title, level, note,
                     figures_html(figures));
}

std::string correlation_table(const Report& report) {
  constexpr size_t most = 20;
  std::string html =
      "<div class=\"table "
      "after\"><table>\n<thead><tr><th>Statistic</th><th>layer</th><th>stage</th><th>runs</th>"
      "<th>ρ</th><th>interval</th><th>p</th><th>q</th></tr></thead>\n<tbody>\n";
  for (size_t i = 0; i < report.correlations.size() && i < most; i++) {
    const CorrelationReport& c = report.correlations[i];
    html += fmt::format(
        "<tr><th>{}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{} … "
        "{}</td><td>{}</td><td>{}</td></tr>\n",
        esc(c.statistic), c.layer < 0 ? "mean" : std::to_string(c.layer), esc(c.stage), c.n,
        short_number(c.rho), short_number(c.low), short_number(c.high), short_number(c.p_value),
        short_number(c.q_value));
  }
  return html + "</tbody></table></div>\n";
}

std::string correlations_html(const Report& report) {
  if (report.correlations.empty()) return "";
  return "<section>\n" +
         titled(
             "h2", "Statistics against " + esc(report.correlations.front().figure),
             "Every dot is a run. p: how often runs paired at random correlate as strongly. q: the share of "
             "chance findings among those at least as telling as this one; small p without small q means "
             "that many statistics were tried.",
             correlation_figures(report)) +
         correlation_table(report) + "</section>\n";
}

std::string interventions_html(const RunReport& run, const std::string& prefix) {
  const auto& rows = run.interventions.rows;
  if (rows.size() < 2) return "";
  std::string html =
      titled("h3", "Interventions",
             "The same weights, evaluated with their eigenvalues changed. " + esc(run.interventions.about),
             intervention_figures(run, prefix));
  html +=
      "<div class=\"table "
      "after\"><table>\n<thead><tr><th>Change</th><th>accuracy</th><th>change</th><th>loss</th>"
      "<th>change</th><th>path</th></tr></thead>\n<tbody>\n";
  for (const InterventionRow& row : rows)
    html += fmt::format("<tr><th>{}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
                        esc(row.change), short_number(row.accuracy), short_number(row.accuracy_change),
                        short_number(row.loss), short_number(row.loss_change), esc(row.path));
  return html + "</tbody></table></div>\n";
}

/// Rows are layers and heads, columns statistics; a cell says "initial → trained" where both are known.
std::string statistics_table(const RunReport& run) {
  const auto columns = columns_of(run.spectra, [](const SpectrumReport& s) { return s.statistics; });
  if (columns.empty()) return "";
  std::string html =
      "<h3>Statistics, initial → trained</h3>\n<div class=\"table\"><table>\n<thead><tr><th>Spectrum</th>";
  for (const std::string& column : columns) html += fmt::format("<th>{}</th>", esc(column));
  html += "</tr></thead>\n<tbody>\n";
  for (const auto& [key, at_stage] : by_head(run)) {
    const auto& [layer, head, reading] = key;
    html += fmt::format("<tr><th>{}</th>", esc(head_title(layer, head, reading)));
    for (const std::string& column : columns) {
      const auto value = [&](const char* stage) -> const double* {
        const auto found = at_stage.find(stage);
        return found == at_stage.end() ? nullptr : find(found->second->statistics, column);
      };
      const double *initial = value("initial"), *trained = value("trained");
      html += "<td>";
      if (initial) html += fmt::format("<span class=\"from\">{}</span>", short_number(*initial));
      if (initial && trained) html += "<span class=\"from\"> → </span>";
      if (trained) html += fmt::format("<span class=\"to\">{}</span>", short_number(*trained));
      if (!initial && !trained) html += "–";
      html += "</td>";
    }
    html += "</tr>\n";
  }
  return html + "</tbody></table></div>\n";
}

std::string run_html(const Report& report, size_t r) {
  const RunReport& run = report.runs[r];
  const std::string prefix = run_prefix(report, r);
  std::string html = fmt::format("<section id=\"run-{}\">\n<h2>{}{}</h2>\n", r, swatch(r), esc(run.name));
  if (run.spectra.empty()) html += "<p class=\"note\">No spectrum was read for this run.</p>\n";
  html += figures_html(heat_figures(run, prefix));
  for (const HeadFigures& head : head_figures(run, prefix))
    html += fmt::format("<h3>{}</h3>\n{}", esc(head.title), figures_html(head.figures));
  html +=
      titled("h3", "Two readings compared",
             "Exact: what the layer computes. Published: how the study's code reads it, with bins closed at "
             "both ends, so that their sum may be over 100 %.",
             reading_figures(run, prefix));
  html += interventions_html(run, prefix);
  html += statistics_table(run);
  if (!run.config.empty())
    html +=
        fmt::format("<details><summary>Configuration</summary><pre>{}</pre></details>\n", esc(run.config));
  return html + "</section>\n";
}

}  // namespace

std::string report_html(const Report& report) {
  std::string html = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta "
      "charset=\"utf-8\"/>\n"
      "<meta name=\"viewport\" content=\"width=device-width, "
      "initial-scale=1\"/>\n<title>{}</title>\n<style>{}</style>\n</head>\n<body>\n"
      "<header>\n<h1>{}</h1>\n",
      esc(report.title), page_style(), esc(report.title));
  if (!report.subtitle.empty()) html += fmt::format("<p class=\"lead\">{}</p>\n", esc(report.subtitle));
  if (report.runs.size() > 1) {
    html += "<nav>";
    for (size_t r = 0; r < report.runs.size(); r++)
      html += fmt::format("<a href=\"#run-{}\">{}{}</a>", r, swatch(r), esc(report.runs[r].name));
    html += "</nav>\n";
  }
  html += "</header>\n<main>\n";
  if (report.runs.empty()) {
    html += "<p class=\"note\">There is no run to report on.</p>\n";
  } else {
    html += "<section>\n<h2>Results</h2>\n" + headline_table(report) + "</section>\n";
    if (const auto curves = curve_figures(report); !curves.empty())
      html += "<section>\n<h2>Learning</h2>\n" + figures_html(curves) + "</section>\n";
    html += correlations_html(report);
    if (std::any_of(report.runs.begin(), report.runs.end(),
                    [](const RunReport& run) { return !run.spectra.empty(); }))
      html += reading_help;
    for (size_t r = 0; r < report.runs.size(); r++) html += run_html(report, r);
  }
  if (html.find("<figure class=\"moments\"") != std::string::npos) html += slider_script;
  return html +
         "</main>\n<footer>Written by eigentrace. Hover over a mark to see its "
         "values.</footer>\n</body>\n</html>\n";
}

void write_report(const std::string& path, const Report& report) {
  write_atomically(path, report_html(report));
}

size_t write_figures(const std::string& folder, const Report& report) {
  ensure_directory(folder);
  size_t written = 0;
  const auto write = [&](const std::vector<Figure>& figures, const std::string& context) {
    for (const Figure& figure : figures) {
      if (figure.frames.empty())
        write_atomically(folder + "/" + figure.id + ".svg", figure.picture.document(context + figure.title));
      for (const Frame& frame : figure.frames)
        write_atomically(folder + "/" + frame.id + ".svg",
                         frame.picture.document(context + figure.title + ", " + frame.label));
      write_atomically(folder + "/" + figure.id + ".csv", figure.csv);
      written++;
    }
  };
  write(curve_figures(report), "");
  write(correlation_figures(report), "");
  for (size_t r = 0; r < report.runs.size(); r++) {
    const std::string prefix = run_prefix(report, r), name = report.runs[r].name + ": ";
    write(heat_figures(report.runs[r], prefix), name);
    write(reading_figures(report.runs[r], prefix), name);
    write(intervention_figures(report.runs[r], prefix), name);
    for (const HeadFigures& head : head_figures(report.runs[r], prefix))
      write(head.figures, name + head.title + ". ");
  }
  return written;
}

}  // namespace eigentrace
