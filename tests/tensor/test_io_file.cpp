#include <sys/stat.h>
#include <unistd.h>

#include "tests/tensor/io_testing.h"

using namespace eigentrace;
namespace fs = std::filesystem;

TEST_CASE("io file: a written file is read back, whatever its size") {
  TestFolder folder;
  for (const size_t bytes : {0, 1, 63, 100, 262143, 262144, 262145, 1000003}) {
    std::string text(bytes, ' ');
    for (size_t i = 0; i < bytes; i++) text[i] = char(i * 31 + i / 251);
    write_atomically(folder / "f", text);
    CHECK(read_file(folder / "f") == text);
    CHECK(folder.files() == 1);
  }
}

TEST_CASE("io file: every failing call leaves the old file and nothing else") {
  TestFolder folder;
  const std::string text(700000, 'x');  // three buffers
  const int64_t calls = fail_every_call(folder, folder / "f", [&] { write_atomically(folder / "f", text); });
  CHECK(calls == 8);  // open, three writes, sync, close, rename, folder sync
}

TEST_CASE("io file: an exception of the body leaves the old file and nothing else") {
  TestFolder folder;
  write_atomically(folder / "f", "old");
  CHECK_THROWS_AS(write_atomically(folder / "f",
                                   [](FileWriter& file) {
                                     file.write(std::string(300000, 'n'));
                                     throw std::bad_alloc();
                                   }),
                  std::bad_alloc);
  CHECK(read_file(folder / "f") == "old");
  CHECK(folder.files() == 1);
}

TEST_CASE("io file: a full disk names the bytes needed") {
  TestFolder folder;
  io_faults().calls = 0;
  io_faults().fail_at = 2;
  io_faults().error = ENOSPC;
  const std::string message = error_of([&] { write_atomically(folder / "f", std::string(700000, 'x')); });
  io_faults().fail_at = -1;
  CHECK(contains(message, "No space left on device (errno 28) after 393216 bytes"));
  CHECK(contains(message, "at least 700000 bytes are needed, 306784 of them still missing"));
}

TEST_CASE("io file: only regular files are replaced, links are followed, permissions kept") {
  TestFolder folder;
  CHECK(contains(error_of([&] { write_atomically(folder.path, "x"); }), "expected a regular file"));
  CHECK(contains(error_of([&] { write_atomically("/dev/null", "x"); }), "expected a regular file"));
  CHECK(
      contains(error_of([&] { write_atomically(folder / "no/such/f", "x"); }), "No such file or directory"));
  write_atomically(folder / "target", "old");
  REQUIRE(::chmod((folder / "target").c_str(), 0640) == 0);
  fs::create_symlink(folder / "target", folder / "link");
  write_atomically(folder / "link", "new");
  CHECK(fs::is_symlink(folder / "link"));
  CHECK(read_file(folder / "target") == "new");
  CHECK(fs::status(folder / "target").permissions() == fs::perms(0640));
}

TEST_CASE("io file: temporary files of killed writers are taken away, those of living ones are not") {
  TestFolder folder;
  write_atomically(folder / ".f.tmp-999999999-0", "left by the dead");
  write_atomically(folder / (".f.tmp-" + std::to_string(::getppid()) + "-0"), "still being written");
  write_atomically(folder / ".g.tmp-999999999-0", "another file's");
  write_atomically(folder / "f", "new");
  CHECK_FALSE(fs::exists(folder / ".f.tmp-999999999-0"));
  CHECK(folder.files() == 3);
}

TEST_CASE("io file: lines are appended, and resuming cuts what came after") {
  TestFolder folder;
  {
    AppendFile file(folder / "m.jsonl");
    file.append_line("{\"step\":1}");
    CHECK(file.size() == 11);
    file.append_line("{\"step\":2}");
    file.append_line("");
    file.sync();
    CHECK(contains(error_of([&] { file.append_line("a\nb"); }), "newline"));
  }
  CHECK(read_file(folder / "m.jsonl") == "{\"step\":1}\n{\"step\":2}\n\n");
  {
    AppendFile file(folder / "m.jsonl", 11);
    file.append_line("again");
  }
  CHECK(read_file(folder / "m.jsonl") == "{\"step\":1}\nagain\n");
  CHECK(contains(error_of([&] { AppendFile file(folder / "m.jsonl", 18); }), "expected at least 18 bytes"));
  AppendFile(folder / "m.jsonl").append_line("more");
  CHECK(read_file(folder / "m.jsonl") == "{\"step\":1}\nagain\nmore\n");
}

TEST_CASE("io file: a failing append leaves no half line, and appending goes on") {
  TestFolder folder;
  AppendFile file(folder / "m");
  file.append_line("first");
  io_faults().calls = 0;
  io_faults().fail_at = 0;
  io_faults().error = ENOSPC;
  CHECK(contains(error_of([&] { file.append_line("a line that gets lost"); }),
                 "No space left on device (errno 28); 22 bytes"));
  io_faults().fail_at = -1;
  CHECK(read_file(folder / "m") == "first\n");
  file.append_line("second");
  CHECK(read_file(folder / "m") == "first\nsecond\n");
}

TEST_CASE("io file: reading says what is missing") {
  TestFolder folder;
  CHECK(contains(error_of([&] { read_file(folder / "none"); }), "No such file or directory"));
  CHECK(contains(error_of([&] { read_file(folder.path); }), "expected a regular file, found a folder"));
  write_atomically(folder / "f", "0123456789");
  CHECK(contains(error_of([&] { read_file(folder / "f", 9); }), "expected at most 9 bytes, found 10"));
  const InputFile file(folder / "f");
  char two[2];
  file.read_at(8, two, 2);
  CHECK(std::string(two, 2) == "89");
  CHECK(contains(error_of([&] { file.read_at(9, two, 2); }),
                 "expected 2 bytes at offset 9, found a file of 10"));
  CHECK(contains(error_of([&] { file.read_at(~uint64_t(0), two, 2); }), "cut short"));
  fs::resize_file(folder / "f", 5);
  CHECK(contains(error_of([&] { file.read_at(8, two, 2); }), "was cut short while being read"));
}

TEST_CASE("io file: folders are made with their parents, and never over a file") {
  TestFolder folder;
  ensure_directory(folder / "a/b/c");
  ensure_directory(folder / "a/b/c");
  CHECK(fs::is_directory(folder / "a/b/c"));
  write_atomically(folder / "f", "");
  CHECK(contains(error_of([&] { ensure_directory(folder / "f"); }), "expected a folder"));
  CHECK(contains(error_of([&] { ensure_directory(folder / "f/g"); }), "expected a folder"));
}

TEST_CASE("io file: crc32 is the zip checksum and continues") {
  CHECK(crc32("123456789", 9) == 0xCBF43926u);
  CHECK(crc32("6789", 4, crc32("12345", 5)) == 0xCBF43926u);
  CHECK(crc32(nullptr, 0, 7) == 7u);
}
