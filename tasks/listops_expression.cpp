// Expressions: drawing, reading, writing, evaluating.
#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "tasks/files.h"
#include "tasks/listops.h"
#include "tasks/sampling.h"
#include "tensor/error.h"

namespace eigentrace {

namespace {

constexpr uint8_t kClose = 10, kMax = 11, kMed = 12, kMin = 13;
constexpr const char* kSymbols[kListOpsCodes] = {"0", "1", "2", "3",    "4",    "5",    "6",  "7",
                                                 "8", "9", "X", "[MAX", "[MED", "[MIN", "[SM"};

int apply(uint8_t op, std::vector<uint8_t>& arguments) {
  switch (op) {
    case kMax:
      return *std::max_element(arguments.begin(), arguments.end());
    case kMin:
      return *std::min_element(arguments.begin(), arguments.end());
    case kMed: {
      std::sort(arguments.begin(), arguments.end());
      const size_t n = arguments.size();
      return (arguments[(n - 1) / 2] + arguments[n / 2]) / 2;  // one and the same for odd n
    }
    default:
      return std::accumulate(arguments.begin(), arguments.end(), 0) % 10;
  }
}

// Appends a node at `depth`; false once the tree is too long.
bool grow(Rng& rng, const ListOpsConfig& c, int64_t depth, ListOpsCodes& out) {
  if (depth < c.max_depth) {
    // One draw of 160: 120 for the digits (12 each), 10 for each operator, so that an operator has
    // probability 1/4.
    const uint32_t draw = rng.below(160);
    if (draw >= 120) {
      out.push_back(static_cast<uint8_t>(kMax + (draw - 120) / 10));
      const uint32_t arguments = 2 + rng.below(static_cast<uint32_t>(c.max_args - 1));
      for (uint32_t i = 0; i < arguments; ++i)
        if (!grow(rng, c, depth + 1, out)) return false;
      out.push_back(kClose);
      return static_cast<int64_t>(out.size()) < c.max_length;
    }
    out.push_back(static_cast<uint8_t>(draw % 10));
  } else {
    out.push_back(static_cast<uint8_t>(rng.below(10)));
  }
  return static_cast<int64_t>(out.size()) < c.max_length;
}

}  // namespace

const char* listops_symbol(int code) { return kSymbols[code]; }

ListOpsCodes make_listops(const ListOpsConfig& config, Split split, int64_t index) {
  Rng rng = example_rng(config.seed, split, index);
  ListOpsCodes codes;
  for (int draws = 0; draws < 10'000'000; ++draws) {
    codes.clear();
    if (grow(rng, config, 1, codes) && static_cast<int64_t>(codes.size()) > config.min_length) return codes;
  }
  fail_usage(
      fmt::format("listops: none of 10 million trees had more than {} and fewer than {} symbols; widen "
                  "min_length..max_length, or raise max_depth or max_args",
                  config.min_length, config.max_length));
}

ListOpsCodes parse_listops(std::string_view text) {
  ListOpsCodes codes;
  while (!text.empty()) {
    const size_t end = text.find(' ');
    const std::string_view word = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    if (word.empty() || word == "(" || word == ")") continue;
    const std::string_view symbol = word == "]" ? "X" : word;
    const auto* found = std::find(kSymbols, kSymbols + kListOpsCodes, symbol);
    if (found == kSymbols + kListOpsCodes)
      fail(fmt::format("listops: expected (, ), ], a digit or [MIN, [MAX, [MED, [SM, found '{}'",
                       word.substr(0, 40)));
    codes.push_back(static_cast<uint8_t>(found - kSymbols));
  }
  return codes;
}

int listops_value(std::span<const uint8_t> codes) {
  std::vector<uint8_t> values, open;  // values so far; operators not closed yet
  std::vector<size_t> first;          // where an open operator's arguments begin
  std::vector<uint8_t> arguments;
  for (size_t i = 0; i < codes.size(); ++i) {
    if (open.empty() && i > 0) fail("listops: expected one expression, found more after its end");
    const uint8_t code = codes[i];
    if (code < kClose) {
      values.push_back(code);
    } else if (code > kClose) {
      open.push_back(code), first.push_back(values.size());
    } else {
      if (open.empty()) fail("listops: found the end of a list before its start");
      if (values.size() == first.back())
        fail(fmt::format("listops: {} has no arguments", kSymbols[open.back()]));
      arguments.assign(values.begin() + static_cast<int64_t>(first.back()), values.end());
      values.resize(first.back());
      values.push_back(static_cast<uint8_t>(apply(open.back(), arguments)));
      open.pop_back(), first.pop_back();
    }
  }
  if (!open.empty()) fail(fmt::format("listops: {} lists are not closed", open.size()));
  if (values.empty()) fail("listops: expected an expression, found nothing");
  return values[0];
}

std::string listops_text(std::span<const uint8_t> codes) {
  // An operator with n arguments opens n + 1 parentheses: n is known only at its end.
  std::vector<int> arguments(codes.size(), 0);
  std::vector<size_t> open;
  for (size_t i = 0; i < codes.size(); ++i) {
    if (codes[i] == kClose) {
      if (open.empty()) fail("listops: found the end of a list before its start");
      open.pop_back();
      continue;
    }
    if (!open.empty()) ++arguments[open.back()];
    if (codes[i] > kClose) open.push_back(i);
  }
  if (!open.empty()) fail(fmt::format("listops: {} lists are not closed", open.size()));
  std::string text;
  int depth = 0;
  for (size_t i = 0; i < codes.size(); ++i) {
    if (i > 0) text += ' ';
    if (codes[i] > kClose) {
      for (int k = 0; k <= arguments[i]; ++k) text += "( ";
      text += kSymbols[codes[i]];
      ++depth;
      continue;
    }
    text += codes[i] == kClose ? "] )" : kSymbols[codes[i]];
    depth -= codes[i] == kClose;
    if (depth > 0) text += " )";
  }
  return text;
}

std::vector<ListOpsRow> parse_listops_tsv(std::string_view text, const std::string& file) {
  const std::vector<std::string_view> lines = split_lines(text);
  if (lines.empty() || lines[0] != "Source\tTarget")
    fail(fmt::format("{}: line 1: expected the header Source, Target (with a tab between), found '{}'", file,
                     lines.empty() ? "" : lines[0].substr(0, 60)));
  std::vector<ListOpsRow> rows;
  rows.reserve(lines.size());
  for (size_t i = 1; i < lines.size(); ++i) {
    try {
      const std::vector<std::string_view> fields = split_tabs(lines[i]);
      if (fields.size() != 2)
        fail(fmt::format("expected 2 columns (Source, Target), found {}", fields.size()));
      if (fields[1].size() != 1 || fields[1][0] < '0' || fields[1][0] > '9')
        fail(fmt::format("Target: expected a digit, found '{}'", fields[1].substr(0, 20)));
      rows.push_back({parse_listops(fields[0]), fields[1][0] - '0'});
      if (rows.back().codes.empty()) fail("Source: expected an expression, found none");
    } catch (const Error& e) {
      fail(fmt::format("{}: line {}: {}", file, i + 1, e.what()));
    }
  }
  if (rows.empty()) fail(fmt::format("{}: expected at least one row below the header, found none", file));
  return rows;
}

std::string listops_tsv(std::span<const ListOpsRow> rows) {
  std::string text = "Source\tTarget\r\n";
  for (const ListOpsRow& row : rows) {
    text += listops_text(row.codes);
    text += fmt::format("\t{}\r\n", row.target);
  }
  return text;
}

}  // namespace eigentrace
