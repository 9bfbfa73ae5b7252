#pragma once
// Writes JSON as it goes: valid by construction, numbers shortest that read back the same, NaN and infinities
// as null.
#include <concepts>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace eigentrace {

class JsonWriter {
 public:
  enum class Style { compact, pretty };  ///< pretty: two spaces a level, one member a line
  explicit JsonWriter(Style style = Style::compact) : style_(style) {}

  JsonWriter& begin_object() { return begin('{'); }
  JsonWriter& end_object() { return end('}'); }
  JsonWriter& begin_array() { return begin('['); }
  JsonWriter& end_array() { return end(']'); }
  JsonWriter& key(std::string_view name);

  JsonWriter& value(double number);
  JsonWriter& value(float number);
  JsonWriter& value(std::string_view text);
  JsonWriter& value(const char* text) { return value(std::string_view(text)); }
  JsonWriter& value(const std::string& text) { return value(std::string_view(text)); }
  JsonWriter& value(bool truth);
  template <std::integral T>
  JsonWriter& value(T number) {
    return std::is_signed_v<T> ? signed_value(int64_t(number)) : unsigned_value(uint64_t(number));
  }
  JsonWriter& null();
  /// An array of numbers or texts, on one line in either style.
  template <class Range>
  JsonWriter& values(const Range& range) {
    begin('[');
    const Style outer = style_;
    style_ = Style::compact;
    for (const auto& item : range) value(item);
    end(']');
    style_ = outer;
    return *this;
  }
  template <class T>
  JsonWriter& field(std::string_view name, const T& content) {
    return key(name).value(content);
  }

  /// The text; Error while an object or array is open.
  const std::string& text() const;

 private:
  JsonWriter& begin(char bracket);
  JsonWriter& end(char bracket);
  JsonWriter& signed_value(int64_t number);
  JsonWriter& unsigned_value(uint64_t number);
  void before_value();
  void new_line();

  Style style_;
  std::string text_;
  std::string open_;   // closing brackets still due
  bool first_ = true;  // nothing yet in the innermost object or array
  bool after_key_ = false;
};

/// text between quotes, escaped; bytes that are not UTF-8 become U+FFFD.
std::string json_quoted(std::string_view text);
bool is_utf8(std::string_view text);

}  // namespace eigentrace
