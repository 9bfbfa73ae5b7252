#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>

#include "tasks/config.h"
#include "tasks/files.h"
#include "tensor/error.h"

using namespace eigentrace;

namespace {

int value(const std::string& text) { return listops_value(parse_listops(text)); }

template <class F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

double chi_square(const std::vector<double>& found, const std::vector<double>& expected_share) {
  double n = 0, sum = 0;
  for (double x : found) n += x;
  for (size_t i = 0; i < found.size(); ++i)
    sum += (found[i] - n * expected_share[i]) * (found[i] - n * expected_share[i]) / (n * expected_share[i]);
  return sum;
}

}  // namespace

TEST_CASE("listops: values are those of the published rules") {
  CHECK(value("7") == 7);
  CHECK(value("( ( ( [MAX 3 ) 7 ) ] )") == 7);
  CHECK(value("( ( ( [MIN 3 ) 7 ) ] )") == 3);
  CHECK(value("( ( ( [SM 3 ) 7 ) ] )") == 0);
  CHECK(value("( ( ( [MED 2 ) 7 ) ] )") == 4);  // 4.5, truncated
  CHECK(value("( ( ( ( [MED 9 ) 1 ) 2 ) ] )") == 2);
  CHECK(value("( ( ( ( ( [MED 9 ) 1 ) 2 ) 6 ) ] )") == 4);
  CHECK(value("[MAX 3 [SM 8 9 X [MED 8 1 9 X X") == 8);
}

TEST_CASE("listops: text and prefix form are each other's inverse") {
  ListOpsConfig c;
  c.min_length = 10, c.max_length = 100, c.max_depth = 5;
  for (int64_t i = 0; i < 100; ++i) {
    const ListOpsCodes codes = make_listops(c, Split::train, i);
    CHECK(codes.size() > 10);
    CHECK(codes.size() < 100);
    CHECK(parse_listops(listops_text(codes)) == codes);
  }
  const std::string text = "( ( ( [MAX 3 ) ( ( ( ( [SM 8 ) 9 ) 0 ) ] ) ) ] )";
  CHECK(listops_text(parse_listops(text)) == text);
  CHECK(listops_text(parse_listops("5")) == "5");
}

TEST_CASE("listops: malformed expressions are errors") {
  for (const char* bad :
       {"", "[MAX ]", "[MAX 3", "]", "3 4", "[MAX 3 ] ]", "[MAX 3 ] 4", "[NOR 3 ]", "12", "x"}) {
    CAPTURE(bad);
    CHECK_THROWS_AS(value(bad), Error);
  }
}

