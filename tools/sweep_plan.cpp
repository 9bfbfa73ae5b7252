// From a sweep's file to its points.
#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <functional>
#include <map>
#include <set>

#include "nn/config/config.h"
#include "nn/config/field_io.h"
#include "nn/config/node.h"
#include "nn/schedule.h"
#include "tensor/error.h"
#include "tensor/io/file.h"
#include "tensor/io/json_writer.h"
#include "tools/sweep.h"

namespace eigentrace {
namespace {

constexpr size_t most_points = 100000, longest_name = 100;
constexpr const char* base_key = "base_config";

/// What varies together: each entry is one assignment of all its keys.
using Axis = std::vector<std::vector<SweepSetting>>;

struct Parser {
  std::string origin;
  std::vector<Axis> axes;
  std::vector<std::string> common;        // "a.b=value"
  std::map<std::string, int> lines = {};  // of the keys seen so far

  [[noreturn]] void error(int line, const std::string& what) const {
    fail_usage(line > 0 ? fmt::format("{}:{}: {}", origin, line, what) : fmt::format("{}: {}", origin, what));
  }

  void claim_key(const std::string& key, int line) {
    const auto [at, fresh] = lines.emplace(key, line);
    if (!fresh)
      error(line, fmt::format("'{}' is given twice (first in line {}); remove one", key, at->second));
  }

  /// A value as YAML text that reads back to the same.
  std::string value_text(const ConfigNode& node, const std::string& key) const {
    switch (node.kind) {
      case ConfigNode::Kind::null:
        return "null";
      case ConfigNode::Kind::scalar: {
        const bool plain = std::ranges::all_of(node.text, [](unsigned char c) {
          return std::isalnum(c) || std::string("_.+-/~").find(static_cast<char>(c)) != std::string::npos;
        });
        return plain && !node.quoted && !node.text.empty() ? node.text : json_quoted(node.text);
      }
      case ConfigNode::Kind::list: {
        std::vector<std::string> items;
        for (const ConfigNode& item : node.items) items.push_back(value_text(item, key));
        return fmt::format("[{}]", fmt::join(items, ", "));
      }
      case ConfigNode::Kind::map:
        break;
    }
    error(node.line, fmt::format("{}: expected values (numbers, words or lists), found a section", key));
  }

  std::vector<SweepSetting> values(const std::string& key, const ConfigNode& node) const {
    if (node.kind != ConfigNode::Kind::list)
      error(node.line, fmt::format("{}: expected a list of values, found {}; write {}: [{}]", key,
                                   node.kind == ConfigNode::Kind::null ? "nothing" : "one", key, node.text));
    if (node.items.empty()) error(node.line, fmt::format("{}: the list is empty", key));
    std::vector<SweepSetting> out;
    for (const ConfigNode& item : node.items) {
      out.push_back({key, value_text(item, key)});
      if (std::find(out.begin(), out.end() - 1, out.back()) != out.end() - 1)
        error(node.line, fmt::format("{}: the value {} stands twice in the list", key, out.back().value));
    }
    return out;
  }

  /// Calls visit(dotted key, node) for each leaf below a section.
  void leaves(const ConfigNode& node, const std::string& prefix,
              const std::function<void(const std::string&, const ConfigNode&)>& visit) const {
    for (const ConfigEntry& entry : node.entries) {
      const std::string key = prefix.empty() ? entry.key : prefix + "." + entry.key;
      if (entry.value.kind == ConfigNode::Kind::map)
        leaves(entry.value, key, visit);
      else
        visit(key, entry.value);
    }
  }

  const ConfigNode& section(const ConfigNode& node, const std::string& name) const {
    if (node.kind != ConfigNode::Kind::map)
      error(node.line, fmt::format("{}: expected a section of keys with lists of values", name));
    return node;
  }

  void read_grid(const ConfigNode& node, const std::string& name) {
    leaves(section(node, name), "", [&](const std::string& key, const ConfigNode& list) {
      claim_key(key, list.line);
      Axis axis;
      for (SweepSetting& setting : values(key, list)) axis.push_back({std::move(setting)});
      axes.push_back(std::move(axis));
    });
  }

