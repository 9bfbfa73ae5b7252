// One process that trains, evaluates, saves, resumes and reads for a long time, and must not grow.
//   EIGENTRACE_SOAK_MINUTES   how long (tools/soak.sh); EIGENTRACE_SOAK_CSV: where its measurements go
#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>

#include "tests/tensor/io_testing.h"
#include "tests/tools/child.h"
#include "tests/tools/run_folders.h"

using namespace eigentrace;

namespace {

struct Usage {
  double minutes = 0;
  int64_t resident_kib = 0, descriptors = 0, threads = 0, cycles = 0;
};

Usage usage_now() {
  Usage usage;
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmRSS:")) usage.resident_kib = std::stoll(line.substr(6));
    if (line.starts_with("Threads:")) usage.threads = std::stoll(line.substr(8));
  }
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd"))
    ++usage.descriptors;
  return usage;
}

/// A run stopped half-way, resumed, read, described and reported: whatever the program does to a run.
void cycle(const TestFolder& temporary, const std::string& family, int64_t number) {
  const std::string yaml = temporary / (family + ".yaml"), out = temporary / "run", log = temporary / "log";
  if (!std::filesystem::exists(yaml)) write_atomically(yaml, short_yaml(family));
  std::filesystem::remove_all(out);
  std::string text;
  for (const std::vector<std::string>& arguments : std::vector<std::vector<std::string>>{
           {"train", yaml, "--out", out, "--max-steps", "7", "--threads", "1"},
           {"train", "--resume", out, "--threads", "1"},
           {"spectrum", out, "--check", "--threads", "1"},
           {"info", out},
           {"report", out, "-o", temporary / "report.html"}}) {
    const int code = run_caught(arguments, log, text);
    INFO(family, " ", arguments[0], ": ", text);
    REQUIRE(code == 0);
  }
  // Every tenth time a run that fails, in the ways it can.
  if (number % 10 == 0)
    REQUIRE(run_caught({"train", yaml, "--out", temporary / "failed", "--force", "--set", "train.lr=1e38",
                        "--set", "train.warmup_steps=0"},
                       log, text) == 1);
  if (number % 10 == 5) {
    io_faults().calls = 0;
    io_faults().fail_at = number % 97;
    REQUIRE(run_caught({"train", yaml, "--out", temporary / "full", "--force"}, log, text) == 1);
    io_faults().fail_at = -1;
  }
}

int64_t median_resident(const std::vector<Usage>& all, double from, double to) {
  std::vector<int64_t> values;
  for (size_t i = static_cast<size_t>(from * static_cast<double>(all.size()));
       i < static_cast<size_t>(to * static_cast<double>(all.size())); ++i)
    values.push_back(all[i].resident_kib);
  std::nth_element(values.begin(), values.begin() + static_cast<int64_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

}  // namespace

TEST_CASE("soak: memory, descriptors and threads do not grow after the warm-up" * doctest::skip()) {
  const char* minutes_text = std::getenv("EIGENTRACE_SOAK_MINUTES");
  if (!minutes_text) return;
  const double minutes = std::stod(minutes_text);
  const char* csv_path = std::getenv("EIGENTRACE_SOAK_CSV");
  std::ofstream csv(csv_path ? csv_path : "/dev/null");
  csv << "minutes,cycles,resident_kib,descriptors,threads\n";
  const TestFolder temporary;
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / 60;
  };
  std::vector<Usage> all;
  for (int64_t number = 0; elapsed() < minutes || all.size() < 8;) {
    for (const auto& [family, keys] : short_models()) cycle(temporary, family, number++);
    Usage usage = usage_now();
    usage.minutes = elapsed(), usage.cycles = number;
    all.push_back(usage);
    csv << fmt::format("{:.3f},{},{},{},{}\n", usage.minutes, number, usage.resident_kib, usage.descriptors,
                       usage.threads)
        << std::flush;
  }
  const int64_t early = median_resident(all, 0.25, 0.5), late = median_resident(all, 0.75, 1);
  const Usage warm = all[all.size() / 4], end = all.back();
  MESSAGE(fmt::format(
      "{:.1f} minutes, {} cycles; resident {} KiB in the second quarter, {} KiB in the last; "
      "descriptors {} and {}, threads {} and {}",
      end.minutes, end.cycles, early, late, warm.descriptors, end.descriptors, warm.threads, end.threads));
  CHECK(late - early < 2048);
  CHECK(end.descriptors == warm.descriptors);
  CHECK(end.threads == warm.threads);
}
