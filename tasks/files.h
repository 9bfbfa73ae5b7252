#pragma once
// Reading data files: whole files at once, and errors that say what is missing, where it is published, where
// to put it.
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace eigentrace {

/// A published data set, as error messages and `describe` speak of it.
struct DataSource {
  const char* name;    ///< what tools/download_data.sh calls it; empty if the script cannot fetch it
  const char* url;     ///< page or archive it is published at
  const char* layout;  ///< the files wanted below data_dir
};

/// Throws: the file that is missing or wrong (`problem`), where the set is published and how to place it.
[[noreturn]] void fail_data(const std::filesystem::path& file, const std::string& problem,
                            const DataSource& source);

/// All bytes of a file of the set. Errors: missing, a folder, unreadable.
std::string read_data(const std::filesystem::path& file, const DataSource& source);

/// The first of `candidates` (relative to data_dir) that exists; an error that names them all otherwise.
std::filesystem::path find_data(const std::string& data_dir, const std::vector<std::string>& candidates,
                                const DataSource& source);

/// Writes a file whole or not at all, making its folder first.
void write_file(const std::filesystem::path& file, std::string_view bytes);

/// Lines of a text with their ends (LF, CR LF) removed. Nothing follows a last line end.
std::vector<std::string_view> split_lines(std::string_view text);
/// Fields between tabs.
std::vector<std::string_view> split_tabs(std::string_view line);

/// Bytes that are no UTF-8 (the offset of the first), or -1. Overlong forms and surrogates are refused.
int64_t invalid_utf8(std::string_view text);

}  // namespace eigentrace
