#include "tensor/io/json_writer.h"

#include <charconv>
#include <cmath>

#include "tensor/error.h"

namespace eigentrace {
namespace {

/// Bytes of the UTF-8 character that starts text; 0 if it is not one (overlong, surrogate, too large, cut).
size_t utf8_length(std::string_view text) {
  const auto byte = [&](size_t i) { return i < text.size() ? uint8_t(text[i]) : uint8_t(0); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return 1;
  const size_t n = lead >= 0xC2 && lead <= 0xDF   ? 2
                   : lead >> 4 == 0xE             ? 3
                   : lead >= 0xF0 && lead <= 0xF4 ? 4
                                                  : 0;
  for (size_t i = 1; i < n; i++)
    if (byte(i) >> 6 != 2) return 0;
  if (lead == 0xE0 && byte(1) < 0xA0) return 0;
  if (lead == 0xED && byte(1) > 0x9F) return 0;
  if (lead == 0xF0 && byte(1) < 0x90) return 0;
  if (lead == 0xF4 && byte(1) > 0x8F) return 0;
  return n;
}

template <class T>
void append_number(std::string& text, T number) {
  char digits[32];
  const auto result = std::to_chars(digits, digits + sizeof digits, number);
  text.append(digits, result.ptr);
}

}  // namespace

bool is_utf8(std::string_view text) {
  for (size_t n; !text.empty(); text.remove_prefix(n))
    if ((n = utf8_length(text)) == 0) return false;
  return true;
}

std::string json_quoted(std::string_view text) {
  static const char hex[] = "0123456789abcdef";
  std::string out = "\"";
  out.reserve(text.size() + 2);
  for (size_t i = 0; i < text.size();) {
    const unsigned char c = static_cast<unsigned char>(text[i]);
    const size_t n = utf8_length(text.substr(i));
    if (n == 0) {
      out += "\xEF\xBF\xBD";
      i++;
      continue;
    }
    if (c == '"' || c == '\\') {
      out += '\\';
      out += char(c);
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (c < 0x20 || c == 0x7F) {
      out += "\\u00";
      out += hex[c >> 4];
      out += hex[c & 15];
    } else {
      out.append(text.substr(i, n));
    }
    i += n;
  }
  return out += '"';
}

void JsonWriter::new_line() {
  if (style_ == Style::compact) return;
  text_ += '\n';
  text_.append(2 * open_.size(), ' ');
}

void JsonWriter::before_value() {
  if (after_key_) {
    after_key_ = false;
    return;
  }
  if (!open_.empty() && open_.back() == '}') fail("JsonWriter: value: expected a key first inside an object");
  if (open_.empty() && !text_.empty())
    fail("JsonWriter: value: expected nothing after the end of the document");
  if (open_.empty()) return;
  if (!first_) text_ += ',';
  new_line();
  first_ = false;
}

JsonWriter& JsonWriter::begin(char bracket) {
  before_value();
  text_ += bracket;
  open_ += bracket == '{' ? '}' : ']';
  first_ = true;
  return *this;
}

JsonWriter& JsonWriter::end(char bracket) {
  if (open_.empty() || open_.back() != bracket || after_key_)
    fail(std::string("JsonWriter: end: expected ") +
         (after_key_      ? "a value after the key"
          : open_.empty() ? "nothing more"
                          : std::string(1, open_.back())) +
         ", found " + bracket);
  open_.pop_back();
  if (!first_) new_line();
  text_ += bracket;
  first_ = false;
  return *this;
}

JsonWriter& JsonWriter::key(std::string_view name) {
  if (open_.empty() || open_.back() != '}' || after_key_)
    fail("JsonWriter: key: expected to be inside an object and not after another key; found key " +
         json_quoted(name));
  if (!first_) text_ += ',';
  new_line();
  first_ = false;
  text_ += json_quoted(name);
  text_ += style_ == Style::pretty ? ": " : ":";
  after_key_ = true;
  return *this;
}

JsonWriter& JsonWriter::value(double number) {
  if (!std::isfinite(number)) return null();
  before_value();
  append_number(text_, number);
  return *this;
}

JsonWriter& JsonWriter::value(float number) {
  if (!std::isfinite(number)) return null();
  before_value();
  append_number(text_, number);
  return *this;
}

JsonWriter& JsonWriter::signed_value(int64_t number) {
  before_value();
  append_number(text_, number);
  return *this;
}

JsonWriter& JsonWriter::unsigned_value(uint64_t number) {
  before_value();
  append_number(text_, number);
  return *this;
}

JsonWriter& JsonWriter::value(std::string_view text) {
  before_value();
  text_ += json_quoted(text);
  return *this;
}

JsonWriter& JsonWriter::value(bool truth) {
  before_value();
  text_ += truth ? "true" : "false";
  return *this;
}

JsonWriter& JsonWriter::null() {
  before_value();
  text_ += "null";
  return *this;
}

const std::string& JsonWriter::text() const {
  if (!open_.empty() || after_key_ || text_.empty())
    fail("JsonWriter: text: expected a complete document, found " +
         (text_.empty() ? std::string("nothing")
                        : "one that still lacks " + (open_.empty() ? "a value" : open_)));
  return text_;
}

}  // namespace eigentrace
