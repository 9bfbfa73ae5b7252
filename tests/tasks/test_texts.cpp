#include <archive.h>
#include <archive_entry.h>
#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>
#include <string>

#include "tasks/characters.h"
#include "tasks/config.h"
#include "tasks/files.h"
#include "tensor/error.h"

using namespace eigentrace;

namespace {

template <class F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

struct Folder {
  explicit Folder(const char* name) : path(std::filesystem::temp_directory_path() / name) {
    std::filesystem::remove_all(path);
  }
  ~Folder() { std::filesystem::remove_all(path); }
  std::filesystem::path path;
};

using Files = std::vector<std::pair<std::string, std::string>>;

const Files kReviews = {{"aclImdb/train/neg/10_2.txt", "bad b\xC3\xA4"},
                        {"aclImdb/train/neg/9_1.txt", "bbbb aaa"},
                        {"aclImdb/train/pos/0_9.txt", "good<br />"},
                        {"aclImdb/test/neg/0_3.txt", "zz\xE2\x82\xAC b"},
                        {"aclImdb/test/pos/1_10.txt", "a"},
                        {"aclImdb/train/unsup/0_0.txt", "not read"},
                        {"aclImdb/train/urls_pos.txt", "neither"}};

void write_archive(const std::filesystem::path& file, const Files& files) {
  archive* out = archive_write_new();
  archive_write_add_filter_gzip(out);
  archive_write_set_format_ustar(out);
  archive_write_open_filename(out, file.c_str());
  for (const auto& [name, text] : files) {
    archive_entry* entry = archive_entry_new();
    archive_entry_set_pathname(entry, name.c_str());
    archive_entry_set_size(entry, static_cast<int64_t>(text.size()));
    archive_entry_set_filetype(entry, AE_IFREG);
    archive_entry_set_perm(entry, 0644);
    archive_write_header(out, entry);
    archive_write_data(out, text.data(), text.size());
    archive_entry_free(entry);
  }
  archive_write_close(out);
  archive_write_free(out);
}

void check_reviews(const ImdbConfig& c) {
  const auto task = make_task(c);
  CHECK(task->size(Split::train) == 3);
  CHECK(task->size(Split::validation) == 0);
  CHECK(task->size(Split::test) == 2);
  // At least 3 occurrences: b 6, a 4 ("ä" is another character), none else. Cut to 8 characters before
  // counting.
  CHECK(task->symbols() == std::vector<std::string>{"<pad>", "<unk>", "<eos>", "b", "a", " "});
  Batch batch;
  task->make(Split::train, std::vector<int64_t>{0, 1, 2}, batch);  // 9 before 10: by number; negative first
  CHECK(batch.labels == std::vector<int32_t>{0, 0, 1});
  CHECK(batch.lengths == std::vector<int32_t>{9, 7, 9});
  CHECK(batch.time == 9);
  CHECK(std::vector<int32_t>(batch.row(0).begin(), batch.row(0).end()) ==
        std::vector<int32_t>{3, 3, 3, 3, 5, 4, 4, 4, 2});
  CHECK(std::vector<int32_t>(batch.row(1).begin(), batch.row(1).end()) ==
        std::vector<int32_t>{3, 4, 1, 5, 3, 1, 2, 0, 0});
  task->make(Split::test, std::vector<int64_t>{0}, batch);
  CHECK(batch.tokens == std::vector<int32_t>{1, 1, 1, 5, 3, 2});
  CHECK(task->show(Split::test, 1).find("positive") != std::string::npos);
}

}  // namespace

TEST_CASE("imdb: folders and archive give the same reviews, cut, with characters by falling frequency") {
  const Folder dir("eigentrace_imdb");
  ImdbConfig c;
  c.min_freq = 3, c.l_max = 9;
  for (const auto& [name, text] : kReviews) write_file(dir.path / "folders" / name, text);
  c.data_dir = (dir.path / "folders").string();
  check_reviews(c);
  std::filesystem::create_directories(dir.path / "tar");
  write_archive(dir.path / "tar" / "aclImdb_v1.tar.gz", kReviews);
  c.data_dir = (dir.path / "tar").string();
  check_reviews(c);
  c.fixed_size = true;
  Batch batch;
  make_task(c)->make(Split::test, std::vector<int64_t>{1}, batch);
  CHECK(batch.time == 9);
  CHECK(batch.lengths[0] == 2);
}

TEST_CASE("imdb: missing, empty and wrong files are errors that name them") {
  const Folder dir("eigentrace_imdb_bad");
  ImdbConfig c;
  c.data_dir = dir.path.string();
  const auto error = [&] { return error_of([&] { make_task(c); }); };
  CHECK(error().find("download_data.sh imdb") != std::string::npos);
  for (const auto& [name, text] : kReviews) write_file(dir.path / name, text);
  CHECK(error().empty());
  write_file(dir.path / "aclImdb/test/neg/0_3.txt", "ab\xC3");
  CHECK(error().find("0_3.txt: byte 2: expected UTF-8, found 0xc3") != std::string::npos);
  std::filesystem::remove(dir.path / "aclImdb/test/neg/0_3.txt");
  CHECK(error().find("test/neg: expected reviews (*.txt), found none") != std::string::npos);
  std::filesystem::remove_all(dir.path / "aclImdb/test/neg");
  CHECK(error().find("test/neg: expected a folder") != std::string::npos);
  std::filesystem::remove_all(dir.path);
  std::filesystem::create_directories(dir.path);
  write_archive(dir.path / "aclImdb_v1.tar.gz", kReviews);
  std::filesystem::resize_file(dir.path / "aclImdb_v1.tar.gz", 150);
  CHECK(error().find("aclImdb_v1.tar.gz: the archive cannot be read") != std::string::npos);
}

