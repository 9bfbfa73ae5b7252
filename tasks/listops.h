#pragma once
// ListOps (Nangia and Bowman 2018, in the long form of Long Range Arena, Tay et al. 2021): nested lists of
// digits under MIN, MAX, MED (median, truncated) and SM (sum modulo 10); the label is the value of the whole
// expression.
//
//   text    ( ( ( [MAX 3 ) ( ( ( [SM 8 ) 9 ) ] ) ) ] )
//   input   [MAX  3  [SM  8  9  X  X  <eos>          (X closes a list)
//   label   7
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tasks/task.h"

namespace eigentrace {

struct ListOpsConfig {
  static constexpr const char* kName = "listops";
  static constexpr const char* kAbout = "the value (0..9) of a nested list expression of 500 to 2000 symbols";
  std::string data_dir;
  bool fixed_size = false;
  int64_t l_max = 2048;
  int64_t max_depth = 10;
  int64_t max_args = 10;
  int64_t min_length = 500;
  int64_t max_length = 2000;
  int64_t num_train_examples = 96'000;
  int64_t num_validation_examples = 2'000;
  int64_t num_test_examples = 2'000;
  uint64_t seed = 42;
};

template <class V>
void visit_fields(V& v, ListOpsConfig& c) {
  v("data_dir", c.data_dir, "folder of basic_train.tsv, basic_val.tsv, basic_test.tsv; empty: generate");
  v("fixed_size", c.fixed_size, "pad to l_max always, else to the longest of the batch");
  v("l_max", c.l_max, "longest sequence, <eos> included; longer ones are cut");
  v("max_depth", c.max_depth, "depth at which only digits stand (the root is 1)", c.data_dir.empty(),
    "the examples come from data_dir");
  v("max_args", c.max_args, "most arguments of an operator", c.data_dir.empty(),
    "the examples come from data_dir");
  v("min_length", c.min_length, "expressions must have more symbols", c.data_dir.empty(),
    "the examples come from data_dir");
  v("max_length", c.max_length, "expressions must have fewer symbols", c.data_dir.empty(),
    "the examples come from data_dir");
  v("num_train_examples", c.num_train_examples, "training examples", c.data_dir.empty(),
    "the examples come from data_dir");
  v("num_validation_examples", c.num_validation_examples, "validation examples", c.data_dir.empty(),
    "the examples come from data_dir");
  v("num_test_examples", c.num_test_examples, "test examples", c.data_dir.empty(),
    "the examples come from data_dir");
  v("seed", c.seed, "data seed, not the run's", c.data_dir.empty(), "the examples come from data_dir");
}

/// Errors: sizes no expression can have (usage); missing or wrong files.
std::unique_ptr<Task> make_task(const ListOpsConfig& config);

/// An expression in prefix form: 0..9 digits, 10 the end of a list ("X"), 11 MAX, 12 MED, 13 MIN, 14 SM.
/// The numbers follow the order of the symbols as character strings.
using ListOpsCodes = std::vector<uint8_t>;
constexpr int kListOpsCodes = 15;
const char* listops_symbol(int code);

/// A random expression of the configured lengths. Draws trees until one fits (8.3 % do at the published
/// sizes).
ListOpsCodes make_listops(const ListOpsConfig& config, Split split, int64_t index);
/// The expression in a text such as "( ( [MAX 3 ) ] )"; parentheses are dropped. Errors: an unknown symbol.
ListOpsCodes parse_listops(std::string_view text);
/// Value, 0..9. Errors: not exactly one well-formed expression.
int listops_value(std::span<const uint8_t> codes);
/// Text form with parentheses, as the official files have it.
std::string listops_text(std::span<const uint8_t> codes);

struct ListOpsRow {
  ListOpsCodes codes;
  int32_t target = 0;
};
/// Rows of an official TSV file (header Source, Target). Errors name `file`, the line and what is wrong.
std::vector<ListOpsRow> parse_listops_tsv(std::string_view text, const std::string& file);
/// The same format, lines ending with CR LF.
std::string listops_tsv(std::span<const ListOpsRow> rows);

}  // namespace eigentrace
