#pragma once
// NumPy's files: .npy (one array) and .npz (a zip of .npy files), for f32, f64, i32, i64 and u8.
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "tensor/io/file.h"
#include "tensor/io/host_array.h"

namespace eigentrace {

struct NpzOptions {
  bool deflate = false;  ///< compress (zlib, level 6) instead of storing as it is
  uint64_t zip64_from =
      0xFFFFFFFF;  ///< sizes and offsets from here on are written as ZIP64; smaller only in tests
};

void write_npy(const std::string& path, const HostView& array);  ///< atomic
/// Atomic. Names are those numpy.load gives back. Errors: a name twice, empty, not UTF-8, longer than 65,531
/// bytes.
void write_npz(const std::string& path, const std::vector<std::pair<std::string, HostView>>& arrays,
               const NpzOptions& options = {});

/// Formats 1.0, 2.0 and 3.0; Fortran order is turned into row-major; bool is read as u8.
/// Errors name the file and the place: other types, big-endian, a header that lies, a file that is cut.
HostArray read_npy(const std::string& path);

/// Stored and deflated members, ZIP64 too, by name without ".npy". Every member's CRC-32 is checked.
/// Errors as read_npy, and: encrypted, overlapping, duplicate or foreign members; more than max_bytes when
/// unpacked.
std::map<std::string, HostArray> read_npz(const std::string& path, uint64_t max_bytes = uint64_t(1) << 36);

}  // namespace eigentrace