  void read_zip(const ConfigNode& node) {
    Axis axis;
    std::string first;
    leaves(section(node, "zip"), "", [&](const std::string& key, const ConfigNode& list) {
      claim_key(key, list.line);
      // In a zip a value may come twice: it is the rows that differ.
      if (list.kind != ConfigNode::Kind::list || list.items.empty()) values(key, list);
      if (axis.empty()) axis.resize(list.items.size()), first = key;
      if (axis.size() != list.items.size())
        error(list.line, fmt::format("zip: {} has {} values, {} has {}; they are walked together and must "
                                     "have the same number",
                                     key, list.items.size(), first, axis.size()));
      for (size_t i = 0; i < axis.size(); ++i) axis[i].push_back({key, value_text(list.items[i], key)});
    });
    if (!axis.empty()) axes.push_back(std::move(axis));
  }

  void read_seeds(const ConfigNode& node) {
    claim_key("seed", node.line);
    Axis axis;
    for (SweepSetting& setting : values("seeds", node)) axis.push_back({{"seed", std::move(setting.value)}});
    axes.push_back(std::move(axis));
  }

  void read_set(const ConfigNode& node) {
    leaves(section(node, "set"), "", [&](const std::string& key, const ConfigNode& value) {
      claim_key(key, value.line);
      common.push_back(key + "=" + value_text(value, key));
    });
  }

  void read_bases(const ConfigNode& node, bool several) {
    Axis axis;
    if (node.kind == ConfigNode::Kind::scalar)
      axis.push_back({{base_key, node.text}});
    else if (several && node.kind == ConfigNode::Kind::list && !node.items.empty())
      for (const ConfigNode& item : node.items) {
        if (item.kind != ConfigNode::Kind::scalar) error(node.line, "base_config: expected paths");
        axis.push_back({{base_key, item.text}});
      }
    else
      error(node.line, several ? "base_config: expected a path or a list of paths"
                               : "base_config: expected the path of one file");
    for (size_t i = 0; i < axis.size(); ++i)
      for (size_t j = 0; j < i; ++j)
        if (axis[i] == axis[j])
          error(node.line, fmt::format("base_config: '{}' stands twice", axis[i][0].value));
    axes.insert(axes.begin(), std::move(axis));
  }

