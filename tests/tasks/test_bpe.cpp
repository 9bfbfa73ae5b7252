#include <doctest/doctest.h>

#include <filesystem>
#include <sstream>
#include <string>

#include "tasks/bpe.h"
#include "tasks/files.h"
#include "tasks/token_cache.h"
#include "tasks/wikitext.h"
#include "tensor/error.h"

using namespace eigentrace;

namespace {

const std::string kFolder = std::string(EIGENTRACE_TEST_DATA) + "/tasks/data/gpt2";
const DataSource kNone{"", "", ""};

std::vector<std::string> pieces(std::string_view text) {
  std::vector<std::string> out;
  while (!text.empty()) {
    out.emplace_back(text.substr(0, bpe_piece(text)));
    text.remove_prefix(out.back().size());
  }
  return out;
}

template <class F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("bpe: the published ids of texts with every oddity come out exactly, and back") {
  const BpeTokenizer tokenizer = BpeTokenizer::from_folder(kFolder);
  const std::string golden = read_data(kFolder + "/golden.txt", kNone);
  BpeTokenizer::Cache cache;
  int lines = 0;
  for (std::string_view line : split_lines(golden)) {
    const auto fields = split_tabs(line);
    REQUIRE(fields.size() == 2);
    std::string text;
    for (size_t i = 0; i < fields[0].size(); i += 2)
      text += static_cast<char>(std::stoi(std::string(fields[0].substr(i, 2)), nullptr, 16));
    std::istringstream numbers{std::string(fields[1])};
    std::vector<int32_t> expected, cached;
    for (int32_t id; numbers >> id;) expected.push_back(id);
    CAPTURE(text);
    CHECK(tokenizer.encode(text) == expected);
    for (int twice = 0; twice < 2; ++twice) {
      cached.clear();
      tokenizer.encode(text, cached, &cache);
      CHECK(cached == expected);
    }
    CHECK(tokenizer.decode(expected) == text);
    ++lines;
  }
  CHECK(lines == 22);
}

TEST_CASE("bpe: texts are split as the published rule splits them") {
  using P = std::vector<std::string>;
  CHECK(pieces("I'll don't 'Tis I'LL") == P{"I", "'ll", " don", "'t", " '", "Tis", " I", "'", "LL"});
  CHECK(pieces("a  b") == P{"a", " ", " b"});
  CHECK(pieces("a \n b\n\nc \n") == P{"a", " \n", " b", "\n", "\n", "c", " \n"});
  CHECK(pieces("  ") == P{"  "});
  CHECK(pieces("x1.5!!' 's") == P{"x", "1", ".", "5", "!!'", " '", "s"});
  CHECK(pieces("\xC2\xA0z") == P{"\xC2\xA0", "z"});                        // no-break space is white space
  CHECK(pieces("\xE2\x80\x8Bz") == P{"\xE2\x80\x8B", "z"});                // zero-width space is not
  CHECK(pieces("caf\xC3\xA9 \xC2\xBD") == P{"caf\xC3\xA9", " \xC2\xBD"});  // é is a letter, ½ a number
  CHECK(pieces("e\xCC\x81") == P{"e", "\xCC\x81"});                        // a combining mark is neither
}

TEST_CASE("bpe: long runs are encoded in reasonable time") {
  const BpeTokenizer tokenizer = BpeTokenizer::from_folder(kFolder);
  const std::string text(200'000, 'a');  // quadratic merging would take minutes
  CHECK(tokenizer.decode(tokenizer.encode(text)) == text);
}

TEST_CASE("bpe: wrong files and texts are errors that say where") {
  const std::string encoder = read_data(kFolder + "/encoder.json", kNone);
  const std::string merges = read_data(kFolder + "/vocab.bpe", kNone);
  const auto error = [](const std::string& json, const std::string& bpe) {
    return error_of([&] { BpeTokenizer(json, bpe, "dir"); });
  };
  CHECK(error(encoder, merges).empty());
  CHECK(error(encoder.substr(0, 500), merges).find("dir/encoder.json: byte 500") == 0);
  CHECK(error("[]", merges).find("expected '{'") != std::string::npos);
  CHECK(error("{\"a\": 1.5}", merges).find("expected '}'") != std::string::npos);
  CHECK(error("{\"a\": 1}", merges).find("a token for each byte") != std::string::npos);
  CHECK(error("{\"a\": 1, \"b\": 1}", merges).find("stands there twice") != std::string::npos);
  CHECK(error("{\"a\": -1}", merges).find("expected an id") != std::string::npos);
  CHECK(error("{\"\\u20ac\": 1}", merges).find("expected a character") != std::string::npos);
  CHECK(error(encoder + "x", merges).find("end of the file") != std::string::npos);
  CHECK(error(encoder, "").find("expected merges") != std::string::npos);
  // The first merges are "Ġ t", "Ġ a", "h e", "i n", "r e", "o n", "Ġt he": the last put before the third
  // needs it.
  std::string swapped = merges;
  const size_t the = swapped.find("\xC4\xA0t he\n");
  REQUIRE(the != std::string::npos);
  swapped.erase(the, std::string("\xC4\xA0t he\n").size());
  swapped.insert(swapped.find('\n') + 1, "\xC4\xA0t he\n");
  CHECK(error(encoder, swapped)
            .find("dir/vocab.bpe: line 2: a merge of a token that only a later line makes") == 0);
  CHECK(error(encoder, merges + "xq zz\n").find("encoder.json does not have") != std::string::npos);
  const BpeTokenizer tokenizer(encoder, merges, "dir");
  CHECK(error_of([&] { tokenizer.encode("ab\xFF"); }).find("byte 0xff at 2") != std::string::npos);
  CHECK_THROWS_AS(tokenizer.decode({-1}), Error);
  CHECK_THROWS_AS(tokenizer.decode({1 << 20}), Error);
}

TEST_CASE("wikitext: blocks come from 8 parts and groups of 1,000 lines, the rest of a group is dropped") {
  // 17,003 lines of one token: parts of 2126 (three of them) and 2125 lines, groups 1000, 1000, 126 or 125.
  const std::vector<int32_t> lines(17'003, 1);
  std::vector<int64_t> expected;
  for (int64_t part = 0, line = 0; part < 8; ++part) {
    const int64_t end = line + 2125 + (part < 3);
    for (int64_t group = line; group < end; group += 1000)
      for (int64_t at = group; at + 63 <= std::min(group + 1000, end); at += 63) expected.push_back(at);
    line = end;
  }
  CHECK(pack_blocks(lines, 63, false) == expected);
  CHECK(pack_blocks(lines, 63, true).size() == 17'003 / 63);
  CHECK(pack_blocks(std::vector<int32_t>{5, 0, 0, 7}, 4, false) == std::vector<int64_t>{0, 5});
  CHECK(pack_blocks(std::vector<int32_t>{5, 0, 0, 7}, 4, true) == std::vector<int64_t>{0, 4, 8});
  CHECK(pack_blocks(std::vector<int32_t>{}, 4, false).empty());
}

TEST_CASE("wikitext: lines are encoded one by one, labels are the next tokens, tokens are cached") {
  const auto dir = std::filesystem::temp_directory_path() / "eigentrace_wikitext";
  std::filesystem::remove_all(dir);
  const std::string text = " \n = Title = \n\n some words of text \n\xE3\x80\x80\nmore";
  write_file(dir / "wiki.train.raw", text);
  write_file(dir / "wiki.test.raw", text);
  WikiTextConfig c;
  c.data_dir = dir.string(), c.tokenizer_dir = kFolder, c.block_size = 5, c.pack = "all";
  c.cache_dir = (dir / "cache").string();
  const BpeTokenizer tokenizer = BpeTokenizer::from_folder(kFolder);
  std::vector<int32_t> ids;
  for (const char* line : {" = Title = \n", " some words of text \n", "more"}) tokenizer.encode(line, ids);
  for (int twice = 0; twice < 2; ++twice) {  // the second time from the cache
    const auto task = make_task(c);
    CHECK(task->size(Split::validation) == 0);
    const int64_t blocks = static_cast<int64_t>(ids.size()) / 5;
    REQUIRE(task->size(Split::train) == blocks);
    Batch batch;
    const std::vector<int64_t> last = {blocks - 1};
    task->make(Split::train, last, batch);
    CHECK(batch.label_count == 4);
    for (int64_t t = 0; t < 5; ++t) CHECK(batch.tokens[t] == ids[(blocks - 1) * 5 + t]);
    for (int64_t t = 0; t < 4; ++t) CHECK(batch.labels[t] == batch.tokens[t + 1]);
    CHECK(batch.label_rows == std::vector<int32_t>{0, 1, 2, 3});
  }
  CHECK(std::distance(std::filesystem::directory_iterator(dir / "cache"), {}) ==
        2);  // one file for each split's name
  write_file(dir / "wiki.test.raw", "ok\nab\xC3(\n");
  CHECK(error_of([&] {
          make_task(c);
        }).find("wiki.test.raw: line 2: expected UTF-8, found byte 0xc3 at byte 2") != std::string::npos);
  c.pack = "some";
  CHECK_THROWS_AS(make_task(c), UsageError);
  c.pack = "all", c.version = 3;
  CHECK_THROWS_AS(make_task(c), UsageError);
  c.version = 2, c.block_size = 1000;
  CHECK(error_of([&] { make_task(c); }).find("no block of 1000") != std::string::npos);
  std::filesystem::remove_all(dir);
  CHECK(error_of([&] { make_task(c); }).find("download_data.sh wikitext") != std::string::npos);
}

TEST_CASE("wikitext: a damaged cache is not used") {
  const TokenisedText text{{2, 0, 1}, {5, 6, 7}};
  const std::string bytes = write_tokens(text, 9);
  TokenisedText back;
  REQUIRE(read_tokens(bytes, 9, back));
  CHECK(back.lines == text.lines);
  CHECK(back.ids == text.ids);
  CHECK_FALSE(read_tokens(bytes, 8, back));
  for (size_t n = 0; n < bytes.size(); ++n) CHECK_FALSE(read_tokens(bytes.substr(0, n), 9, back));
  for (size_t n = 0; n < bytes.size(); ++n) {
    std::string damaged = bytes;
    damaged[n] = static_cast<char>(damaged[n] ^ 0x41);
    CHECK_FALSE(read_tokens(damaged, 9, back));
  }
}
