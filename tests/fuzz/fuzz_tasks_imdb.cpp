// Any bytes as the archive of the reviews: a task or an Error.
#include <filesystem>
#include <string>

#include "tasks/imdb.h"
#include "tests/fuzz/fuzz_io.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace eigentrace;
  static const FuzzFile file;
  static const std::string folder = [] {
    const auto path =
        std::filesystem::temp_directory_path() / ("eigentrace_fuzz_" + std::to_string(::getpid()));
    std::filesystem::create_directories(path);
    std::filesystem::create_symlink(file.path(), path / "aclImdb_v1.tar.gz");
    return path.string();
  }();
  file.fill(data, bytes);
  ImdbConfig config;
  config.data_dir = folder;
  try {
    make_task(config);
  } catch (const Error&) {}
  return 0;
}
