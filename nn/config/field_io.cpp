#include "nn/config/field_io.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>

#include "tensor/error.h"
#include "tensor/io/json_writer.h"

namespace eigentrace {
namespace {

[[noreturn]] void expected(const ConfigPlace& place, const std::string& what, const ConfigNode& node) {
  std::string found = "nothing";
  if (node.kind == ConfigNode::Kind::scalar)
    found = "'" + node.text + "'" + (node.quoted ? " in quotes" : "");
  if (node.kind == ConfigNode::Kind::list) found = "a list";
  if (node.kind == ConfigNode::Kind::map) found = "a section";
  fail_usage(fmt::format("{}: expected {}, found {}", place.text(), what, found));
}

bool is_null(const ConfigNode& node) {
  if (node.kind == ConfigNode::Kind::null) return true;
  return node.kind == ConfigNode::Kind::scalar && !node.quoted &&
         (node.text.empty() || node.text == "~" || node.text == "null" || node.text == "Null" ||
          node.text == "NULL" || node.text == "None");
}

bool plain(const ConfigNode& node) { return node.kind == ConfigNode::Kind::scalar && !node.quoted; }

/// Without the underscores of YAML 1.1 integers (40_000) and a leading plus.
std::string digits_of(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool between = i > 0 && i + 1 < text.size() &&
                         std::isdigit(static_cast<unsigned char>(text[i - 1])) &&
                         std::isdigit(static_cast<unsigned char>(text[i + 1]));
    if ((text[i] == '_' && between) || (text[i] == '+' && i == 0)) continue;
    out += text[i];
  }
  return out;
}

template <class T>
bool parse_number(const std::string& text, T& value) {
  const std::string digits = digits_of(text);
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  return error == std::errc() && end == digits.data() + digits.size() && !digits.empty();
}

template <class T>
void assign(T& value, const ConfigNode& node, const ConfigPlace& place);

template <>
void assign(bool& value, const ConfigNode& node, const ConfigPlace& place) {
  std::string word = node.text;
  std::transform(word.begin(), word.end(), word.begin(), [](unsigned char c) { return std::tolower(c); });
  const bool yes = word == "true" || word == "yes" || word == "on";
  if (!plain(node) || !(yes || word == "false" || word == "no" || word == "off"))
    expected(place, "True or False", node);
  value = yes;
}

template <>
void assign(int64_t& value, const ConfigNode& node, const ConfigPlace& place) {
  if (!plain(node) || !parse_number(node.text, value)) expected(place, "an integer", node);
}

template <>
void assign(uint64_t& value, const ConfigNode& node, const ConfigPlace& place) {
  if (!plain(node) || !parse_number(node.text, value))
    expected(place, "an integer that is not negative", node);
}

template <>
void assign(double& value, const ConfigNode& node, const ConfigPlace& place) {
  if (!plain(node) || !parse_number(node.text, value) || !std::isfinite(value))
    expected(place, "a finite number", node);
}

template <>
void assign(std::string& value, const ConfigNode& node, const ConfigPlace& place) {
  if (node.kind != ConfigNode::Kind::scalar) expected(place, "text", node);
  value = node.text;
}

template <class T>
void assign_list(std::vector<T>& value, const ConfigNode& node, const ConfigPlace& place) {
  if (node.kind != ConfigNode::Kind::list) expected(place, "a list", node);
  value.clear();
  for (const ConfigNode& item : node.items) assign(value.emplace_back(), item, place);
}

template <class T>
void assign_optional(std::optional<T>& value, const ConfigNode& node, const ConfigPlace& place) {
  if (is_null(node))
    value.reset();
  else
    assign(value.emplace(), node, place);
}

void assign_enum(const EnumField& field, const ConfigNode& node, const ConfigPlace& place) {
  const std::vector<std::string> words(field.words.begin(), field.words.end());
  const std::string word = is_null(node) ? "none" : node.text;
  const auto found = std::find(words.begin(), words.end(), word);
  if (found == words.end()) {
    if (node.kind != ConfigNode::Kind::scalar)
      expected(place, fmt::format("one of {}", fmt::join(words, ", ")), node);
    fail_usage(fmt::format("{}: expected one of {}, found '{}'", place.text(), fmt::join(words, ", "), word));
  }
  field.set(static_cast<size_t>(found - words.begin()));
}

std::string yaml_of(bool x) { return x ? "True" : "False"; }
std::string yaml_of(int64_t x) { return std::to_string(x); }
std::string yaml_of(uint64_t x) { return std::to_string(x); }
std::string yaml_of(double x) {
  std::string text = fmt::format("{}", x);
  // YAML 1.1 reads 1e-07 as text: it wants a point.
  if (text.find('.') == std::string::npos) {
    const size_t e = text.find('e');
    text.insert(e == std::string::npos ? text.size() : e, ".0");
  }
  return text;
}
std::string yaml_of(const std::string& x) {
  double number = 0;
  bool quote = x.empty() || parse_number(x, number) || x == "null" || x == "None";
  for (const char* word : {"true", "false", "yes", "no", "on", "off", "True", "False"}) quote |= x == word;
  for (unsigned char c : x) quote |= !(std::isalnum(c) || c == '_' || c == '.' || c == '/' || c == '-');
  quote |= !x.empty() && (x[0] == '-' || x[0] == '.');
  return quote ? json_quoted(x) : x;
}
template <class T>
std::string yaml_of(const std::vector<T>& x) {
  std::vector<std::string> items;
  items.reserve(x.size());
  for (const T& e : x) items.push_back(yaml_of(e));
  return fmt::format("[{}]", fmt::join(items, ", "));
}
template <class T>
std::string yaml_of(const std::optional<T>& x) {
  return x ? yaml_of(*x) : "null";
}

}  // namespace

