#pragma once
// Child processes, signals of this one, and files that only one process holds.
#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

namespace eigentrace {

/// A file that is open for appending and locked (flock): of all processes one has it, and so do children that
/// got it as their output, until the last of them has ended, however that came about.
class LockedFile {
 public:
  /// None: another process has it. Error: it cannot be opened, or its file system knows no locks.
  static std::optional<LockedFile> open(const std::string& path);
  LockedFile(LockedFile&& other) noexcept;
  LockedFile& operator=(LockedFile&& other) noexcept;
  ~LockedFile();
  int fd() const { return fd_; }
  const std::string& path() const { return path_; }
  uint64_t size() const;

 private:
  LockedFile(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  int fd_;
  std::string path_;
};

/// Starts `program` with standard output and error going to `output`, no input, in a process group of its
/// own (a terminal's Ctrl-C does not reach it) and with default signal handling. Error: it cannot be started.
pid_t start_process(const std::string& program, const std::vector<std::string>& arguments, int output);

struct ProcessEnd {
  int code = 0;    ///< exit code; −1 if a signal ended it
  int signal = 0;  ///< 0: none
  bool good() const { return code == 0 && signal == 0; }
  std::string text() const;  ///< "exit code 1", "killed by signal 11 (Segmentation fault)"
};
/// None: it still runs.
std::optional<ProcessEnd> process_end(pid_t pid);

/// This program's own file.
std::string program_path();
/// "host:pid", to be read by people.
std::string process_label();

/// While it lives, SIGINT, SIGTERM and SIGHUP (unless ignored) are noted instead of ending the program, and
/// wait() returns early for them and when a child has ended.
class SignalWatch {
 public:
  enum class Asked { nothing, stop, kill };
  SignalWatch();
  ~SignalWatch();
  SignalWatch(const SignalWatch&) = delete;
  SignalWatch& operator=(const SignalWatch&) = delete;
  void wait(int milliseconds);
  /// kill: a SIGINT after another signal, the second Ctrl-C. SIGTERM may come twice from a job manager that
  /// sends it to a script and to its children: it never means more than stop.
  Asked asked() const;
};

}  // namespace eigentrace
