#pragma once
// SHA-256 (FIPS 180-4), to compare files with published checksums.
#include <string>
#include <string_view>

namespace eigentrace {

/// The digest in 64 lower-case hexadecimal digits.
std::string sha256(std::string_view bytes);

}  // namespace eigentrace
