// `eigentrace summary`: what runs and sweeps came to.
#include "tools/summary.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <utility>

#include "nn/config/node.h"
#include "spectral/statistics.h"
#include "tensor/error.h"
#include "tensor/io/file.h"
#include "tensor/io/json_writer.h"
#include "tools/commands.h"
#include "tools/progress.h"
#include "tools/text_table.h"

namespace eigentrace {

Spread spread_of(const std::vector<double>& values) {
  Spread out;
  double sum = 0, squares = 0;
  for (const double v : values)
    if (std::isfinite(v)) sum += v, ++out.n;
  out.mean = out.n > 0 ? sum / static_cast<double>(out.n) : std::nan("");
  for (const double v : values)
    if (std::isfinite(v)) squares += (v - out.mean) * (v - out.mean);
  out.std = out.n > 1 ? std::sqrt(squares / static_cast<double>(out.n - 1)) : std::nan("");
  return out;
}

// --- spectra
// ------------------------------------------------------------------------------------------------

namespace {

constexpr size_t median_place = 3;  // of quantile_levels

double number(const ConfigNode& node, const std::string& path) {
  if (node.kind == ConfigNode::Kind::null || node.text == "null") return std::nan("");
  try {
    return std::stod(node.text);
  } catch (const std::exception&) {
    fail(fmt::format("{}:{}: a number expected, found '{}'", path, node.line, node.text));
  }
}

const ConfigNode& member(const ConfigNode& node, const char* key, const std::string& path) {
  const ConfigNode* found = node.find(key);
  if (!found) fail(fmt::format("{}: has no '{}'; is it a spectrum's summary?", path, key));
  return *found;
}

}  // namespace

std::vector<SpectrumEssentials> spectrum_essentials(const std::string& run, const std::string& stage) {
  const std::string path = run + "/spectrum_" + stage + ".json";
  std::vector<SpectrumEssentials> out;
  if (!std::filesystem::exists(path)) return out;
  const ConfigNode root = parse_yaml(read_file(path, uint64_t{1} << 28), path);
  for (const ConfigNode& layer : member(root, "layers", path).items) {
    const ConfigNode& all = member(layer, "all", path);
    SpectrumEssentials& e = out.emplace_back();
    e.layer = static_cast<int64_t>(number(member(layer, "layer", path), path));
    for (const ConfigNode& item : member(all, "radius_percent.mean", path).items)
      e.percent.push_back(number(item, path));
    const ConfigNode& quantiles = member(all, "radius.quantiles", path);
    e.median =
        quantiles.items.size() > median_place ? number(quantiles.items[median_place], path) : std::nan("");
    e.expanding = 100 * number(member(all, "expanding_share", path), path);
  }
  return out;
}

SpectrumEssentials mean_of(const std::vector<SpectrumEssentials>& parts) {
  SpectrumEssentials out;
  const auto mean = [&](auto&& pick) {
    std::vector<double> values;
    for (const SpectrumEssentials& part : parts) values.push_back(pick(part));
    return spread_of(values).mean;
  };
  for (size_t bin = 0; bin + 1 < radius_edges.size(); ++bin)
    out.percent.push_back(
        mean([&](const auto& e) { return bin < e.percent.size() ? e.percent[bin] : std::nan(""); }));
  out.median = mean([](const auto& e) { return e.median; });
  out.expanding = mean([](const auto& e) { return e.expanding; });
  return out;
}

// --- groups
// -------------------------------------------------------------------------------------------------

namespace {

std::optional<SpectrumEssentials> mean_spectrum(const SweepStore& store,
                                                const std::vector<PointRecord>& points,
                                                const std::string& stage) {
  std::vector<SpectrumEssentials> of_points;
  for (const PointRecord& point : points)
    if (const auto layers = spectrum_essentials(store.run_path(point.name), stage); !layers.empty())
      of_points.push_back(mean_of(layers));
  if (of_points.empty()) return {};
  return mean_of(of_points);
}

template <class Pick>
Spread spread_over(const std::vector<PointRecord>& points, Pick&& pick) {
  std::vector<double> values;
  for (const PointRecord& p : points) {
    const auto value = pick(p);
    values.push_back(value ? static_cast<double>(*value) : std::nan(""));
  }
  return spread_of(values);
}

}  // namespace

std::vector<SweepGroup> sweep_groups(const SweepStore& store) {
  std::vector<SweepGroup> groups;
  for (PointRecord& point : store.points()) {
    std::vector<SweepSetting> settings = point.settings;
    std::erase_if(settings, [](const SweepSetting& s) { return s.key == "seed"; });
    auto at = std::ranges::find_if(groups, [&](const SweepGroup& g) { return g.settings == settings; });
    if (at == groups.end())
      at = groups.insert(groups.end(), {std::move(settings), {}, {}, {}, {}, {}, {}, {}});
    if (point.state == "finished") at->points.push_back(std::move(point));
  }
  for (SweepGroup& g : groups) {
    g.accuracy = spread_over(g.points, [](const PointRecord& p) { return p.accuracy; });
    g.loss = spread_over(g.points, [](const PointRecord& p) { return p.loss; });
    g.step = spread_over(g.points, [](const PointRecord& p) { return p.step; });
    g.seconds = spread_over(g.points, [](const PointRecord& p) { return p.wall_seconds; });
    g.initial = mean_spectrum(store, g.points, "initial");
    g.trained = mean_spectrum(store, g.points, "trained");
  }
  std::ranges::stable_sort(groups, [](const SweepGroup& a, const SweepGroup& b) {
    if (a.accuracy.n == 0 || b.accuracy.n == 0) return a.accuracy.n > 0 && b.accuracy.n == 0;
    return a.accuracy.mean > b.accuracy.mean;
  });
  return groups;
}

// --- text
// ---------------------------------------------------------------------------------------------------

namespace {

std::string cell(double value, int digits = 4) {
  return std::isfinite(value) ? fmt::format("{:.{}f}", value, digits) : "–";
}
std::string cell(const Spread& s, int digits = 4) {
  return s.n > 1 ? cell(s.mean, digits) + " ± " + cell(s.std, digits) : cell(s.mean, digits);
}

std::vector<std::string> spectrum_titles() {
  std::vector<std::string> titles;
  for (size_t k = 0; k + 2 < radius_edges.size(); ++k)
    titles.push_back(fmt::format("{:g}–{:g}", radius_edges[k], radius_edges[k + 1]));
  titles.push_back(fmt::format("≥{:g}", radius_edges[radius_edges.size() - 2]));
  titles.insert(titles.end(), {"median |λ|", "|λ|>1 %"});
  return titles;
}

std::vector<std::string> spectrum_cells(const SpectrumEssentials& e) {
  std::vector<std::string> cells;
  for (const double percent : e.percent) cells.push_back(cell(percent, 1));
  cells.resize(radius_edges.size() - 1, "–");
  cells.push_back(cell(e.median));
  cells.push_back(cell(e.expanding, 1));
  return cells;
}

std::vector<std::string> joined(std::vector<std::string> a, const std::vector<std::string>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

const char* const spectrum_about = "share of |λ| per bin in %";

/// A run folder, and where training stands in it.
struct RunLine {
  std::string path;
  RunResult result;
};

RunLine run_line(const std::string& path) {
  RunLine line{path, run_result(path).value()};
  // run.json keeps the step of the last checkpoint; a run that goes on is further.
  if (line.result.info.state == "running")
    for (const MetricsRow& row : RunFolder::open(path).read_metrics())
      line.result.info.step = std::max(line.result.info.step, row.step);
  return line;
}

void print_runs(const std::vector<RunLine>& runs, bool layers) {
  TextTable table({"run", "family", "task", "state", "steps", "accuracy", "loss", "time"}, 4);
  for (const RunLine& run : runs) {
    const RunInfo& info = run.result.info;
    table.add({run.path, info.family, info.task, info.state,
               fmt::format("{}/{}", info.step, info.total_steps), cell(run.result.accuracy.value_or(NAN)),
               cell(run.result.loss.value_or(NAN)), format_duration(info.wall_seconds)});
  }
  fmt::print("{}", table.text());
  for (const RunLine& run : runs)
    if (run.result.info.state == "failed") fmt::print("{}: {}\n", run.path, run.result.info.reason);
  TextTable spectra(joined({"run", "stage", "layer"}, spectrum_titles()), 2);
  for (const RunLine& run : runs)
    for (const char* stage : {"initial", "trained"}) {
      const std::vector<SpectrumEssentials> parts = spectrum_essentials(run.path, stage);
      if (parts.empty()) continue;
      if (layers)
        for (const SpectrumEssentials& e : parts)
          spectra.add(joined({run.path, stage, std::to_string(e.layer)}, spectrum_cells(e)));
      spectra.add(joined({run.path, stage, "mean"}, spectrum_cells(mean_of(parts))));
    }
  if (!spectra.empty()) fmt::print("\n{}:\n{}", spectrum_about, spectra.text());
}

void print_groups(const SweepStore& store, const std::vector<SweepGroup>& groups) {
  const std::vector<PointRecord> points = store.points_now();
  std::map<std::string, int> states;
  for (const PointRecord& p : points) ++states[p.state];
  std::string counts;
  for (const auto& [state, count] : states)
    counts += fmt::format("{}{} {}", counts.empty() ? "" : ", ", count, state);
  fmt::print("{}: {} points: {}\n", store.folder(), points.size(), counts);

  std::vector<std::string> keys;
  for (const SweepGroup& g : groups)
    for (const SweepSetting& s : g.settings)
      if (std::find(keys.begin(), keys.end(), s.key) == keys.end()) keys.push_back(s.key);
  const auto settings = [&](const SweepGroup& g) {
    std::vector<std::string> cells;
    for (const std::string& key : keys) {
      const auto at = std::ranges::find_if(g.settings, [&](const auto& s) { return s.key == key; });
      cells.push_back(at == g.settings.end() ? "–" : at->value);
    }
    return cells;
  };
  TextTable table(joined(keys, {"n", "accuracy", "loss", "steps", "s"}), keys.size());
  for (const SweepGroup& g : groups)
    table.add(joined(settings(g), {std::to_string(g.points.size()), cell(g.accuracy), cell(g.loss),
                                   cell(g.step.mean, 0), cell(g.seconds.mean, 1)}));
  fmt::print("{}", table.text());

  TextTable spectra(joined(joined(keys, {"stage"}), spectrum_titles()), keys.size() + 1);
  for (const SweepGroup& g : groups)
    for (const auto& [stage, e] : {std::pair{"initial", g.initial}, std::pair{"trained", g.trained}})
      if (e) spectra.add(joined(joined(settings(g), {stage}), spectrum_cells(*e)));
  if (!spectra.empty()) fmt::print("\n{}, mean over layers and seeds:\n{}", spectrum_about, spectra.text());

  for (const PointRecord& p : points)
    if (p.state == "failed")
      fmt::print("\n{} failed: {}\n", p.name, p.error);
    else if (p.state == "running" || p.state == "interrupted")
      fmt::print("\n{} {} ({} on {})\n", p.name, p.state, p.worker, p.device);
}

// --- JSON
// ---------------------------------------------------------------------------------------------------

void json_spectrum(JsonWriter& json, const char* key, const SpectrumEssentials& e) {
  json.key(key).begin_object();
  if (e.layer >= 0) json.field("layer", e.layer);
  json.key("radius_percent").values(e.percent).field("median_radius", e.median);
  json.field("expanding_percent", e.expanding).end_object();
}

void json_spread(JsonWriter& json, const char* key, const Spread& s) {
  json.key(key).begin_object().field("n", s.n).field("mean", s.mean).field("std", s.std).end_object();
}

void json_settings(JsonWriter& json, const std::vector<SweepSetting>& settings) {
  json.key("settings").begin_object();
  for (const SweepSetting& s : settings) json.field(s.key, s.value);
  json.end_object();
}

void json_run(JsonWriter& json, const RunLine& run) {
  const RunInfo& info = run.result.info;
  json.begin_object().field("run", run.path).field("family", info.family).field("task", info.task);
  json.field("seed", info.seed).field("state", info.state).field("reason", info.reason);
  json.field("step", info.step).field("total_steps", info.total_steps);
  json.field("accuracy", run.result.accuracy.value_or(NAN)).field("loss", run.result.loss.value_or(NAN));
  json.field("wall_seconds", info.wall_seconds);
  for (const char* stage : {"initial", "trained"}) {
    const std::vector<SpectrumEssentials> layers = spectrum_essentials(run.path, stage);
    if (layers.empty()) continue;
    json.key(stage).begin_object();
    json_spectrum(json, "mean", mean_of(layers));
    json.key("layers").begin_array();
    for (const SpectrumEssentials& e : layers) {
      json.begin_object();
      json_spectrum(json, "spectrum", e);
      json.end_object();
    }
    json.end_array().end_object();
  }
  json.end_object();
}

void json_sweep(JsonWriter& json, const SweepStore& store) {
  json.begin_object().field("sweep", store.folder()).key("groups").begin_array();
  for (const SweepGroup& g : sweep_groups(store)) {
    json.begin_object();
    json_settings(json, g.settings);
    json.field("n", g.points.size());
    json_spread(json, "accuracy", g.accuracy), json_spread(json, "loss", g.loss);
    json_spread(json, "steps", g.step), json_spread(json, "wall_seconds", g.seconds);
    if (g.initial) json_spectrum(json, "initial", *g.initial);
    if (g.trained) json_spectrum(json, "trained", *g.trained);
    json.end_object();
  }
  json.end_array().key("points").begin_array();
  for (const PointRecord& p : store.points_now()) {
    json.begin_object().field("name", p.name).field("state", p.state).field("run", store.run_path(p.name));
    json_settings(json, p.settings);
    json.field("accuracy", p.accuracy.value_or(NAN)).field("loss", p.loss.value_or(NAN));
    json.field("step", p.step.value_or(0)).field("wall_seconds", p.wall_seconds.value_or(NAN));
    json.field("attempts", p.attempts).field("error", p.error).end_object();
  }
  json.end_array().end_object();
}

void print_json(const std::vector<RunLine>& runs, const std::vector<const SweepStore*>& sweeps) {
  JsonWriter json(JsonWriter::Style::pretty);
  json.begin_object().key("runs").begin_array();
  for (const RunLine& run : runs) json_run(json, run);
  json.end_array().key("sweeps").begin_array();
  for (const SweepStore* store : sweeps) json_sweep(json, *store);
  fmt::print("{}\n", json.end_array().end_object().text());
}

}  // namespace

void print_sweep(const SweepStore& store, bool json) {
  json ? print_json({}, {&store}) : print_groups(store, sweep_groups(store));
}

int summary_command(const SummaryOptions& options) {
  std::vector<std::string> run_paths, sweep_paths;
  for (const std::string& path : options.paths) {
    const size_t before = run_paths.size() + sweep_paths.size();
    search_folders("summary", path, [&](const std::string& folder) {
      const bool sweep = SweepStore::exists(folder);  // its runs are told by the sweep
      const bool taken = sweep || RunFolder::exists(folder);
      if (taken) (sweep ? sweep_paths : run_paths).push_back(folder);
      return taken;
    });
    if (run_paths.size() + sweep_paths.size() == before)
      fail_usage(fmt::format("summary: no run and no sweep in '{}'", path));
  }
  std::vector<RunLine> runs;
  for (const std::string& path : run_paths) runs.push_back(run_line(path));
  std::vector<SweepStore> stores;
  for (const std::string& path : sweep_paths) stores.push_back(SweepStore::open(path));
  if (options.json) {
    std::vector<const SweepStore*> sweeps;
    for (const SweepStore& store : stores) sweeps.push_back(&store);
    print_json(runs, sweeps);
    return 0;
  }
  if (!runs.empty()) print_runs(runs, options.layers);
  for (const SweepStore& store : stores) {
    if (!runs.empty() || &store != &stores.front()) fmt::print("\n");
    print_groups(store, sweep_groups(store));
  }
  return 0;
}

}  // namespace eigentrace
