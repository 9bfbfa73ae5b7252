#include "tools/sweep_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <csignal>
#include <set>
#include <utility>

#include "tensor/error.h"
#include "tensor/io/file.h"
#include "tools/progress.h"

namespace eigentrace {
namespace {

constexpr int look_again_milliseconds = 1000;
constexpr size_t error_lines = 12, error_bytes = 4000;

/// Where a point may be trained, and the child that does.
struct Place {
  std::string device;
  std::optional<Claim> claim;
  pid_t child = -1;
  uint64_t log_start = 0;  // what the log held before this child
};

/// What a child left in its log at the end.
std::string last_lines(const std::string& path, uint64_t from) {
  const InputFile file(path);
  const uint64_t size = file.size();
  const uint64_t start = std::max(from, size > error_bytes ? size - error_bytes : 0);
  std::string text(size > start ? size - start : 0, '\0');
  file.read_at(start, text.data(), text.size());
  while (!text.empty() && text.back() == '\n') text.pop_back();
  size_t at = text.size();
  for (size_t lines = 0; lines < error_lines && at != std::string::npos && at > 0; ++lines)
    at = text.rfind('\n', at - 1);
  return at == std::string::npos || at == 0 ? text : text.substr(at + 1);
}

std::vector<std::string> arguments_of(const std::string& run, const std::string& device,
                                      const SweepRunOptions& options) {
  std::vector<std::string> words;
  const std::optional<RunResult> begun = run_result(run);
  if (begun && begun->info.state == "finished")
    words = {"spectrum", run, "--stage", "trained"};  // it was stopped between the two
  else if (begun)
    words = {"train", "--resume", run};
  else {
    words = {"train", run + "/point.yaml", "--out", run};
    words.insert(words.end(), options.arithmetic.begin(), options.arithmetic.end());
  }
  words.insert(words.end(), {"--device", device, "--threads", std::to_string(options.threads)});
  return words;
}

using Asked = SignalWatch::Asked;

class Sweep {
 public:
  Sweep(SweepStore& store, const SweepRunOptions& options)
      : store_(store), options_(options), total_(points_of_interest().size()) {
    for (const std::string& device : options.devices) places_.push_back(Place{device, {}, -1, 0});
  }

  bool run() {
    SignalWatch signals;
    try {
      for (;;) {
        if (signals.asked() == Asked::nothing) fill();
        if (idle() && (signals.asked() != Asked::nothing || nothing_left())) break;
        signals.wait(look_again_milliseconds);
        pass_on(signals.asked());
        reap();
      }
    } catch (...) {  // the disk is full, say: what runs may still save itself
      pass_on(Asked::stop);
      throw;
    }
    return signals.asked() == Asked::nothing;
  }

 private:
  std::vector<PointRecord> points_of_interest() const {
    std::vector<PointRecord> points = store_.points();
    const std::vector<std::string> planned = store_.planned();
    const std::set<std::string> wanted(options_.only.empty() ? planned.begin() : options_.only.begin(),
                                       options_.only.empty() ? planned.end() : options_.only.end());
    std::erase_if(points, [&](const PointRecord& p) { return !wanted.contains(p.name); });
    return points;
  }

  bool idle() const {
    return std::ranges::all_of(places_, [](const Place& place) { return place.child < 0; });
  }

  bool nothing_left() {
    for (const PointRecord& p : points_of_interest())
      if (p.state != "finished" && p.state != "failed") {
        if (p.state == "running" && !std::exchange(waiting_, true))
          say(fmt::format("waiting for {}, which {} holds", p.name, p.worker));
        return false;
      }
    return true;
  }

  void say(const std::string& text) const {
    if (options_.progress) fmt::print(stderr, "{}\n", text);
  }

  /// "[3/8]": ended points of all.
  std::string count() const {
    const std::vector<PointRecord> points = points_of_interest();
    const auto ended = std::ranges::count_if(
        points, [](const PointRecord& p) { return p.state == "finished" || p.state == "failed"; });
    return fmt::format("[{}/{}]", ended, total_);
  }

  void fill() {
    for (Place& place : places_) {
      if (place.child >= 0) continue;
      place.claim = store_.claim(place.device, options_.only);
      if (!place.claim) return;
      start(place);
    }
  }

  void start(Place& place) {
    const std::string& name = place.claim->point.name;
    const std::string run = store_.run_path(name);
    place.log_start = place.claim->log.size();
    try {
      write_atomically(run + "/point.yaml", place.claim->point.config);
      const std::vector<std::string> words = arguments_of(run, place.device, options_);
      place.child = start_process(options_.program, words, place.claim->log.fd());
      say(fmt::format("{} {} {} on {}", count(), words[1] == "--resume" ? "resumes" : "starts", name,
                      place.device));
    } catch (const Error& error) {
      finish(place, "failed", error.what());
    }
  }

  void pass_on(Asked asked) {
    if (asked <= passed_) return;
    passed_ = asked;
    // Not SIGTERM: where a job manager has sent that to all processes, a child would take ours for a second
    // one and end at once, unsaved.
    for (const Place& place : places_)
      if (place.child >= 0) kill(place.child, asked == Asked::kill ? SIGKILL : SIGINT);
    say(asked == Asked::kill ? "killed; the last checkpoints stand"
                             : "stopping: running points save and end; a Ctrl-C more kills them");
  }

  void reap() {
    for (Place& place : places_) {
      if (place.child < 0) continue;
      const std::optional<ProcessEnd> end = process_end(place.child);
      if (!end) continue;
      place.child = -1;
      judge(place, *end);
    }
  }

  void judge(Place& place, const ProcessEnd& end) {
    const std::string run = store_.run_path(place.claim->point.name);
    if (end.good() && run_complete(run)) return finish(place, "finished", "");
    // A child that was stopped leaves with 0; one that did not listen yet, by the signal.
    const std::optional<RunResult> result = run_result(run);
    const bool stopped = end.good() && result && result->info.state == "stopped";
    const bool asked = end.signal == SIGINT || end.signal == SIGTERM || end.signal == SIGHUP;
    if (stopped || asked || (end.signal != 0 && passed_ != Asked::nothing))
      return finish(place, "interrupted", "");
    const std::string lines = last_lines(place.claim->log.path(), place.log_start);
    finish(place, "failed", lines.empty() ? end.text() : end.text() + "\n" + lines);
  }

  void finish(Place& place, const std::string& state, const std::string& error) {
    const std::string name = place.claim->point.name;
    store_.ended(name, state, error);
    place.claim.reset();
    std::string detail;
    if (state == "finished")
      if (const std::optional<RunResult> run = run_result(store_.run_path(name)); run && run->accuracy)
        detail =
            fmt::format(": accuracy {:.4f}, {}", *run->accuracy, format_duration(run->info.wall_seconds));
    if (state == "failed") detail = ": " + error.substr(error.rfind('\n') + 1);
    say(fmt::format("{} {} {}{}", count(), name, state, detail));
  }

  SweepStore& store_;
  const SweepRunOptions& options_;
  std::vector<Place> places_;
  size_t total_;
  Asked passed_ = Asked::nothing;
  bool waiting_ = false;
};

}  // namespace

bool run_sweep(SweepStore& store, const SweepRunOptions& options) { return Sweep(store, options).run(); }

}  // namespace eigentrace
