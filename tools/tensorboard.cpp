#include "tools/tensorboard.h"

#include <array>
#include <bit>
#include <chrono>
#include <cmath>

namespace eigentrace {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

template <class T>
void append_bytes(std::string& out, T value) {
  static_assert(std::endian::native == std::endian::little);
  out.append(reinterpret_cast<const char*>(&value), sizeof(T));
}

// Protocol buffers: a field is a key (number << 3 | wire type) and a value; wire types 0 varint, 1 eight
// bytes, 2 length and bytes, 5 four bytes.
void varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>(value | 0x80));
  out.push_back(static_cast<char>(value));
}
void bytes_field(std::string& out, unsigned number, const std::string& bytes) {
  varint(out, number << 3 | 2);
  varint(out, bytes.size());
  out += bytes;
}

/// The polynomial 0x1EDC6F41, bits reversed.
constexpr std::array<uint32_t, 256> crc_table = [] {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t x = i;
    for (int bit = 0; bit < 8; ++bit) x = x & 1 ? x >> 1 ^ 0x82F63B78u : x >> 1;
    table[i] = x;
  }
  return table;
}();

/// CRCs are stored rotated and shifted, so that the CRC of data that hold CRCs is no trivial one.
uint32_t masked(uint32_t crc) { return (crc >> 15 | crc << 17) + 0xA282EAD8u; }

std::string first_event(double wall_time) {
  std::string event;
  event.push_back(1 << 3 | 1);  // Event.wall_time
  append_bytes(event, wall_time);
  bytes_field(event, 3, "brain.Event:2");  // Event.file_version
  return event;
}

}  // namespace

uint32_t crc32c(const std::string& bytes) {
  uint32_t crc = 0xFFFFFFFFu;
  for (const char c : bytes) crc = crc_table[(crc ^ static_cast<unsigned char>(c)) & 0xFF] ^ crc >> 8;
  return ~crc;
}

std::string tfrecord(const std::string& payload) {
  std::string length;
  append_bytes(length, static_cast<uint64_t>(payload.size()));
  std::string record = length;
  append_bytes(record, masked(crc32c(length)));
  record += payload;
  append_bytes(record, masked(crc32c(payload)));
  return record;
}

std::string scalar_event(double wall_time, const MetricsRow& row) {
  std::string summary;
  const auto add = [&](const char* name, double value) {
    std::string entry;
    bytes_field(entry, 1, row.split + "/" + name);  // Summary.Value.tag
    entry.push_back(2 << 3 | 5);                    // Summary.Value.simple_value
    append_bytes(entry, static_cast<float>(value));
    bytes_field(summary, 1, entry);  // Summary.value
  };
  add("loss", row.loss);
  add("accuracy", row.accuracy);
  if (row.macro_accuracy) add("macro_accuracy", *row.macro_accuracy);
  if (row.split == "train") {
    add("learning_rate", row.learning_rate);
    add("gradient_norm", row.gradient_norm);
    add("steps_per_second", row.steps_per_second);
  }
  std::string event;
  event.push_back(1 << 3 | 1);
  append_bytes(event, wall_time);
  event.push_back(2 << 3 | 0);  // Event.step
  varint(event, static_cast<uint64_t>(row.step));
  bytes_field(event, 5, summary);  // Event.summary
  return event;
}

TensorboardFile::TensorboardFile(const RunFolder& folder, const std::vector<MetricsRow>& rows) {
  const std::string path = folder.path() + "/events.out.tfevents.eigentrace";
  std::string text = tfrecord(first_event(now()));
  for (const MetricsRow& row : rows) text += tfrecord(scalar_event(now(), row));
  write_atomically(path, text);
  file_ = std::make_unique<AppendFile>(path, text.size());
}

void TensorboardFile::add(const MetricsRow& row) { file_->append(tfrecord(scalar_event(now(), row))); }

}  // namespace eigentrace
