#pragma once
// The header of a .npy file, shared by .npy and .npz.
#include <string>
#include <string_view>
#include <vector>

#include "tensor/io/host_array.h"

namespace eigentrace {

struct NpyHeader {
  DType dtype = DType::f32;
  bool fortran_order = false;
  std::vector<int64_t> shape;
  size_t bytes = 0;       ///< of magic and header: where the data begin
  size_t data_bytes = 0;  ///< that the shape asks for
};

std::string npy_header(const HostView& array);

/// Reads the header from the first bytes of a file (all of the header must be in them). Errors start with
/// `where`.
NpyHeader parse_npy_header(std::string_view start, const std::string& where);

/// Bytes that magic and header take, from the first 12 bytes of a file (fewer if the file is that short).
size_t npy_header_bytes(std::string_view start, const std::string& where);

/// Moves a column-major array's elements into row-major order.
void make_row_major(HostArray& array);

}  // namespace eigentrace
