#include "tools/process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <spawn.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <utility>

#include "tensor/error.h"

extern char** environ;

namespace eigentrace {

std::optional<LockedFile> LockedFile::open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_CREAT | O_RDWR | O_APPEND | O_CLOEXEC, 0644);
  if (fd < 0) fail(fmt::format("{}: cannot be opened: {}", path, std::strerror(errno)));
  LockedFile file(fd, path);
  if (flock(fd, LOCK_EX | LOCK_NB) == 0) return file;
  if (errno == EWOULDBLOCK) return {};
  fail(fmt::format("{}: cannot be locked: {}; put the folder on a file system that has locks", path,
                   std::strerror(errno)));
}

LockedFile::LockedFile(LockedFile&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)) {}

LockedFile& LockedFile::operator=(LockedFile&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(path_, other.path_);
  return *this;
}

LockedFile::~LockedFile() {
  if (fd_ >= 0) close(fd_);
}

uint64_t LockedFile::size() const {
  struct stat status = {};
  return fstat(fd_, &status) == 0 ? static_cast<uint64_t>(status.st_size) : 0;
}

pid_t start_process(const std::string& program, const std::vector<std::string>& arguments, int output) {
  posix_spawn_file_actions_t files;
  posix_spawnattr_t attributes;
  posix_spawn_file_actions_init(&files);
  posix_spawnattr_init(&attributes);
  posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&files, output, STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&files, output, STDERR_FILENO);
  sigset_t defaults, none;
  sigemptyset(&defaults), sigemptyset(&none);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGCHLD, SIGPIPE}) sigaddset(&defaults, signal);
  posix_spawnattr_setsigdefault(&attributes, &defaults);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setpgroup(&attributes, 0);
  posix_spawnattr_setflags(&attributes,
                           POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
  std::vector<char*> words;
  words.push_back(const_cast<char*>(program.c_str()));
  for (const std::string& argument : arguments) words.push_back(const_cast<char*>(argument.c_str()));
  words.push_back(nullptr);
  pid_t pid = -1;
  const int error = posix_spawn(&pid, program.c_str(), &files, &attributes, words.data(), environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&files);
  if (error != 0) fail(fmt::format("{}: cannot be started: {}", program, std::strerror(error)));
  return pid;
}

std::string ProcessEnd::text() const {
  if (signal != 0) return fmt::format("killed by signal {} ({})", signal, strsignal(signal));
  return fmt::format("exit code {}", code);
}

std::optional<ProcessEnd> process_end(pid_t pid) {
  int status = 0;
  const pid_t found = waitpid(pid, &status, WNOHANG);
  if (found == 0 || (found < 0 && errno == EINTR)) return {};
  if (found < 0) fail(fmt::format("process {}: cannot be waited for: {}", pid, std::strerror(errno)));
  if (WIFSIGNALED(status)) return ProcessEnd{-1, WTERMSIG(status)};
  return ProcessEnd{WEXITSTATUS(status), 0};
}

std::string program_path() { return std::filesystem::read_symlink("/proc/self/exe").string(); }

std::string process_label() {
  std::array<char, HOST_NAME_MAX + 1> host{};
  if (gethostname(host.data(), host.size() - 1) != 0) host = {"?"};
  return fmt::format("{}:{}", host.data(), getpid());
}

namespace {

volatile std::sig_atomic_t stop_asked = 0, kill_asked = 0;
int wake_pipe[2] = {-1, -1};

void on_signal(int signal) {
  const int saved = errno;
  if (signal == SIGINT && stop_asked != 0) kill_asked = 1;
  if (signal != SIGCHLD) stop_asked = 1;
  const char byte = 0;
  [[maybe_unused]] const ssize_t written = write(wake_pipe[1], &byte, 1);
  errno = saved;
}

constexpr std::array watched_signals{SIGINT, SIGTERM, SIGHUP, SIGCHLD};
std::array<struct sigaction, watched_signals.size()> former_actions;

}  // namespace

SignalWatch::SignalWatch() {
  stop_asked = 0;
  kill_asked = 0;
  if (pipe2(wake_pipe, O_CLOEXEC | O_NONBLOCK) != 0) fail(fmt::format("pipe: {}", std::strerror(errno)));
  struct sigaction action = {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  for (size_t i = 0; i < watched_signals.size(); ++i) {
    sigaction(watched_signals[i], nullptr, &former_actions[i]);
    if (watched_signals[i] == SIGHUP && former_actions[i].sa_handler == SIG_IGN) continue;  // nohup
    sigaction(watched_signals[i], &action, nullptr);
  }
}

SignalWatch::~SignalWatch() {
  for (size_t i = 0; i < watched_signals.size(); ++i)
    sigaction(watched_signals[i], &former_actions[i], nullptr);
  close(wake_pipe[0]), close(wake_pipe[1]);
}

void SignalWatch::wait(int milliseconds) {
  pollfd readable{wake_pipe[0], POLLIN, 0};
  if (poll(&readable, 1, milliseconds) <= 0) return;
  std::array<char, 64> bytes;
  while (read(wake_pipe[0], bytes.data(), bytes.size()) > 0) continue;
}

SignalWatch::Asked SignalWatch::asked() const {
  return kill_asked != 0 ? Asked::kill : stop_asked != 0 ? Asked::stop : Asked::nothing;
}

}  // namespace eigentrace
