#pragma once
// The program in a process of its own, to be signalled and killed: this test program again, told by its
// environment to call run_program (the case "child: …"). Also the program in this process, its output caught.
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <vector>

#include "tensor/error.h"
#include "tensor/io/file.h"
#include "tools/commands.h"

namespace eigentrace {

class Child {
 public:
  /// Starts `eigentrace arguments…`, its output going to `log`. kill_at: SIGKILL ends it at that system call
  /// that changes a file, counted from 0 (IoFaults); −1: not.
  Child(const std::vector<std::string>& arguments, const std::string& log, int64_t kill_at = -1) {
    std::string lines = "EIGENTRACE_CHILD=eigentrace";
    for (const std::string& argument : arguments) lines += "\n" + argument;
    std::string kill = "EIGENTRACE_CHILD_KILL_AT=" + std::to_string(kill_at);
    std::vector<char*> environment = {lines.data(), kill.data()};
    for (char** variable = environ; *variable; ++variable) environment.push_back(*variable);
    environment.push_back(nullptr);
    std::string program = "eigentrace_tests", choice = "--test-case=child: *", skipped = "--no-skip";
    char* argv[] = {program.data(), choice.data(), skipped.data(), nullptr};
    pid_ = ::fork();
    if (pid_ < 0) fail("Child: fork failed");
    if (pid_ > 0) return;
    // Only calls that are safe after a fork of a program with threads.
    const int out = ::open(log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
    ::dup2(out, 1);
    ::dup2(out, 2);
    ::execve("/proc/self/exe", argv, environment.data());
    ::_exit(126);
  }
  ~Child() {
    if (pid_ > 0) send(SIGKILL), wait();
  }
  Child(const Child&) = delete;

  void send(int signal) const { ::kill(pid_, signal); }
  bool running() {
    int status = 0;
    if (pid_ > 0 && ::waitpid(pid_, &status, WNOHANG) == pid_) pid_ = 0, status_ = status;
    return pid_ > 0;
  }
  /// Exit code, or 128 + the signal that ended it.
  int wait() {
    if (pid_ > 0) ::waitpid(pid_, &status_, 0), pid_ = 0;
    return WIFSIGNALED(status_) ? 128 + WTERMSIG(status_) : WEXITSTATUS(status_);
  }

 private:
  pid_t pid_ = 0;
  int status_ = 0;
};

/// run_program in this process, its output (both streams) caught in `text`.
inline int run_caught(std::vector<std::string> arguments, const std::string& log, std::string& text) {
  arguments.insert(arguments.begin(), "eigentrace");
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  std::fflush(nullptr);
  const int out = ::dup(1), err = ::dup(2), file = ::open(log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
  ::dup2(file, 1), ::dup2(file, 2);
  const int code = run_program(static_cast<int>(argv.size()), argv.data());
  std::fflush(nullptr);
  ::dup2(out, 1), ::dup2(err, 2);
  for (const int fd : {out, err, file}) ::close(fd);
  text = read_file(log);
  return code;
}

}  // namespace eigentrace