  /// Returns true iff the file is in our form.
  bool read(const ConfigNode& root) {
    if (root.kind != ConfigNode::Kind::map) error(0, "expected keys: base_config and what varies");
    const ConfigNode* format = root.find("format");
    const bool ours = format != nullptr;
    if (ours && format->text != sweep_format)
      error(format->line, fmt::format("format: expected {}, found '{}'{}", sweep_format, format->text,
                                      format->text == config_format
                                          ? "; that is one run's configuration: name it as base_config"
                                          : ""));
    const std::vector<std::string> known =
        ours ? std::vector<std::string>{"format", base_key, "set", "grid", "zip", "seeds"}
             : std::vector<std::string>{base_key, "sweep"};
    for (const ConfigEntry& entry : root.entries)
      if (std::find(known.begin(), known.end(), entry.key) == known.end())
        error(entry.value.line,
              fmt::format("{}: there is no such key{}{}", entry.key, suggestion(entry.key, known),
                          ours ? "" : fmt::format(" (format: {} allows more)", sweep_format)));
    for (const ConfigEntry& entry : root.entries) {
      if (entry.key == "sweep" || entry.key == "grid") read_grid(entry.value, entry.key);
      if (entry.key == "zip") read_zip(entry.value);
      if (entry.key == "seeds") read_seeds(entry.value);
      if (entry.key == "set") read_set(entry.value);
    }
    if (!ours && !root.find("sweep")) error(0, "sweep: is missing: the keys that vary and their values");
    const ConfigNode* base = root.find(base_key);
    if (!base) error(0, "base_config: is missing: the configuration that the points vary");
    read_bases(*base, ours);
    return ours;
  }
};

std::string find_base(const std::string& path, const std::string& origin) {
  namespace fs = std::filesystem;
  const fs::path beside = fs::path(origin).parent_path() / path;
  for (const fs::path& candidate : {beside, fs::path(path)})
    if (fs::is_regular_file(candidate)) return candidate.lexically_normal().string();
  fail_usage(fmt::format("{}: base_config: no file '{}', neither beside the sweep's file ({}) nor from here",
                         origin, path, beside.lexically_normal().string()));
}

// --- names
// --------------------------------------------------------------------------------------------------

std::string plain_name(const std::string& text) {
  std::string out;
  for (const char c : text) {
    const bool keep =
        std::isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '+' || c == '-' || c == '_';
    if (keep)
      out += c;
    else if (!out.empty() && out.back() != '-')
      out += '-';
  }
  while (!out.empty() && out.back() == '-') out.pop_back();
  return out.empty() ? "empty" : out;
}

/// Its last part, unless two keys end alike.
std::string short_key(const std::string& key, const std::vector<std::string>& keys) {
  const auto last = [](const std::string& k) { return k.substr(k.rfind('.') + 1); };
  const auto alike = std::ranges::count_if(keys, [&](const std::string& k) { return last(k) == last(key); });
  return alike > 1 ? key : last(key);
}

std::string point_name(const SweepPoint& point, const std::vector<std::string>& keys) {
  std::vector<std::string> parts;
  for (const SweepSetting& s : point.settings)
    parts.push_back(s.key == base_key ? plain_name(std::filesystem::path(s.value).stem().string())
                                      : short_key(s.key, keys) + "=" + plain_name(s.value));
  return parts.empty() ? "run" : fmt::format("{}", fmt::join(parts, "_"));
}

std::string settings_text(const SweepPoint& point) {
  std::vector<std::string> parts;
  for (const SweepSetting& s : point.settings) parts.push_back(s.key + "=" + s.value);
  return fmt::format("{}", fmt::join(parts, " "));
}

/// Names that are too long or not unique get a number made of their settings.
void settle_names(std::vector<SweepPoint>& points) {
  std::map<std::string, int> uses;
  for (const SweepPoint& point : points) ++uses[point.name];
  for (SweepPoint& point : points) {
    if (uses[point.name] == 1 && point.name.size() <= longest_name) continue;
    const std::string settings = settings_text(point);
    point.name = fmt::format("{}_{:08x}", point.name.substr(0, longest_name - 9),
                             crc32(settings.data(), settings.size()));
  }
  std::set<std::string> names;
  for (const SweepPoint& point : points)
    if (!names.insert(point.name).second)
      fail(fmt::format("sweep: two points have the name {}; rename a base configuration", point.name));
}

// --- points
// -------------------------------------------------------------------------------------------------

std::optional<int64_t> expected_steps(const RunConfig& config) {
  if (config.train.total_steps) return config.train.total_steps;
  int64_t examples = 0;
  TaskConfig dataset = config.dataset;
  std::visit(
      [&](auto& c) {
        for (const Field& field : fields_of(c))
          if (field.name == "num_train_examples" && field.applies)
            examples = *std::get<int64_t*>(field.place);
      },
      dataset);
  if (examples <= 0 || config.train.batch_size > examples) return {};
  return LearningRates(config.train, examples).total_steps();
}

void resolve(SweepPoint& point, const std::string& base_text, std::vector<std::string> overrides,
             const std::string& origin, std::set<std::string>& seen, std::vector<std::string>& notices) {
  for (const SweepSetting& s : point.settings)
    if (s.key != base_key) overrides.push_back(s.key + "=" + s.value);
  LoadedConfig loaded;
  try {
    loaded = read_config(base_text, point.base, overrides);
  } catch (const UsageError& error) {
    fail_usage(fmt::format("{}: point {}: {}", origin, point.name, error.what()));
  }
  point.config = to_yaml(loaded.config);
  point.task = task_name(loaded.config.dataset);
  point.seed = loaded.config.seed;
  point.epochs = loaded.config.train.num_epochs;
  if (loaded.config.train.steps()) point.epochs.reset();
  point.steps = expected_steps(loaded.config);
  for (const std::string& notice : loaded.notices)
    if (seen.insert(notice).second) notices.push_back(notice);
}

std::string override_key_of(const std::string& text) { return text.substr(0, text.find('=')); }

}  // namespace

SweepPlan read_sweep(const std::string& text, const std::string& origin,
                     const std::vector<std::string>& overrides) {
  Parser parser{origin, {}, {}};
  const bool ours = parser.read(parse_yaml(text, origin));
  for (const std::string& override_text : overrides) {
    const std::string key = override_key_of(override_text);
    for (const Axis& axis : parser.axes)
      for (const SweepSetting& s : axis[0])
        if (s.key == key)
          fail_usage(fmt::format("--set {}: has no effect: {} varies '{}'", override_text, origin, key));
  }
  std::vector<std::string> common = parser.common;
  common.insert(common.end(), overrides.begin(), overrides.end());

  size_t count = 1;
  std::vector<std::string> keys;
  for (const Axis& axis : parser.axes) {
    count *= axis.size();
    if (count > most_points) fail_usage(fmt::format("{}: more than {} points", origin, most_points));
    for (const SweepSetting& s : axis[0]) keys.push_back(s.key);
  }

  SweepPlan plan;
  plan.name = plain_name(std::filesystem::path(origin).stem().string());
  const bool one_base = parser.axes[0].size() == 1;
  std::map<std::string, std::pair<std::string, std::string>> bases;  // as written → path, text
  for (const auto& option : parser.axes[0]) {
    const std::string path = find_base(option[0].value, origin);
    bases[option[0].value] = {path, read_file(path, uint64_t{1} << 20)};
  }
  for (size_t number = 0; number < count; ++number) {
    SweepPoint& point = plan.points.emplace_back();
    size_t rest = number, block = count;
    for (const Axis& axis : parser.axes) {
      block /= axis.size();
      const std::vector<SweepSetting>& chosen = axis[rest / block];
      rest %= block;
      point.settings.insert(point.settings.end(), chosen.begin(), chosen.end());
    }
    point.base = bases[point.settings[0].value].first;
    if (one_base) point.settings.erase(point.settings.begin());
    point.name = point_name(point, keys);
  }
  settle_names(plan.points);

  std::set<std::string> seen;
  std::map<std::string, std::string> runs;  // resolved configuration → point
  for (SweepPoint& point : plan.points) {
    const std::string& written = one_base ? parser.axes[0][0][0].value : point.settings[0].value;
    resolve(point, bases[written].second, common, origin, seen, plan.notices);
    const auto [at, fresh] = runs.emplace(point.config, point.name);
    if (fresh) continue;
    const std::string same =
        fmt::format("{}: points {} and {} are the same run", origin, at->second, point.name);
    if (ours) fail_usage(same + ": a key that varies has no effect, or a value stands twice");
    plan.notices.push_back(same);
  }
  return plan;
}

SweepPlan read_sweep_file(const std::string& path, const std::vector<std::string>& overrides) {
  return read_sweep(read_file(path, uint64_t{1} << 20), path, overrides);
}

std::string plan_table(const SweepPlan& plan, const std::vector<std::string>& states) {
  size_t width = 5;
  for (const SweepPoint& point : plan.points) width = std::max(width, point.name.size());
  std::string text = fmt::format("{:>5}  {:<{}}  {:>9}  {:<12} {}\n", "", "point", width, "steps",
                                 states.empty() ? "" : "state", "settings");
  for (size_t i = 0; i < plan.points.size(); ++i) {
    const SweepPoint& point = plan.points[i];
    const std::string steps = point.steps    ? std::to_string(*point.steps)
                              : point.epochs ? fmt::format("{} epochs", *point.epochs)
                                             : "?";
    text += fmt::format("{:>5}  {:<{}}  {:>9}  {:<12} {}\n", i, point.name, width, steps,
                        states.empty() ? "" : states[i], settings_text(point));
  }
  return text;
}

}  // namespace eigentrace
