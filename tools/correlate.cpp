// `eigentrace correlate`: statistics of many runs against their accuracy.
#include "tools/correlate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <map>
#include <set>

#include "nn/config/config.h"
#include "spectral/statistics.h"
#include "tensor/error.h"
#include "tensor/io/file.h"
#include "tensor/io/json_writer.h"
#include "tensor/io/npy.h"
#include "tools/commands.h"

namespace eigentrace {
namespace {

constexpr double missing = std::numeric_limits<double>::quiet_NaN();

using Key = std::pair<std::string, int64_t>;  // statistic, layer
using Values = std::map<Key, double>;

/// Sizes and settings, not what a spectrum is like.
bool is_size(const std::string& name) {
  static const std::set<std::string> sizes{
      "published_binning", "time_varying", "sequences", "steps", "states", "count",
      "sequences_binned",  "non_finite",   "zeros"};
  const std::string last = name.substr(name.rfind('.') + 1);
  return sizes.count(name) > 0 || last == "count" || last == "threshold" || last == "starts" ||
         last == "censored" || last == "undefined" || name.ends_with("_percent.std");
}

std::string bin_name(std::span<const double> edges, size_t k, const char* unit) {
  return k + 2 == edges.size() ? fmt::format("[{:g}{},{:g}{}]", edges[k], unit, edges[k + 1], unit)
                               : fmt::format("[{:g}{},{:g}{})", edges[k], unit, edges[k + 1], unit);
}

/// "radius_percent[0.9,1)", "radius.q50": entry k of a field that is an array.
std::string entry_name(const std::string& field, size_t k) {
  if (field == "radius_percent.mean") return "radius_percent" + bin_name(radius_edges, k, "");
  if (field == "phase_percent.mean" && k + 1 < phase_edges_degrees.size())
    return "phase_percent" + bin_name(phase_edges_degrees, k, "°");
  if (field.ends_with("quantiles") && k < quantile_levels.size())
    return fmt::format("{}q{:g}", field.substr(0, field.size() - 9), 100 * quantile_levels[k]);
  if (field.starts_with("memory.") && k < memory_lags.size())
    return fmt::format("log|Φ| after {:g} steps, {}", memory_lags[k], field.substr(7));
  return fmt::format("{}[{}]", field, k);
}

/// The statistics over all eigenvalues of each layer, and their means over layers.
Values statistics_of(const std::string& npz, const CorrelateRequest& request) {
  Values values;
  if (!std::filesystem::exists(npz)) return values;
  const auto wanted = [&](const std::string& name) {
    return request.statistics.empty() ||
           std::any_of(request.statistics.begin(), request.statistics.end(),
                       [&](const std::string& part) { return name.find(part) != std::string::npos; });
  };
  std::map<std::string, std::pair<double, double>> sums;
  for (const auto& [path, array] : read_npz(npz)) {
    const size_t slash = path.find("/all/");
    if (!path.starts_with("layer") || slash == std::string::npos || array.dtype != DType::f64) continue;
    const int64_t layer = std::stoll(path.substr(5, slash - 5));
    const std::string field = path.substr(slash + 5);
    if (is_size(field)) continue;
    const auto numbers = array.as<double>();
    for (size_t k = 0; k < numbers.size(); ++k) {
      const std::string name = array.shape.empty() ? field : entry_name(field, k);
      if (!wanted(name)) continue;
      values[{name, layer}] = std::isfinite(numbers[k]) ? numbers[k] : missing;
      auto& [sum, count] = sums[name];
      sum += numbers[k], count += 1;
    }
  }
  for (const auto& [name, sum] : sums)
    values[{name, -1}] = std::isfinite(sum.first) ? sum.first / sum.second : missing;
  return values;
}

/// "section.key: value" lines of a configuration without seeds and what does not train: equal for runs of one
/// group.
std::vector<std::string> settings_of(const RunFolder& folder) {
  const std::string text = to_yaml(read_config_file(folder.config()).config);
  std::vector<std::string> lines, path;
  for (size_t start = 0, end; (end = text.find('\n', start)) != std::string::npos; start = end + 1) {
    const std::string line = text.substr(start, end - start);
    const size_t indent = line.find_first_not_of(' ');
    if (indent == std::string::npos || line[indent] == '#') continue;
    const size_t colon = line.find(':', indent);
    if (colon == std::string::npos) continue;
    path.resize(std::min(path.size(), indent / 2));
    path.push_back(line.substr(indent, colon - indent));
    const bool section = line.find_first_not_of(' ', colon + 1) == std::string::npos;
    if (section || path.back() == "seed" || path.back() == "save" || path[0] == "format") continue;
    lines.push_back(fmt::format("{}{}", fmt::join(path, "."), line.substr(colon)));
  }
  return lines;
}

double figure_of(const RunFolder& folder, const std::string& figure) {
  double value = missing;
  for (const MetricsRow& row : folder.read_metrics())
    if (row.split != "train") value = figure == "loss" ? row.loss : row.macro_accuracy.value_or(row.accuracy);
  return value;
}

void add_groups(CorrelationTable& table, const std::vector<std::vector<std::string>>& settings) {
  std::map<std::vector<std::string>, int64_t> numbers;
  std::map<std::string, int64_t> in_groups;
  std::vector<const std::vector<std::string>*> of_group;
  for (size_t r = 0; r < table.runs.size(); ++r) {
    const auto [found, fresh] = numbers.try_emplace(settings[r], int64_t(table.groups.size()));
    if (fresh) {
      table.groups.emplace_back();
      of_group.push_back(&found->first);
      for (const std::string& line : std::set<std::string>(settings[r].begin(), settings[r].end()))
        ++in_groups[line];
    }
    table.runs[r].group = found->second;
    table.groups[size_t(found->second)].runs.push_back(int64_t(r));
  }
  for (size_t g = 0; g < table.groups.size(); ++g) {
    RunGroup& group = table.groups[g];
    for (const std::string& line : *of_group[g])
      if (in_groups[line] < int64_t(table.groups.size())) group.differs.push_back(line);
    group.label = table.runs[size_t(group.runs[0])].family;
  }
  // What a reader tells groups of one family apart by.
  for (size_t g = 0; g < table.groups.size(); ++g) {
    RunGroup& group = table.groups[g];
    const auto alike = std::count_if(table.groups.begin(), table.groups.end(), [&](const RunGroup& other) {
      return table.runs[size_t(other.runs[0])].family == table.runs[size_t(group.runs[0])].family;
    });
    if (alike < 2) continue;
    std::string what;
    for (const std::string& line : group.differs) {
      bool same = true;  // in the groups of this family
      for (size_t o = 0; o < table.groups.size(); ++o)
        if (table.runs[size_t(table.groups[o].runs[0])].family == table.runs[size_t(group.runs[0])].family)
          same = same && std::find(of_group[o]->begin(), of_group[o]->end(), line) != of_group[o]->end();
      if (!same) what += (what.empty() ? " " : ", ") + line.substr(line.rfind('.', line.find(':')) + 1);
    }
    group.label += what;
  }
}

/// Values of the runs in `chosen` where both `x` and `y` are known.
struct Pairs {
  std::vector<double> x, y;
};
Pairs known_pairs(const std::vector<double>& x, const std::vector<double>& y) {
  Pairs pairs;
  for (size_t k = 0; k < x.size(); ++k)
    if (std::isfinite(x[k]) && std::isfinite(y[k])) pairs.x.push_back(x[k]), pairs.y.push_back(y[k]);
  return pairs;
}

std::vector<double> column(const std::vector<Values>& stage, const Key& key) {
  std::vector<double> values;
  for (const Values& run : stage) {
    const auto found = run.find(key);
    values.push_back(found == run.end() ? missing : found->second);
  }
  return values;
}

}  // namespace

CorrelationTable correlate_runs(const std::vector<RunFolder>& folders, const CorrelateRequest& request) {
  if (request.figure != "accuracy" && request.figure != "loss")
    fail_usage(fmt::format("--figure: accuracy or loss expected, found '{}'", request.figure));
  CorrelationTable table;
  table.request = request;
  std::vector<std::vector<std::string>> settings;
  std::map<std::string, std::vector<Values>> stages;
  std::vector<double> figures;
  for (const RunFolder& folder : folders) {
    const RunInfo info = folder.read_info();
    CorrelatedRun run;
    run.path = folder.path(), run.family = info.family, run.seed = info.seed;
    run.name = info.name.empty() ? std::filesystem::path(folder.path()).filename().string() : info.name;
    run.figure = figure_of(folder, request.figure);
    const Values initial = statistics_of(folder.spectrum("initial") + ".npz", request);
    const Values trained = statistics_of(folder.spectrum("trained") + ".npz", request);
    if (!std::isfinite(run.figure) || trained.empty()) continue;  // not evaluated or not read yet
    Values change;
    for (const auto& [key, value] : trained)
      if (const auto before = initial.find(key); before != initial.end())
        change[key] = value - before->second;
    stages["initial"].push_back(initial), stages["trained"].push_back(trained),
        stages["change"].push_back(change);
    settings.push_back(settings_of(folder));
    figures.push_back(run.figure);
    table.runs.push_back(std::move(run));
  }
  if (table.runs.size() < 2)
    fail_usage(fmt::format(
        "correlate: at least two runs with an evaluation and spectrum_trained.npz expected, found {} "
        "of {}",
        table.runs.size(), folders.size()));
  add_groups(table, settings);
  for (RunGroup& group : table.groups) {
    std::vector<double> values;
    for (const int64_t r : group.runs) values.push_back(figures[size_t(r)]);
    group.figure = bootstrap_mean(values, request.seed, request.level, request.resamples);
  }
  std::set<Key> keys;
  for (const Values& run : stages["trained"])
    for (const auto& [key, value] : run) keys.insert(key);
  for (const char* stage : {"initial", "trained", "change"})
    for (const Key& key : keys) {
      StatisticCorrelation row;
      row.stage = stage, row.statistic = key.first, row.layer = key.second;
      row.values = column(stages[stage], key);
      if (known_pairs(row.values, figures).x.size() >= 2) table.correlations.push_back(std::move(row));
    }
  for (size_t g = 0; g < table.groups.size(); ++g)
    for (const Key& key : keys) {
      StatisticChange row;
      row.group = int64_t(g), row.statistic = key.first, row.layer = key.second;
      table.changes.push_back(std::move(row));
    }
#pragma omp parallel for schedule(dynamic, 4)
  for (size_t n = 0; n < table.correlations.size(); ++n) {
    StatisticCorrelation& row = table.correlations[n];
    const Pairs pairs = known_pairs(row.values, figures);
    row.correlation = spearman(pairs.x, pairs.y, request.seed, request.permutations);
    row.interval = bootstrap_spearman(pairs.x, pairs.y, request.seed, request.level, request.resamples);
  }
  for (size_t first = 0; first < table.correlations.size();) {
    size_t last = first;
    std::vector<double> p;
    while (last < table.correlations.size() &&
           table.correlations[last].stage == table.correlations[first].stage)
      p.push_back(table.correlations[last++].correlation.p_value);
    const std::vector<double> q = false_discovery_rates(p);
    for (size_t k = first; k < last; ++k) table.correlations[k].q_value = q[k - first];
    first = last;
  }
  const std::vector<Values>&initial = stages["initial"], &trained = stages["trained"];
#pragma omp parallel for schedule(dynamic, 4)
  for (size_t n = 0; n < table.changes.size(); ++n) {
    StatisticChange& row = table.changes[n];
    std::vector<double> before, after;
    const Key key{row.statistic, row.layer};
    for (const int64_t r : table.groups[size_t(row.group)].runs) {
      const auto x = initial[size_t(r)].find(key), y = trained[size_t(r)].find(key);
      if (x == initial[size_t(r)].end() || y == trained[size_t(r)].end()) continue;
      if (std::isfinite(x->second) && std::isfinite(y->second))
        before.push_back(x->second), after.push_back(y->second);
    }
    if (before.empty()) continue;  // n = 0
    row.initial = bootstrap_mean(before, request.seed, request.level, request.resamples);
    row.trained = bootstrap_mean(after, request.seed, request.level, request.resamples);
    row.change =
        paired_change(before, after, request.seed, request.level, request.resamples, request.permutations);
  }
  std::erase_if(table.changes, [](const StatisticChange& row) { return row.initial.n == 0; });
  return table;
}

std::string correlations_json(const CorrelationTable& table) {
  JsonWriter json(JsonWriter::Style::pretty);
  const auto interval = [&](const char* name, const MeanInterval& m) {
    json.key(name)
        .begin_object()
        .field("n", m.n)
        .field("mean", m.mean)
        .field("low", m.low)
        .field("high", m.high);
    json.end_object();
  };
  const CorrelateRequest& request = table.request;
  json.begin_object().field("format", correlations_format).field("figure", request.figure);
  json.field("level", request.level).field("permutations", request.permutations);
  json.field("resamples", request.resamples).field("seed", request.seed).key("runs").begin_array();
  for (const CorrelatedRun& run : table.runs) {
    json.begin_object().field("name", run.name).field("path", run.path).field("family", run.family);
    json.field("seed", run.seed).field("group", run.group).field("figure", run.figure).end_object();
  }
  json.end_array().key("groups").begin_array();
  for (const RunGroup& group : table.groups) {
    json.begin_object().field("label", group.label).key("differs").values(group.differs);
    json.key("runs").values(group.runs);
    interval("figure", group.figure);
    json.end_object();
  }
  json.end_array().key("correlations").begin_array();
  for (const StatisticCorrelation& row : table.correlations) {
    json.begin_object().field("stage", row.stage).field("statistic", row.statistic).field("layer", row.layer);
    json.field("n", row.correlation.n).field("rho", row.correlation.rho);
    json.field("p_value", row.correlation.p_value).field("q_value", row.q_value);
    json.field("exact", row.correlation.exact)
        .field("low", row.interval.low)
        .field("high", row.interval.high);
    json.key("values").values(row.values).end_object();
  }
  json.end_array().key("changes").begin_array();
  for (const StatisticChange& row : table.changes) {
    json.begin_object().field("group", row.group).field("statistic", row.statistic).field("layer", row.layer);
    interval("initial", row.initial), interval("trained", row.trained),
        interval("change", row.change.difference);
    json.field("p_value", row.change.p_value).field("exact", row.change.exact).end_object();
  }
  json.end_array().end_object();
  return json.text();
}

std::string correlations_text(const CorrelationTable& table, const std::string& stage, size_t rows) {
  std::string text;
  std::vector<const StatisticCorrelation*> chosen;
  for (const StatisticCorrelation& row : table.correlations)
    if (row.stage == stage && std::isfinite(row.correlation.rho)) chosen.push_back(&row);
  std::stable_sort(chosen.begin(), chosen.end(), [](const auto* a, const auto* b) {
    return std::abs(a->correlation.rho) > std::abs(b->correlation.rho);
  });
  text += fmt::format("{} statistics of {} runs against {} ({}); the strongest:\n", chosen.size(),
                      table.runs.size(), table.request.figure, stage);
  text += fmt::format("{:<32} {:>5} {:>3} {:>7} {:>17} {:>8} {:>8}\n", "statistic", "layer", "n", "rho",
                      fmt::format("{:g} % interval", 100 * table.request.level), "p", "q");
  for (size_t k = 0; k < std::min(rows, chosen.size()); ++k) {
    const StatisticCorrelation& row = *chosen[k];
    text += fmt::format(
        "{:<32} {:>5} {:>3} {:>7.3f} {:>17} {:>8.4f} {:>8.4f}\n", row.statistic,
        row.layer < 0 ? "mean" : std::to_string(row.layer), row.correlation.n, row.correlation.rho,
        std::isnan(row.interval.low) ? "–"
                                     : fmt::format("{:.3f} … {:.3f}", row.interval.low, row.interval.high),
        row.correlation.p_value, row.q_value);
  }
  text += fmt::format("\n{:<40} {:>4} {:>9} {:>19}\n", "group", "runs", table.request.figure,
                      "interval over seeds");
  for (const RunGroup& group : table.groups)
    text += fmt::format("{:<40} {:>4} {:>9.4f} {:>19}\n", group.label, group.runs.size(), group.figure.mean,
                        std::isnan(group.figure.low)
                            ? "–"
                            : fmt::format("{:.4f} … {:.4f}", group.figure.low, group.figure.high));
  return text;
}

int correlate_command(const CorrelateOptions& options) {
  if (options.stage != "initial" && options.stage != "trained" && options.stage != "change")
    fail_usage(fmt::format("--stage: initial, trained or change expected, found '{}'", options.stage));
  if (options.permutations < 1 || options.resamples < 1)
    fail_usage("correlate: --permutations, --resamples: a number from 1");
  if (!(options.level > 0 && options.level < 1)) fail_usage("correlate: --level: a number between 0 and 1");
  std::vector<RunFolder> folders;
  std::set<std::filesystem::path> known;  // a run named twice would count twice
  for (const std::string& path : options.runs) {
    bool any = false;
    search_folders("correlate", path, [&](const std::string& folder) {
      if (!RunFolder::exists(folder)) return false;
      if (known.insert(std::filesystem::canonical(folder)).second) folders.push_back(RunFolder::open(folder));
      return any = true;
    });
    if (!any) fail_usage(fmt::format("correlate: no run in '{}'", path));
  }
  CorrelateRequest request;
  request.figure = options.figure, request.permutations = options.permutations;
  request.resamples = options.resamples, request.level = options.level, request.seed = options.seed;
  request.statistics = options.statistics;
  const CorrelationTable table = correlate_runs(folders, request);
  if (table.runs.size() < folders.size())
    fmt::print(stderr, "correlate: {} of {} runs left out: no evaluation or no spectrum_trained.npz yet\n",
               folders.size() - table.runs.size(), folders.size());
  const std::string json = correlations_json(table);
  write_atomically(options.out, json + "\n");
  fmt::print("{}", options.json ? json + "\n" : correlations_text(table, options.stage));
  fmt::print(stderr, "correlate: {}\n", options.out);
  return 0;
}

}  // namespace eigentrace
