#pragma once
// Two runs on disk compared: everything that must be the same to the last bit, times and speeds left out.
#include <doctest/doctest.h>

#include <filesystem>
#include <map>
#include <regex>
#include <string>

#include "tensor/io/npy.h"
#include "tests/tools/run_testing.h"

namespace eigentrace {

/// File name → its content without times.
inline std::map<std::string, std::string> run_content(const RunFolder& folder) {
  std::map<std::string, std::string> content;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
    const std::string path = entry.path(), name = entry.path().filename(), type = entry.path().extension();
    std::string& text = content[name];
    if (type == ".safetensors") {
      for (const auto& [tensor, bytes] : checkpoint_tensors(path))
        text += tensor + ": " + std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()) + "\n";
      const CheckpointAbout about = describe_checkpoint(path);
      if (!about.state) continue;
      text += fmt::format("step {} plateau {} {} {}\n", about.state->step, about.state->plateau.best,
                          about.state->plateau.scale, about.state->plateau.count);
      for (const auto& [key, value] : about.state->numbers)
        if (key != "wall_seconds" && key != "metrics_bytes") text += fmt::format("{} {}\n", key, value);
    } else if (type == ".npz") {
      for (const auto& [array, values] : read_npz(path))
        if (array != "metadata")
          text += array + ": " +
                  std::string(reinterpret_cast<const char*>(values.bytes.data()), values.bytes.size()) + "\n";
    } else if (name == "metrics.jsonl") {
      for (const std::string& row : metrics_rows(folder)) text += row + "\n";
    } else if (name == "run.json") {
      const RunInfo info = folder.read_info();
      text = fmt::format("{} {} {} {} {} {} {} {}", info.name, info.task, info.family, info.seed, info.step,
                         info.total_steps, info.state, info.reason);
    } else {
      text = std::regex_replace(read_file(path), std::regex("_seconds\": *\"?[0-9.e+-]*"), "");
    }
  }
  return content;
}

/// Empty, or the first file that differs.
inline std::string first_difference(const std::map<std::string, std::string>& expected,
                                    const std::map<std::string, std::string>& found) {
  for (const auto& [name, text] : expected)
    if (!found.count(name))
      return name + " is missing";
    else if (found.at(name) != text)
      return name + " differs";
  for (const auto& [name, text] : found)
    if (!expected.count(name)) return name + " should not be there";
  return "";
}

}  // namespace eigentrace
