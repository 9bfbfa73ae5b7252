// Runs that are interrupted: by signals that ask, and by SIGKILL at moments drawn from a seed.
//   EIGENTRACE_KILLS, EIGENTRACE_KILL_SEED   how many moments the slow case draws (200), from which seed (1)
//   EIGENTRACE_KILL_ONLY                     only the moment of that number, as a failure names it
#include <doctest/doctest.h>

#include <chrono>
#include <cstdio>
#include <thread>

#include "tensor/rng.h"
#include "tests/tensor/io_testing.h"
#include "tests/tools/child.h"
#include "tests/tools/run_folders.h"
#include "tools/commands.h"

using namespace eigentrace;

namespace {

using Clock = std::chrono::steady_clock;

int64_t from_environment(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text ? std::stoll(text) : otherwise;
}

void sleep_seconds(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

/// A family's uninterrupted run, and what interrupting needs to know of it.
struct Whole {
  std::map<std::string, std::string> content;
  double seconds = 0;  ///< of the whole process
  int64_t calls = 0;   ///< system calls that change files
};

class Kills {
 public:
  explicit Kills(uint64_t seed) : seed_(seed) {
    for (const auto& [family, keys] : short_models()) families_.push_back(family);
  }

  /// Kills a run at the moment of that number, resumes it (perhaps killed again) and compares. Returns what
  /// happened; `wrong` is empty if all is well.
  int64_t hits = 0;  ///< kills that met a living process
  std::string moment(int64_t number, std::string& wrong) {
    Rng rng(seed_, static_cast<uint64_t>(number));
    const std::string family = families_[static_cast<size_t>(number) % families_.size()];
    const Whole& whole = whole_run(family);
    const std::string out = temporary_ / fmt::format("{}/run", number), log = temporary_ / "log";
    std::string story = fmt::format("seed {}, moment {}: {}", seed_, number, family);
    double hurry = 1;
    for (int attempt = 0; wrong.empty(); ++attempt) {
      const bool begun = std::filesystem::exists(out + "/run.json");
      if (begun && RunFolder::open(out).read_info().state == "finished" &&
          std::filesystem::exists(out + "/spectrum_trained.json"))
        break;
      std::vector<std::string> arguments = {"train", "--threads", "1"};
      if (begun)
        arguments.insert(arguments.end(), {"--resume", out});
      else
        arguments.insert(arguments.end(), {config(family), "--out", out});
      // The first run is always killed, what goes on from it every third time.
      const bool killed = attempt == 0 || (attempt < 4 && rng.below(3) == 0);
      const bool at_write = rng.below(2) == 0;
      const int64_t call = static_cast<int64_t>(rng.below(static_cast<uint32_t>(whole.calls)));
      const double delay = whole.seconds * hurry * rng.uniform();
      Child child(arguments, log, killed && at_write ? call : -1);
      if (killed && !at_write) sleep_seconds(delay), child.send(SIGKILL);
      const int code = child.wait();
      story += fmt::format("; {} {}", begun ? "resumed" : "begun",
                           !killed    ? "to the end"
                           : at_write ? fmt::format("killed at file call {} of {}", call, whole.calls)
                                      : fmt::format("killed after {:.4f} s of {:.4f}", delay, whole.seconds));
      if (code == 0 && killed) {
        story += " (had ended)";
        if (attempt == 0) std::filesystem::remove_all(out), attempt = -1, hurry /= 2;  // too late to count
      }
      if (code != 0 && killed) ++hits;
      if (code == 0) continue;
      if (!killed || code != 128 + SIGKILL) wrong = fmt::format("exit code {}: {}", code, read_file(log));
    }
    if (wrong.empty()) wrong = first_difference(whole.content, run_content(RunFolder::open(out)));
    std::filesystem::remove_all(temporary_ / fmt::format("{}", number));
    return story;
  }

 private:
  std::string config(const std::string& family) const { return temporary_ / (family + ".yaml"); }

  const Whole& whole_run(const std::string& family) {
    Whole& whole = whole_[family];
    if (!whole.content.empty()) return whole;
    write_atomically(config(family), short_yaml(family));
    const std::string out = temporary_ / (family + "/run"), log = temporary_ / "log";
    const Clock::time_point start = Clock::now();
    const int code = Child({"train", config(family), "--out", out, "--threads", "1"}, log).wait();
    whole.seconds = std::chrono::duration<double>(Clock::now() - start).count();
    INFO(read_file(log));
    REQUIRE(code == 0);
    whole.content = run_content(RunFolder::open(out));
    whole.calls = std::stoll(read_file(log + ".calls"));
    REQUIRE(whole.content.size() > 12);  // config, run, metrics, weights, checkpoint and spectra
    REQUIRE(whole.calls > 100);
    return whole;
  }

  uint64_t seed_;
  TestFolder temporary_;
  std::vector<std::string> families_;
  std::map<std::string, Whole> whole_;
};

void kill_at(int64_t count, uint64_t seed) {
  Kills kills(seed);
  const int64_t only = from_environment("EIGENTRACE_KILL_ONLY", -1);
  for (int64_t number = only < 0 ? 0 : only; number < (only < 0 ? count : only + 1); ++number) {
    std::string wrong;
    const std::string story = kills.moment(number, wrong);
    if (count > 20)
      std::fprintf(stderr, "%s: %s\n", story.c_str(), wrong.empty() ? "same bits" : wrong.c_str());
    INFO(story);
    CHECK(wrong == "");
  }
  CHECK(kills.hits >= (only < 0 ? count : 1));
  if (count > 20) std::fprintf(stderr, "%lld kills\n", static_cast<long long>(kills.hits));
}

}  // namespace

TEST_CASE("child: runs the program, as EIGENTRACE_CHILD says" * doctest::skip()) {
  const char* lines = std::getenv("EIGENTRACE_CHILD");
  if (!lines) return;  // only of use to the cases below
  std::vector<std::string> arguments(1);
  for (const char* c = lines; *c; ++c)
    if (*c == '\n')
      arguments.emplace_back();
    else
      arguments.back() += *c;
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  io_faults().kill = true;
  io_faults().fail_at = from_environment("EIGENTRACE_CHILD_KILL_AT", -1);
  const int code = run_program(static_cast<int>(argv.size()), argv.data());
  const int64_t calls = io_faults().calls;
  char log[4096] = {};
  if (code == 0 && ::readlink("/proc/self/fd/2", log, sizeof log - 1) > 0)
    write_atomically(std::string(log) + ".calls", std::to_string(calls));
  std::fflush(nullptr);
  std::_Exit(code);
}

TEST_CASE("signals: SIGINT and SIGTERM save, exit with 0, and the run goes on to the same bits") {
  const TestFolder temporary;
  for (const int signal : {SIGINT, SIGTERM}) {
    INFO(signal);
    const std::string yaml = temporary / "run.yaml", log = temporary / "log";
    write_atomically(yaml, short_yaml("norm"));
    const std::vector<std::string> settings = {
        "--set", "train.total_steps=300",    "--set",     "train.eval_every=120",
        "--set", "train.checkpoint_every=0", "--threads", "1"};
    std::vector<std::string> train = {"train", yaml, "--out", temporary / "whole/run"};
    train.insert(train.end(), settings.begin(), settings.end());
    if (!std::filesystem::exists(temporary / "whole")) REQUIRE(Child(train, log).wait() == 0);
    train[3] = temporary / fmt::format("{}/run", signal);
    Child child(train, log);
    const std::string metrics = train[3] + "/metrics.jsonl";
    const auto started = [&] { return std::filesystem::exists(metrics) && read_file(metrics).size() > 0; };
    while (child.running() && !started()) sleep_seconds(0.002);
    child.send(signal);
    CHECK(child.wait() == 0);
    const RunFolder folder = RunFolder::open(train[3]);
    const RunInfo info = folder.read_info();
    CHECK(info.state == "stopped");
    CHECK(info.reason == (signal == SIGINT ? "SIGINT" : "SIGTERM"));
    CHECK(info.step < 300);
    CHECK(describe_checkpoint(folder.checkpoint()).state.value().step == info.step);
    CHECK(Child({"train", "--resume", train[3], "--threads", "1"}, log).wait() == 0);
    CHECK(first_difference(run_content(RunFolder::open(temporary / "whole/run")), run_content(folder)) == "");
  }
}

TEST_CASE("kill: a run killed at any of 7 moments goes on to the bits of an uninterrupted one") {
  kill_at(7, 1);
}

TEST_CASE("kill: … at any of 200 moments" * doctest::skip()) {
  if (std::getenv("EIGENTRACE_CHILD")) return;
  kill_at(from_environment("EIGENTRACE_KILLS", 200),
          static_cast<uint64_t>(from_environment("EIGENTRACE_KILL_SEED", 1)));
}
