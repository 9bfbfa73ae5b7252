#include <doctest/doctest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>

#include "tensor/io/file.h"
#include "tools/tensorboard.h"

using namespace eigentrace;

namespace {

template <class T>
T number_at(const std::string& bytes, size_t at) {
  T value;
  REQUIRE(at + sizeof(T) <= bytes.size());
  std::memcpy(&value, bytes.data() + at, sizeof(T));
  return value;
}

uint32_t unmasked(uint32_t masked) {
  const uint32_t rotated = masked - 0xA282EAD8u;
  return rotated >> 17 | rotated << 15;
}

/// Payloads of a TFRecord file, checksums checked.
std::vector<std::string> records_of(const std::string& file) {
  std::vector<std::string> payloads;
  for (size_t at = 0; at < file.size();) {
    const auto length = number_at<uint64_t>(file, at);
    CHECK(unmasked(number_at<uint32_t>(file, at + 8)) == crc32c(file.substr(at, 8)));
    payloads.push_back(file.substr(at + 12, length));
    CHECK(unmasked(number_at<uint32_t>(file, at + 12 + length)) == crc32c(payloads.back()));
    at += 16 + length;
  }
  return payloads;
}

}  // namespace

TEST_CASE("tensorboard: CRC-32C has the standard's check value") {
  CHECK(crc32c("123456789") == 0xE3069283u);
  CHECK(crc32c("") == 0);
  CHECK(crc32c(std::string(32, '\0')) == 0x8A9136AAu);  // RFC 3720, B.4
}

TEST_CASE("tensorboard: an event's bytes, written out") {
  MetricsRow row;
  row.step = 300, row.split = "test", row.loss = 0.5, row.accuracy = 1;
  // wall_time 1.5, step 300, summary of 40 bytes; in it two values: tag and float
  const std::string expected = std::string("\x09\x00\x00\x00\x00\x00\x00\xf8\x3f\x10\xac\x02\x2a\x28", 14) +
                               std::string("\x0a\x10\x0a\x09test/loss\x15\x00\x00\x00\x3f", 18) +
                               std::string("\x0a\x14\x0a\x0dtest/accuracy\x15\x00\x00\x80\x3f", 22);
  CHECK(scalar_event(1.5, row) == expected);
}

TEST_CASE("tensorboard: a file that was begun anew and appended to holds all rows in order") {
  const std::string path =
      (std::filesystem::temp_directory_path() / ("eigentrace-tb-" + std::to_string(getpid()))).string();
  std::filesystem::remove_all(path);
  const RunFolder folder = RunFolder::create(path, true);
  std::filesystem::create_directories(path);
  MetricsRow row;
  row.split = "train", row.loss = 2;
  std::vector<MetricsRow> rows;
  for (row.step = 10; row.step <= 30; row.step += 10) rows.push_back(row);
  { TensorboardFile first(folder, rows); }
  TensorboardFile again(folder, rows);  // as a resumed run does
  row.step = 40;
  again.add(row);
  const std::vector<std::string> records = records_of(read_file(path + "/events.out.tfevents.eigentrace"));
  REQUIRE(records.size() == 5);
  CHECK(records[0].find("brain.Event:2") != std::string::npos);
  for (size_t i = 1; i < 5; ++i)
    CHECK(records[i].substr(9, 2) == std::string{0x10, static_cast<char>(10 * i)});
  std::filesystem::remove_all(path);
}
