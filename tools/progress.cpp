#include "tools/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

namespace eigentrace {

bool stderr_is_terminal() { return isatty(STDERR_FILENO) == 1; }

namespace {

constexpr double quiet_seconds = 30;  // between lines where there is no terminal

bool colours() {
  const char* no_color = std::getenv("NO_COLOR");
  return stderr_is_terminal() && (!no_color || !*no_color);
}
}  // namespace

std::string bold(const std::string& text) { return colours() ? "\033[1m" + text + "\033[0m" : text; }
std::string dim(const std::string& text) { return colours() ? "\033[2m" + text + "\033[0m" : text; }

std::string format_duration(double seconds) {
  const int64_t s = std::llround(std::max(0.0, seconds));
  if (s >= 3600) return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
  return fmt::format("{}:{:02}", s / 60, s % 60);
}

Progress::Progress(std::string label, int64_t total, int64_t done, bool shown)
    : label_(std::move(label)),
      total_(total),
      first_(done),
      done_(done),
      enabled_(shown),
      terminal_(stderr_is_terminal()) {
  if (!terminal_) shown_ = Clock::now();
}

Progress::~Progress() { finish(); }

double Progress::rate() const {
  const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
  return seconds > 0 ? static_cast<double>(done_ - first_) / seconds : 0;
}

void Progress::update(int64_t done, const std::string& detail) {
  done_ = done;
  detail_ = detail;
  const double since = std::chrono::duration<double>(Clock::now() - shown_).count();
  if (since >= (terminal_ ? 0.1 : quiet_seconds)) show();
}

void Progress::show() {
  if (!enabled_) return;
  shown_ = Clock::now();
  const double speed = rate();
  const std::string eta =
      speed > 0 && done_ < total_ ? format_duration(static_cast<double>(total_ - done_) / speed) : "–:––";
  std::string line = fmt::format(
      "{} {}/{}  {}  {:.3g}/s  {} {}", label_, done_, total_, detail_, speed, done_ < total_ ? "ETA" : "took",
      done_ < total_ ? eta : format_duration(speed > 0 ? static_cast<double>(done_ - first_) / speed : 0));
  if (terminal_) {
    constexpr int width = 16;
    const int filled = total_ > 0 ? static_cast<int>(width * std::min(done_, total_) / total_) : 0;
    std::string bar;
    for (int i = 0; i < width; ++i) bar += i < filled ? "━" : "─";
    fmt::print(stderr, "\r\033[K{} {}", dim(bar), line);
    open_ = true;
  } else {
    fmt::print(stderr, "{}\n", line);
  }
  std::fflush(stderr);
}

void Progress::clear() {
  if (terminal_ && open_) fmt::print(stderr, "\r\033[K"), std::fflush(stderr), open_ = false;
}

void Progress::finish() {
  if (finished_) return;
  finished_ = true;
  show();
  if (terminal_ && enabled_) fmt::print(stderr, "\n");
}

}  // namespace eigentrace
