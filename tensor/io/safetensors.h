#pragma once
// Named arrays in one file: the safetensors format (8 bytes: length of the header; the header: JSON; the
// data).
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "tensor/io/file.h"
#include "tensor/io/host_array.h"

namespace eigentrace {

/// What the header says of one array.
struct SafetensorsEntry {
  std::string dtype;  ///< as in the file: F64, F32, F16, BF16, I64, I32, U8, BOOL or another of the format's
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;  ///< bytes of the data, counted from the end of the header
};

/// Opens and checks a file. The header is at most 100 MB of JSON; dtypes are known, sizes agree with shapes,
/// and the arrays cover the data without overlap or gap. Everything else is an Error that names the file and
/// the place.
class SafetensorsReader {
 public:
  explicit SafetensorsReader(const std::string& path);

  const std::map<std::string, SafetensorsEntry>& entries() const { return entries_; }  ///< by name
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  bool contains(const std::string& name) const { return entries_.count(name) > 0; }

  /// F32, F64, I32, I64, U8 as they are, BOOL as u8 (0 or 1). Error for any other dtype, or if there is no
  /// such array.
  HostArray read(const std::string& name) const;
  /// F16 and BF16 too, converted to f32 (exact); others as read().
  HostArray read_widened(const std::string& name) const;

  /// Error unless header and data have the checksum that write_safetensors put into the metadata (key
  /// "crc32").
  void verify_checksum() const;

 private:
  HostArray read_any(const std::string& name, bool widen) const;
  InputFile file_;
  std::string header_;
  std::map<std::string, SafetensorsEntry> entries_;
  std::map<std::string, std::string> metadata_;
};

using SafetensorsArrays = std::vector<std::pair<std::string, HostView>>;

/// Writes atomically. Arrays lie in the format's order (wide elements first, then by name), so that each is
/// aligned. metadata gets one key more, "crc32": a checksum of header and data that verify_checksum compares.
/// Errors: a name twice or empty or "__metadata__" or not UTF-8; metadata with the key "crc32"; the system's
/// own.
void write_safetensors(const std::string& path, const SafetensorsArrays& arrays,
                       std::map<std::string, std::string> metadata = {});

}  // namespace eigentrace
