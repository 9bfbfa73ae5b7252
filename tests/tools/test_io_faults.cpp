// Disks that fail under a whole training run: every system call that changes a file, one run each; a disk
// that is really full; and checkpoints with a flipped bit.
//   EIGENTRACE_SMALL_DISK   a folder on a file system of a few MB of its own (tools/try_full_disk.sh)
#include <doctest/doctest.h>
#include <sys/statvfs.h>

#include <cstring>
#include <fstream>
#include <set>

#include "tensor/rng.h"
#include "tests/tensor/io_testing.h"
#include "tests/tools/child.h"
#include "tests/tools/run_folders.h"

using namespace eigentrace;

namespace {

/// `train` in a folder; what there is of a run goes on, else it begins.
std::vector<std::string> train_arguments(const std::string& yaml, const std::string& out) {
  if (std::filesystem::exists(out + "/run.json")) return {"train", "--resume", out};
  return {"train", yaml, "--out", out};
}

size_t leftovers(const std::string& folder) {
  size_t count = 0;
  if (std::filesystem::exists(folder))
    for (const auto& entry : std::filesystem::directory_iterator(folder))
      count += contains(entry.path().filename(), ".tmp-") ? 1 : 0;
  return count;
}

/// A run whose call `fail_at` fails must end with code 1 and the path, leave whole files, and go on to
/// `whole`. Returns the name of the file that the error is about.
std::string fail_and_go_on(const std::string& yaml, const TestFolder& temporary, int64_t fail_at, int error,
                           const std::map<std::string, std::string>& whole) {
  const std::string out = temporary / "failing/run", log = temporary / "log";
  std::filesystem::remove_all(temporary / "failing");
  std::string text;
  io_faults().calls = 0;
  io_faults().error = error;
  io_faults().fail_at = fail_at;
  const int code = run_caught(train_arguments(yaml, out), log, text);
  io_faults().fail_at = -1;
  INFO(fail_at, " ", text);
  CHECK(code == 1);
  CHECK(contains(text, error == EIO ? "Input/output error" : "No space left on device"));
  CHECK(leftovers(out) == 0);
  const std::string checkpoint = out + "/checkpoint.safetensors";
  if (std::filesystem::exists(checkpoint)) CHECK(describe_checkpoint(checkpoint).not_finite.empty());
  const size_t at = text.find(out + "/");
  CHECK(at != std::string::npos);
  const size_t start = at + out.size() + 1;
  const std::string name =
      at == std::string::npos ? "" : text.substr(start, text.find_first_of(":\n ", start) - start);
  const bool complete =  // the very last call syncs the folder: everything is in place then
      std::filesystem::exists(out + "/spectrum_trained.json") &&
      RunFolder::open(out).read_info().state == "finished";
  if (!complete) CHECK(run_caught(train_arguments(yaml, out), log, text) == 0);
  CHECK(first_difference(whole, run_content(RunFolder::open(out))) == "");
  return name;
}

/// Every `stride`-th call that changes a file, each failing once.
std::set<std::string> fail_everywhere(int64_t stride, const std::vector<int>& errors) {
  const TestFolder temporary;
  const std::string yaml = temporary / "run.yaml", out = temporary / "whole/run";
  write_atomically(yaml, short_yaml("norm"));
  std::string text;
  io_faults().calls = 0;
  REQUIRE(run_caught(train_arguments(yaml, out), temporary / "log", text) == 0);
  const int64_t calls = io_faults().calls;
  const auto whole = run_content(RunFolder::open(out));
  REQUIRE(calls > 100);
  std::set<std::string> names;
  int64_t runs = 0;
  for (int64_t at = 0; at < calls; at += stride)
    for (const int error : errors) names.insert(fail_and_go_on(yaml, temporary, at, error, whole)), ++runs;
  if (stride == 1) {
    std::fprintf(stderr, "%lld calls that change files, %lld runs; errors in", static_cast<long long>(calls),
                 static_cast<long long>(runs));
    for (const std::string& name : names) std::fprintf(stderr, " %s", name.c_str());
    std::fprintf(stderr, "\n");
  }
  return names;
}

void write_raw(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc)
      .write(bytes.data(), static_cast<int64_t>(bytes.size()));
}

}  // namespace

TEST_CASE("disk: any failing call of a run is an error with its path, and the run goes on to the same bits") {
  CHECK(fail_everywhere(17, {ENOSPC}).size() > 3);
}

TEST_CASE("disk: … every call, full disk and I/O error" * doctest::skip()) {
  const std::set<std::string> names = fail_everywhere(1, {ENOSPC, EIO});
  for (const char* name :
       {"config.yaml", "run.json", "metrics.jsonl", "initial.safetensors", "checkpoint.safetensors",
        "spectrum_initial.npz", "spectrum_initial.json", "spectrum_step5.npz", "spectrum_step10.json",
        "spectrum_trained.npz", "spectrum_trained.json"}) {
    INFO(name);
    CHECK(names.count(name) == 1);
  }
}

