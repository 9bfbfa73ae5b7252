#pragma once
// A live line on the terminal for long work. On standard error, so that data on standard output stays clean.
#include <chrono>
#include <cstdint>
#include <string>

namespace eigentrace {

/// True iff standard error is a terminal. Colours are used only then, and not when NO_COLOR is set.
bool stderr_is_terminal();
std::string bold(const std::string& text);
std::string dim(const std::string& text);

/// "1:02:03", "4:05"
std::string format_duration(double seconds);

/// On a terminal: one line, rewritten at most ten times a second. Elsewhere: a line every half minute.
class Progress {
 public:
  /// `shown` false: nothing is printed at all.
  Progress(std::string label, int64_t total, int64_t done = 0, bool shown = true);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// `done` of `total` units are finished; `detail` is shown beside the bar ("loss 2.31 accuracy 0.45").
  void update(int64_t done, const std::string& detail);
  /// Clears the line (on a terminal), for a message in between.
  void clear();
  /// Shows the last state and ends the line.
  void finish();
  /// Units per second since the start of this object.
  double rate() const;

 private:
  using Clock = std::chrono::steady_clock;
  void show();
  std::string label_, detail_;
  int64_t total_, first_, done_;
  bool enabled_, terminal_, open_ = false, finished_ = false;
  Clock::time_point start_ = Clock::now(), shown_{};
};

}  // namespace eigentrace
