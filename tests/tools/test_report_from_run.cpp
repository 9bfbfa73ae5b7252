// A run's folder as the report sees it.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "spectral/files.h"
#include "tests/spectral/systems.h"
#include "tests/tensor/io_testing.h"
#include "tools/report/from_run.h"
#include "tools/report/html.h"

using namespace eigentrace;

namespace {

SpectrumRecord every_family() {
  SpectrumRecord record;
  record.about = {{"model", "test"}};
  ReadingOptions options;
  options.max_values = 1000;
  for (const auto& build : all_systems()) {
    LayerRecord one;
    one.spectrum = read_spectrum(build(33, DType::f64, 5).system, int64_t(record.layers.size()), options);
    one.statistics = layer_statistics(one.spectrum);
    record.layers.push_back(std::move(one));
  }
  return record;
}

}  // namespace

TEST_CASE("report: spectra of every family become heads with bins, statistics and a sample") {
  for (const LayerRecord& layer : every_family().layers) {
    const LayerSpectrum& spectrum = layer.spectrum;
    const auto reports = spectrum_reports(spectrum, "initial", 0);
    CAPTURE(spectrum.layer);
    CHECK(int64_t(reports.size()) == (spectrum.kind == SpectrumKind::time_varying ? spectrum.heads() : 1));
    for (const SpectrumReport& report : reports) {
      CHECK(report.layer == spectrum.layer);
      CHECK_FALSE(report.eigenvalues.empty());
      double share = 0;
      for (const double percent : report.radius.mean) share += percent;
      CHECK(std::abs(share - 100) < 1e-9);
      CHECK(report.radius.edges.size() == report.radius.mean.size() + 1);
      CHECK(report.phase.edges.size() == report.phase.mean.size() + 1);
      for (const EigenvalueSample& e : report.eigenvalues) CHECK(e.time < 33);
    }
    // Each head's sample is that head's own.
    if (spectrum.kind != SpectrumKind::time_varying) continue;
    for (const SpectrumReport& report : reports)
      for (const EigenvalueSample& e : report.eigenvalues) {
        bool found = false;
        for (int64_t b = 0; b < spectrum.shape[0]; b++) {
          const int64_t at =
              (b * spectrum.shape[1] + e.time - spectrum.first_step) * spectrum.shape[2] + report.head;
          found |= spectrum.log_abs[size_t(at)] == e.log_abs;
        }
        CHECK(found);
      }
  }
}

TEST_CASE("report: a run's folder gives its headline, curves and spectra") {
  TestFolder folder;
  const RunFolder run = RunFolder::create(folder / "run", false);
  run.prepare();
  RunInfo info;
  info.name = "first";
  info.task = "mqar";
  info.parameters = 1234567;
  info.step = 20;
  info.state = "finished";
  info.reason = "all steps";
  info.wall_seconds = 125;
  run.write_info(info);
  write_atomically(run.config(), "seed: 1\n");
  {
    AppendFile metrics(run.metrics());
    for (int64_t step : {10, 20}) {
      MetricsRow row;
      row.step = step;
      row.split = "train";
      row.loss = 4.0 / double(step), row.accuracy = 0.25, row.steps_per_second = 8;
      metrics.append_line(to_json(row));
    }
    MetricsRow row;
    row.step = 20;
    row.split = "validation";
    row.loss = 0.5, row.accuracy = 0.75;
    metrics.append_line(to_json(row));
  }
  const SpectrumRecord record = every_family();
  for (const char* stage : {"initial", "step10", "trained"}) write_spectrum(run.spectrum(stage), record);

  Report report;
  report.runs.push_back(run_report(run));
  const RunReport& read = report.runs[0];
  CHECK(read.name == "first");
  CHECK(read.config == "seed: 1\n");
  CHECK(read.metrics.size() == 2);
  CHECK(read.metrics[0].train_loss == 0.4);
  CHECK(std::isnan(read.metrics[0].eval_loss));
  CHECK(read.metrics[1].eval_accuracy == 0.75);
  const auto cell = [&](const std::string& column) {
    for (const auto& [name, value] : read.headline)
      if (name == column) return value;
    return std::string("absent");
  };
  CHECK(cell("parameters") == "1,234,567");
  CHECK(cell("accuracy") == "0.75");
  CHECK(cell("steps/s") == "8");
  CHECK(cell("time") == "2 min 05 s");
  CHECK(read.spectra.size() % 3 == 0);
  CHECK(std::count_if(read.spectra.begin(), read.spectra.end(), [](const SpectrumReport& s) {
          return s.step == 10;
        }) == int64_t(read.spectra.size() / 3));
  const std::string html = report_html(report);
  CHECK(contains(html, "Along training"));
  CHECK(contains(html, "Complex plane"));
}

TEST_CASE("report: a run that has just begun is reported too") {
  TestFolder folder;
  const RunFolder run = RunFolder::create(folder / "run", false);
  run.prepare();
  run.write_info({});
  Report report;
  report.runs.push_back(run_report(run));
  CHECK(report.runs[0].name == "run");
  CHECK(contains(report_html(report), "No spectrum was read"));
}