TEST_CASE("disk: … a really full one, at 40 amounts of room" * doctest::skip()) {
  const char* disk = std::getenv("EIGENTRACE_SMALL_DISK");
  if (!disk) return;
  const TestFolder temporary;
  const std::string yaml = temporary / "run.yaml", whole_out = temporary / "whole/run",
                    log = temporary / "log";
  write_atomically(yaml, short_yaml("norm"));
  std::string text;
  REQUIRE(run_caught(train_arguments(yaml, whole_out), log, text) == 0);
  const auto whole = run_content(RunFolder::open(whole_out));
  uint64_t size = 0;
  for (const auto& entry : std::filesystem::directory_iterator(whole_out)) size += entry.file_size();
  const std::string filler = std::string(disk) + "/filler", out = std::string(disk) + "/run";
  int64_t failures = 0;
  for (int64_t level = 0; level < 40; ++level) {
    std::filesystem::remove_all(out);
    std::filesystem::remove(filler);
    struct statvfs room;
    REQUIRE(::statvfs(disk, &room) == 0);
    const uint64_t bytes = room.f_bavail * room.f_frsize, left = size * static_cast<uint64_t>(level) / 40;
    REQUIRE(bytes > 2 * size);
    REQUIRE(bytes < uint64_t{64} << 20);
    write_raw(filler, std::string(bytes - left, 'x'));
    const int code = run_caught(train_arguments(yaml, out), log, text);
    INFO(left, " bytes of room: ", text);
    CHECK((code == 0 || code == 1));
    if (code == 1) {
      ++failures;
      CHECK((contains(text, "No space left on device") && contains(text, out)));
      CHECK(leftovers(out) == 0);
    }
    std::filesystem::remove(filler);
    if (code == 1) CHECK(run_caught(train_arguments(yaml, out), log, text) == 0);
    CHECK(first_difference(whole, run_content(RunFolder::open(out))) == "");
  }
  std::fprintf(stderr, "%lld of 40 runs met the full disk\n", static_cast<long long>(failures));
  CHECK(failures > 30);
}

TEST_CASE("checkpoint: one flipped bit, wherever it is, and any cut is found and the file named") {
  const TestFolder temporary;
  const RunFolder folder = RunFolder::create(temporary / "run", true);
  Trainer(short_config("s5"), folder, silent_run(3)).run();
  const std::string path = folder.checkpoint(), bytes = read_file(path);
  uint64_t header = 0;
  std::memcpy(&header, bytes.data(), 8);
  const size_t data = 8 + header;
  Rng rng(5);
  std::vector<size_t> positions;  // of bits
  for (size_t bit = 0; bit < 64; ++bit) positions.push_back(bit);
  for (int i = 0; i < 600; ++i) positions.push_back(64 + rng.below(static_cast<uint32_t>(8 * header)));
  const size_t checksum = bytes.find("\"crc32\":\"");
  REQUIRE(checksum != std::string::npos);
  for (size_t bit = 8 * checksum; bit < 8 * (checksum + 18); ++bit) positions.push_back(bit);
  size_t tensors = 0;
  {
    const SafetensorsReader reader(path);
    for (const auto& [name, entry] : reader.entries()) {
      ++tensors;
      for (int i = 0; i < 3; ++i)
        positions.push_back(8 * (data + entry.begin) +
                            rng.below(static_cast<uint32_t>(8 * (entry.end - entry.begin))));
    }
  }
  REQUIRE(tensors > 60);
  for (int i = 0; i < 200; ++i)
    positions.push_back(8 * data + rng.below(static_cast<uint32_t>(8 * (bytes.size() - data))));
  for (const size_t bit : positions) {
    std::string damaged = bytes;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << bit % 8));
    write_raw(path, damaged);
    const std::string message = error_of([&] { describe_checkpoint(path); });
    INFO("bit ", bit, " of byte ", bit / 8, " (data from ", data, "): ", message);
    CHECK(contains(message, path));
    if (bit % 16 == 0) CHECK(contains(error_of([&] { Trainer::resume(folder, silent_run()); }), path));
  }
  for (int i = 0; i < 100; ++i) {
    write_raw(path, bytes.substr(0, i == 0 ? 0 : rng.below(static_cast<uint32_t>(bytes.size()))));
    CHECK(contains(error_of([&] { describe_checkpoint(path); }), path));
  }
  write_raw(path, bytes);
  CHECK(Trainer::resume(folder, silent_run())->run().state == "finished");
}
