#pragma once
// One description of a configuration struct's keys serves reading, --set, printing, JSON and equality:
//
//   template <class V> void visit_fields(V& v, MyConfig& c) {
//     v("width", c.width, "what it is");
//     v("taps", c.taps, "what it is", c.width > 1, "width is 1");   // read only where the condition holds
//   }
//
// Types: bool, int64_t, uint64_t, double, std::string, lists of double or text, an enum with enum_names, and
// std::optional of a number or text (null: not set).
#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <type_traits>
#include <variant>
#include <vector>

namespace eigentrace {

/// An enum's field: the words of its values, in order, and access by number. Words come from
/// `constexpr auto enum_names(MyEnum) { return std::array{"first", "second"}; }` beside the enum.
struct EnumField {
  std::vector<const char*> words;
  std::function<size_t()> get;
  std::function<void(size_t)> set;
};

using FieldPlace = std::variant<bool*, int64_t*, uint64_t*, double*, std::string*, std::vector<double>*,
                                std::vector<std::string>*, std::optional<int64_t>*, std::optional<double>*,
                                std::optional<std::string>*, EnumField>;

struct Field {
  std::string name;
  FieldPlace place;
  const char* about;
  bool applies;     ///< false: under the other keys' values this one has no effect
  const char* why;  ///< then: why
};

/// A struct's keys, with pointers into it. Valid while it lives.
using Fields = std::vector<Field>;

struct FieldCollector {
  Fields fields;
  template <class T>
  void operator()(const char* name, T& value, const char* about, bool applies = true, const char* why = "") {
    if constexpr (std::is_enum_v<T>) {
      const auto names = enum_names(T{});
      fields.push_back({name,
                        EnumField{{names.begin(), names.end()},
                                  [&value] { return static_cast<size_t>(value); },
                                  [&value](size_t i) { value = static_cast<T>(i); }},
                        about, applies, why});
    } else {
      fields.push_back({name, &value, about, applies, why});
    }
  }
};

template <class Config>
Fields fields_of(Config& config) {
  FieldCollector collector;
  visit_fields(collector, config);
  return std::move(collector.fields);
}

}  // namespace eigentrace
