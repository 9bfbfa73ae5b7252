// The splitting rule of GPT-2, written out as a scanner.
#include <utf8proc.h>

#include "tasks/bpe.h"

namespace eigentrace {

namespace {

enum class Kind { letter, number, space, other, end };

// \s is White_Space, which is not a general category: U+0085 is a control, U+200B (no space) a format
// character.
bool is_space(int32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

Kind kind_of(int32_t c) {
  if (c < 0x80) {
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) return Kind::letter;
    if (c >= '0' && c <= '9') return Kind::number;
    return is_space(c) ? Kind::space : Kind::other;
  }
  if (is_space(c)) return Kind::space;
  switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
      return Kind::letter;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
      return Kind::number;
    default:
      return Kind::other;
  }
}

struct Character {
  Kind kind;
  size_t length;
};

// The character at `at`; its kind is `end` behind the text. The text has been found to be UTF-8.
Character character(std::string_view text, size_t at) {
  if (at >= text.size()) return {Kind::end, 0};
  const auto* s = reinterpret_cast<const unsigned char*>(text.data()) + at;
  if (s[0] < 0x80) return {kind_of(s[0]), 1};
  if (s[0] < 0xE0) return {kind_of((s[0] & 0x1F) << 6 | (s[1] & 0x3F)), 2};
  if (s[0] < 0xF0) return {kind_of((s[0] & 0x0F) << 12 | (s[1] & 0x3F) << 6 | (s[2] & 0x3F)), 3};
  return {kind_of((s[0] & 0x07) << 18 | (s[1] & 0x3F) << 12 | (s[2] & 0x3F) << 6 | (s[3] & 0x3F)), 4};
}

}  // namespace

size_t bpe_piece(std::string_view text) {
  if (text[0] == '\'') {
    for (std::string_view ending : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"})
      if (text.starts_with(ending)) return ending.size();
  }
  // One blank may precede a run of letters, of numbers, or of anything else but white space.
  const size_t blank = text[0] == ' ' ? 1 : 0;
  const Kind run = character(text, blank).kind;
  if (run == Kind::letter || run == Kind::number || run == Kind::other) {
    size_t at = blank;
    for (Character c = character(text, at); c.kind == run; c = character(text, at)) at += c.length;
    return at;
  }
  // White space: all of it at the end of the text; else its last character is left to what follows, if any
  // remain.
  size_t at = 0, last = 0;
  Character c = character(text, 0);
  for (; c.kind == Kind::space; c = character(text, at)) last = at, at += c.length;
  return c.kind == Kind::end || last == 0 ? at : last;
}

}  // namespace eigentrace