std::string ConfigPlace::text() const {
  if (line > 0) return fmt::format("{}:{}: {}", origin, line, path);
  return origin.empty() ? path : fmt::format("{}: {}", origin, path);
}

ConfigPlace ConfigPlace::below(const std::string& key, const ConfigNode& node) const {
  return {origin, path.empty() ? key : path + "." + key, node.line};
}

void assign_field(const Field& field, const ConfigNode& node, const ConfigPlace& place) {
  std::visit(
      [&](const auto& to) {
        using To = std::decay_t<decltype(to)>;
        if constexpr (std::is_same_v<To, EnumField>)
          assign_enum(to, node, place);
        else if constexpr (std::is_same_v<To, std::vector<double>*> ||
                           std::is_same_v<To, std::vector<std::string>*>)
          assign_list(*to, node, place);
        else if constexpr (requires { to->reset(); })
          assign_optional(*to, node, place);
        else
          assign(*to, node, place);
      },
      field.place);
}

std::string field_yaml(const Field& field) {
  return std::visit(
      [](const auto& from) -> std::string {
        if constexpr (std::is_same_v<std::decay_t<decltype(from)>, EnumField>)
          return from.words[from.get()];
        else
          return yaml_of(*from);
      },
      field.place);
}

void write_field(JsonWriter& json, const Field& field) {
  json.key(field.name);
  std::visit(
      [&](const auto& from) {
        using From = std::decay_t<decltype(from)>;
        if constexpr (std::is_same_v<From, EnumField>) {
          json.value(from.words[from.get()]);
        } else if constexpr (std::is_same_v<From, std::vector<double>*> ||
                             std::is_same_v<From, std::vector<std::string>*>) {
          json.values(*from);
        } else if constexpr (requires { from->reset(); }) {
          if (*from)
            json.value(**from);
          else
            json.null();
        } else {
          json.value(*from);
        }
      },
      field.place);
}

std::string nearest(const std::string& word, std::span<const std::string> candidates) {
  std::string best;
  size_t best_distance = std::max<size_t>(2, word.size() / 2) + 1;
  for (const std::string& candidate : candidates) {
    std::vector<size_t> row(candidate.size() + 1);
    std::iota(row.begin(), row.end(), size_t{0});
    for (size_t i = 0; i < word.size(); ++i) {
      size_t diagonal = row[0];
      row[0] = i + 1;
      for (size_t j = 0; j < candidate.size(); ++j) {
        const size_t change = diagonal + (std::tolower(static_cast<unsigned char>(word[i])) !=
                                          std::tolower(static_cast<unsigned char>(candidate[j])));
        diagonal = row[j + 1];
        row[j + 1] = std::min({row[j + 1] + 1, row[j] + 1, change});
      }
    }
    if (row.back() < best_distance) best_distance = row.back(), best = candidate;
  }
  return best;
}

std::string suggestion(const std::string& word, std::span<const std::string> candidates) {
  const std::string guess = nearest(word, candidates);
  if (!guess.empty()) return fmt::format("; did you mean '{}'?", guess);
  return fmt::format("; known are {}", fmt::join(candidates, ", "));
}

}  // namespace eigentrace