TEST_CASE("invalid_utf8: what is no UTF-8 is found where it begins") {
  CHECK(invalid_utf8("plain \xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80") == -1);
  CHECK(invalid_utf8("a\x80") == 1);
  CHECK(invalid_utf8("\xC0\xAF") == 0);          // overlong
  CHECK(invalid_utf8("ab\xE0\x80\x80") == 2);    // overlong
  CHECK(invalid_utf8("\xED\xA0\x80") == 0);      // surrogate
  CHECK(invalid_utf8("\xF4\x90\x80\x80") == 0);  // above U+10FFFF
  CHECK(invalid_utf8("x\xE2\x82") == 1);         // cut
}

TEST_CASE("retrieval: first documents come first, second ones after, padded to one length") {
  const Folder dir("eigentrace_aan");
  const std::string rows = "1.0\t7\t8\tabca\tb\n0.0\t7\t9\tc\taaaaaaaaaaaa\n";
  for (const char* part : {"train", "eval", "test"})
    write_file(dir.path / (std::string("new_aan_pairs.") + part + ".tsv"), rows);
  RetrievalConfig c;
  c.data_dir = dir.path.string(), c.l_max = 10;
  const auto task = make_task(c);
  CHECK(task->size(Split::validation) == 2);
  CHECK(task->symbols() == std::vector<std::string>{"<pad>", "<unk>", "<eos>", "a", "b", "c"});
  CHECK(task->shape(Split::train).documents == 2);
  Batch batch;
  Padding padding;
  padding.examples = 3;
  task->make(Split::test, std::vector<int64_t>{0, 1}, batch, padding);
  CHECK(batch.batch == 6);
  CHECK(batch.time == 10);
  CHECK(batch.lengths == std::vector<int32_t>{5, 2, 1, 2, 10, 1});
  CHECK(batch.label_count == 2);
  CHECK(batch.labels == std::vector<int32_t>{1, 0, 0});
  CHECK(batch.row(0)[0] == 3);
  CHECK(batch.row(3)[0] == 4);
  CHECK(batch.row(4)[9] == 2);
  const auto error = [](const std::string& text) {
    return error_of([&] { parse_retrieval_tsv(text, "new_aan_pairs.eval.tsv"); });
  };
  CHECK(error("1\t2\t3\ttext\n").find("new_aan_pairs.eval.tsv: line 1: expected 5 columns") == 0);
  CHECK(error("1\t2\t3\ta\tb\nx\t2\t3\ta\tb\n").find("line 2: expected label 0 or 1, found 'x'") !=
        std::string::npos);
  CHECK(error("1\t2\t3\ta\t\xFF\n").find("column 5: expected UTF-8") != std::string::npos);
  CHECK(error("").find("at least one row") != std::string::npos);
}

TEST_CASE("pairs: the letters two documents favour tell whether they are of one topic") {
  PairsConfig c;
  c.l_max = 255;
  const auto task = make_task(c);
  std::vector<int64_t> indices(200);
  for (int64_t i = 0; i < 200; ++i) indices[i] = i;
  Batch batch;
  task->make(Split::train, indices, batch);
  CHECK(batch.batch == 400);
  int same = 0, right = 0;
  for (int64_t e = 0; e < 200; ++e) {
    std::vector<double> share[2];
    for (int64_t d = 0; d < 2; ++d) {
      const int64_t b = d * 200 + e, n = batch.lengths[b];
      REQUIRE(n >= 65);
      REQUIRE(n <= 255);
      REQUIRE(batch.row(b)[n - 1] == 2);
      share[d].assign(30, 0);
      for (int64_t t = 0; t + 1 < n; ++t) {
        REQUIRE(batch.row(b)[t] >= 3);
        REQUIRE(batch.row(b)[t] < 30);
        share[d][batch.row(b)[t]] += 1.0 / static_cast<double>(n - 1);
      }
    }
    double distance = 0;
    for (int k = 3; k < 30; ++k) distance += std::abs(share[0][k] - share[1][k]);
    right += (distance < 0.6) == (batch.labels[e] == 1);
    same += batch.labels[e];
  }
  CHECK(right > 180);
  CHECK(std::abs(same - 100) < 32);
  c.topics = 1;
  CHECK_THROWS_AS(make_task(c), UsageError);
  c.topics = 8, c.min_length = 255;
  CHECK_THROWS_AS(make_task(c), UsageError);
}

TEST_CASE("check_symbols: a model of another vocabulary is told the first difference") {
  const Folder dir("eigentrace_symbols");
  for (const auto& [name, text] : kReviews) write_file(dir.path / name, text);
  ImdbConfig c;
  c.data_dir = dir.path.string(), c.min_freq = 3;
  const auto task = make_task(c);
  std::vector<std::string> stored = task->symbols();
  CHECK_NOTHROW(check_symbols(*task, stored));
  stored[4] = "q";
  CHECK(error_of([&] { check_symbols(*task, stored); }).find("id 4: expected 'q', found 'a'") !=
        std::string::npos);
  stored = task->symbols();
  stored.pop_back();
  CHECK(error_of([&] { check_symbols(*task, stored); }).find("id 5: expected '(none)', found ' '") !=
        std::string::npos);
}