// Shares measured over 100,000 expressions of the published generator; chi-square at the 0.1 % level, the
// mean of the length within 4.5 standard errors of both samples.
TEST_CASE("listops: generated trees have the published distribution") {
  const ListOpsConfig c;
  const int examples = 5000;
  double length = 0, operators = 0, args = 0;
  std::vector<double> labels(10, 0), ops(4, 0), lengths(5, 0), root_args(9, 0), digits(10, 0);
  for (int i = 0; i < examples; ++i) {
    const ListOpsCodes codes = make_listops(c, Split::train, i);
    length += static_cast<double>(codes.size());
    ++labels[listops_value(codes)];
    ++lengths[std::min<size_t>(4, (codes.size() - 500) / 300)];
    int depth = 0, deepest = 0, at_root = 0;
    for (uint8_t code : codes) {
      if (code != 10) args += depth > 0, at_root += depth == 1;
      if (code > 10) ++operators, deepest = std::max(deepest, ++depth), ++ops[code - 11];
      if (code == 10) --depth;
      if (code < 10) ++digits[code];
    }
    REQUIRE(deepest == 9);
    REQUIRE(codes.size() > 500);
    REQUIRE(codes.size() < 2000);
    ++root_args[at_root - 2];
  }
  const double both = std::sqrt(1.0 / examples + 1.0 / 100'000);
  CHECK(std::abs(length / examples - 1035.50215) < 4.5 * 394.1688 * both);
  CHECK(std::abs(operators / examples - 147.31931) < 4.5 * 55.8418 * both);
  CHECK(std::abs(args / operators - 6.022176) < 0.03);
  CHECK(chi_square(labels, {.16871, .08894, .07735, .0819, .08965, .08642, .07734, .07289, .08723, .16957}) <
        27.9);
  CHECK(chi_square(root_args, {.04494, .06403, .08324, .10015, .11688, .13174, .14455, .15201, .16246}) <
        26.2);
  // 500..799, 800..1099, 1100..1399, 1400..1699, 1700..1999
  CHECK(chi_square(lengths, {.35513, .25937, .18169, .12281, .081}) < 18.5);
  for (double n : ops) CHECK(std::abs(n / operators - 0.25) < 0.005);
  double digit_count = 0;
  for (double n : digits) digit_count += n;
  for (double n : digits) CHECK(std::abs(n / digit_count - 0.1) < 0.003);
}

TEST_CASE("listops: a batch has cut, ended and padded tokens, by falling frequency") {
  ListOpsConfig c;
  c.num_train_examples = 50, c.num_validation_examples = 3, c.num_test_examples = 63;
  auto task = make_task(c);
  const std::vector<std::string> symbols = task->symbols();
  REQUIRE(symbols.size() == 18);
  CHECK(symbols[0] == "<pad>");
  CHECK(symbols[1] == "<unk>");
  CHECK(symbols[2] == "<eos>");
  CHECK(symbols[3] == "X");
  const std::vector<int64_t> indices = {5, 2, 62};
  Batch batch;
  task->make(Split::test, indices, batch);
  int64_t longest = 0;
  for (int64_t b = 0; b < 3; ++b) {
    const ListOpsCodes codes = make_listops(c, Split::test, indices[b]);
    REQUIRE(batch.lengths[b] == static_cast<int32_t>(codes.size() + 1));
    for (size_t t = 0; t < codes.size(); ++t) REQUIRE(symbols[batch.row(b)[t]] == listops_symbol(codes[t]));
    CHECK(batch.row(b)[codes.size()] == 2);
    for (int64_t t = batch.lengths[b]; t < batch.time; ++t) REQUIRE(batch.row(b)[t] == 0);
    CHECK(batch.labels[b] == listops_value(codes));
    longest = std::max<int64_t>(longest, batch.lengths[b]);
  }
  CHECK(batch.time == longest);
  c.fixed_size = true;
  make_task(c)->make(Split::test, indices, batch);
  CHECK(batch.time == 2048);
  c.l_max = 300;
  make_task(c)->make(Split::test, indices, batch);
  CHECK(batch.lengths == std::vector<int32_t>{300, 300, 300});
  CHECK(batch.row(0)[299] == 2);
}

TEST_CASE("listops: the official files are read and written") {
  const auto dir = std::filesystem::temp_directory_path() / "eigentrace_listops";
  ListOpsConfig c;
  c.min_length = 5, c.max_length = 60, c.max_depth = 4;
  std::vector<ListOpsRow> rows;
  for (int64_t i = 0; i < 20; ++i) {
    rows.push_back({make_listops(c, Split::train, i), 0});
    rows.back().target = listops_value(rows.back().codes);
  }
  const std::string text = listops_tsv(rows);
  CHECK(text.substr(0, 15) == "Source\tTarget\r\n");
  CHECK(text.ends_with("\r\n"));
  for (const char* name : {"basic_train.tsv", "basic_val.tsv", "basic_test.tsv"})
    write_file(dir / name, text);
  c.data_dir = dir.string();
  const auto task = make_task(c);
  CHECK(task->size(Split::validation) == 20);
  Batch batch;
  const std::vector<int64_t> index = {13};
  task->make(Split::test, index, batch);
  CHECK(batch.lengths[0] == static_cast<int32_t>(rows[13].codes.size() + 1));
  CHECK(batch.labels[0] == rows[13].target);
  std::filesystem::remove_all(dir);
  CHECK(error_of([&] { make_task(c); }).find("basic_train.tsv") != std::string::npos);
  CHECK(error_of([&] { make_task(c); }).find("download_data.sh listops") != std::string::npos);
}

TEST_CASE("listops: a wrong file is an error that names file, line and expectation") {
  const auto error = [](const std::string& text) {
    return error_of([&] { parse_listops_tsv(text, "basic_val.tsv"); });
  };
  CHECK(error("").find("basic_val.tsv: line 1: expected the header") == 0);
  CHECK(error("Source\tTarget\r\n").find("at least one row") != std::string::npos);
  CHECK(error("Source\tTarget\r\n5\t5\r\n[MAX 3 ]\r\n").find("line 3: expected 2 columns") !=
        std::string::npos);
  CHECK(error("Source\tTarget\r\n5\t5\r\n5\t15\r\n").find("line 3: Target") != std::string::npos);
  CHECK(error("Source\tTarget\r\n[NOT 5 ]\t5\r\n").find("'[NOT'") != std::string::npos);
}

TEST_CASE("listops: impossible sizes are usage errors") {
  ListOpsConfig c;
  c.max_depth = 3;
  CHECK_THROWS_AS(make_task(c), UsageError);  // 122 symbols at most
  c = {}, c.max_length = 501;
  CHECK_THROWS_AS(make_task(c), UsageError);
  c = {}, c.l_max = 1;
  CHECK_THROWS_AS(make_task(c), UsageError);
  c = {}, c.max_args = 1;
  CHECK_THROWS_AS(make_task(c), UsageError);
}
