#include <doctest/doctest.h>
#include <signal.h>
#include <sys/wait.h>

#include <chrono>
#include <cmath>
#include <map>
#include <thread>

#include "tensor/error.h"
#include "tensor/io/safetensors.h"
#include "tests/tools/sweep_samples.h"
#include "tools/summary.h"
#include "tools/sweep_run.h"

using namespace eigentrace;

namespace {

constexpr const char* two_rates = "base_config: base.yaml\nsweep: {train: {lr: [1e-3, 1e-2]}}\n";

SweepStore store_of(const SweepFolder& folder, const std::string& text,
                    const std::vector<std::string>& overrides = {}) {
  SweepStore store = SweepStore::create(folder.path + "/out");
  store.take(read_sweep(text, folder.path + "/sweep.yaml", overrides));
  return store;
}

SweepRunOptions quiet(int places = 2) {
  SweepRunOptions options;
  options.program = program_path();
  options.devices.assign(static_cast<size_t>(places), "cpu");
  options.progress = false;
  return options;
}

std::string states_of(const SweepStore& store) {
  std::string text;
  for (const PointRecord& p : store.points()) text += p.state + fmt::format("({}) ", p.attempts);
  return text;
}

std::map<std::string, std::vector<std::byte>> tensors_of(const std::string& path) {
  const SafetensorsReader reader(path);
  std::map<std::string, std::vector<std::byte>> all;
  for (const auto& [name, entry] : reader.entries()) all[name] = reader.read(name).bytes;
  return all;
}

template <class Condition>
bool soon(Condition&& condition) {
  for (int i = 0; i < 3000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

/// A sweep's own process, as from a terminal.
struct SweepProcess {
  static inline int count = 0;
  std::optional<LockedFile> log;
  pid_t pid;
  SweepProcess(const SweepFolder& folder, const std::vector<std::string>& more = {}) {
    log = LockedFile::open(fmt::format("{}/output-{}", folder.path, ++count));
    std::vector<std::string> words = {
        "sweep", folder.path + "/sweep.yaml", "--out", folder.path + "/out", "--threads", "1"};
    words.insert(words.end(), more.begin(), more.end());
    pid = start_process(program_path(), words, log->fd());
    log.reset();
  }
  ProcessEnd end() const {
    std::optional<ProcessEnd> end;
    REQUIRE(soon([&] { return (end = process_end(pid)).has_value(); }));
    return *end;
  }
};

}  // namespace

TEST_CASE("sweep: every point is trained as `train` would, and a second time nothing is left to do") {
  const SweepFolder folder("sweep-run");
  SweepStore store = store_of(folder, two_rates);
  CHECK(run_sweep(store, quiet()));
  CHECK(states_of(store) == "finished(1) finished(1) ");
  const std::vector<PointRecord> points = store.points();
  CHECK(points[0].step == 6);
  CHECK(points[0].accuracy.has_value());
  CHECK(points[0].loss != points[1].loss);
  CHECK(points[0].family == "lin-attention");

  const std::string alone = folder.path + "/alone";
  const LockedFile log = *LockedFile::open(folder.path + "/log");
  const pid_t pid = start_process(
      program_path(), {"train", folder.path + "/base.yaml", "--set", "train.lr=1e-2", "--out", alone},
      log.fd());
  int status = -1;
  waitpid(pid, &status, 0);
  REQUIRE(status == 0);
  CHECK(tensors_of(alone + "/checkpoint.safetensors") ==
        tensors_of(store.run_path("lr=1e-2") + "/checkpoint.safetensors"));

  store.take(read_sweep(two_rates, folder.path + "/sweep.yaml"));
  CHECK(run_sweep(store, quiet()));
  CHECK(states_of(store) == "finished(1) finished(1) ");

  std::filesystem::remove_all(store.run_path("lr=1e-3"));  // its results are gone: it runs again
  store.take(read_sweep(two_rates, folder.path + "/sweep.yaml"));
  CHECK(run_sweep(store, quiet()));
  CHECK(states_of(store) == "finished(2) finished(1) ");
}

TEST_CASE("sweep: a point that began with another configuration is not mixed with this one") {
  const SweepFolder folder("sweep-other");
  SweepStore store = store_of(folder, two_rates);
  store_of(folder, two_rates, {"train.wd=0.3"});  // nothing has run yet
  CHECK(run_sweep(store, quiet()));
  std::string message;
  try {
    store_of(folder, two_rates, {"train.wd=0.2"});
  } catch (const UsageError& error) {
    message = error.what();
  }
  CHECK(message.find("wd: 0.3' then, '  wd: 0.2' now") != std::string::npos);
  CHECK(states_of(store) == "finished(1) finished(1) ");
  // Points may be added and left out: what has been trained stays.
  store.take(read_sweep("base_config: base.yaml\nsweep: {train: {lr: [1e-2, 1e-1]}}",
                        folder.path + "/sweep.yaml", {"train.wd=0.3"}));
  CHECK(store.planned() == std::vector<std::string>{"lr=1e-2", "lr=1e-1"});
  CHECK(states_of(store) == "finished(1) pending(0) finished(1) ");
}

TEST_CASE("sweep: a failed point keeps its error, does not stop the others, and is retried only when asked") {
  const SweepFolder folder("sweep-failed");
  SweepStore store = store_of(folder, two_rates);
  const std::string obstacle = store.run_path("lr=1e-3") + "/initial.safetensors/in/the/way";
  ensure_directory(obstacle);
  CHECK(run_sweep(store, quiet(1)));
  CHECK(states_of(store) == "failed(1) finished(1) ");
  const std::string error = store.points()[0].error;
  INFO(error);
  CHECK(error.find("exit code") == 0);
  CHECK(error.find("initial.safetensors") != std::string::npos);
  CHECK(run_sweep(store, quiet(1)));
  CHECK(states_of(store) == "failed(1) finished(1) ");
  std::filesystem::remove_all(store.run_path("lr=1e-3") + "/initial.safetensors");
  store.retry_failed();
  CHECK(run_sweep(store, quiet(1)));
  CHECK(states_of(store) == "finished(2) finished(1) ");
  CHECK(store.points()[0].error.empty());
}

TEST_CASE("sweep: a crash is told by its signal") {
  const SweepFolder folder("sweep-crash");
  SweepStore store = store_of(folder, two_rates);
  folder.write("crash.sh", "#!/bin/sh\necho about to crash: $@\nkill -SEGV $$\n");
  std::filesystem::permissions(folder.path + "/crash.sh", std::filesystem::perms::owner_all);
  SweepRunOptions options = quiet(1);
  options.program = folder.path + "/crash.sh";
  options.arithmetic = {"--dtype", "f32", "--precision", "tf32"};
  CHECK(run_sweep(store, options));
  CHECK(states_of(store) == "failed(1) failed(1) ");
  CHECK(store.points()[1].error.find("signal 11") != std::string::npos);
  CHECK(store.points()[1].error.find("about to crash") != std::string::npos);
  CHECK(store.points()[1].error.find("--dtype f32 --precision tf32 ") != std::string::npos);
  options.program = "/bin/true";  // leaves with 0, and no run
  store.retry_failed();
  CHECK(run_sweep(store, options));
  CHECK(states_of(store) == "failed(2) failed(2) ");
  options.program = folder.path + "/nothing";
  store.retry_failed();
  CHECK(run_sweep(store, options));
  CHECK(store.points()[0].error.find("cannot be started") != std::string::npos);
}

TEST_CASE("sweep: SIGTERM saves the running points; the same command goes on to the same bits") {
  const SweepFolder folder("sweep-signal");
  folder.write("sweep.yaml",
               "format: eigentrace-sweep/1\nbase_config: base.yaml\nset: {train.total_steps: 1500}\n"
               "seeds: [7]\n");
  const SweepProcess first(folder);
  const std::string run = folder.path + "/out/runs/seed=7";
  REQUIRE(soon([&] { return std::filesystem::exists(run + "/spectrum_initial.json"); }));
  REQUIRE(soon([&] { return !RunFolder::open(run).read_metrics().empty(); }));
  kill(first.pid, SIGTERM);
  kill(first.pid, SIGTERM);  // as a job manager may: it still only asks to stop
  CHECK(first.end().code == 1);
  CHECK(states_of(SweepStore::open(folder.path + "/out")) == "interrupted(1) ");
  CHECK(RunFolder::open(run).read_info().state == "stopped");
  const int64_t saved = RunFolder::open(run).read_info().step;
  CHECK(saved > 0);
  CHECK(saved < 1500);
  const auto begun = std::filesystem::last_write_time(run + "/initial.safetensors");
  CHECK(SweepProcess(folder).end().code == 0);
  CHECK(states_of(SweepStore::open(folder.path + "/out")) == "finished(2) ");

  CHECK(std::filesystem::last_write_time(run + "/initial.safetensors") ==
        begun);  // gone on with, not repeated

  SweepStore whole = SweepStore::create(folder.path + "/whole");
  whole.take(read_sweep_file(folder.path + "/sweep.yaml"));
  CHECK(run_sweep(whole, quiet(1)));
  CHECK(tensors_of(whole.run_path("seed=7") + "/checkpoint.safetensors") ==
        tensors_of(run + "/checkpoint.safetensors"));
}

TEST_CASE("sweep: a child that outlives its killed sweep is waited for, not doubled") {
  const SweepFolder folder("sweep-orphan");
  folder.write("sweep.yaml",
               "format: eigentrace-sweep/1\nbase_config: base.yaml\nset: {train.total_steps: 900}\n"
               "seeds: [7]\n");
  const SweepProcess first(folder);
  const std::string run = folder.path + "/out/runs/seed=7";
  REQUIRE(soon([&] { return std::filesystem::exists(run + "/run.json"); }));
  kill(first.pid, SIGKILL);
  CHECK(first.end().signal == SIGKILL);
  SweepStore store = SweepStore::open(folder.path + "/out");
  CHECK(!store.claim("cpu").has_value());
  CHECK(run_sweep(store, quiet(1)));
  CHECK(states_of(store) == "finished(1) ");
}

TEST_CASE("sweep: a point is claimed once, and again when its holder has died") {
  const SweepFolder folder("sweep-claim");
  SweepStore store = store_of(folder, two_rates);
  std::optional<Claim> mine = store.claim("cpu");
  REQUIRE(mine.has_value());
  CHECK(mine->point.name == "lr=1e-3");
  int ready[2];
  REQUIRE(pipe(ready) == 0);
  const pid_t other = fork();
  if (other == 0) {  // another sweep of the same folder
    SweepStore theirs = SweepStore::open(folder.path + "/out");
    const std::optional<Claim> claim = theirs.claim("cpu");
    const char found = claim && claim->point.name == "lr=1e-2" && !theirs.claim("cpu") ? 'y' : 'n';
    if (write(ready[1], &found, 1) == 1) pause();
    _exit(0);
  }
  char found = '?';
  REQUIRE(read(ready[0], &found, 1) == 1);
  CHECK(found == 'y');
  CHECK(!store.claim("cpu").has_value());
  kill(other, SIGKILL);
  waitpid(other, nullptr, 0);
  close(ready[0]), close(ready[1]);
  const std::optional<Claim> taken_over = store.claim("cpu");
  REQUIRE(taken_over.has_value());
  CHECK(taken_over->point.name == "lr=1e-2");
  CHECK(taken_over->point.attempts == 2);
  CHECK(!store.claim("cpu").has_value());
  mine.reset();  // dropped without a word: free again
  CHECK(store.claim("cpu")->point.name == "lr=1e-3");
}

TEST_CASE("sweep: several sweeps of one folder share its points") {
  const SweepFolder folder("sweep-share");
  folder.write("sweep.yaml", "base_config: base.yaml\nsweep: {seed: [1, 2, 3, 4, 5, 6]}");
  const SweepProcess a(folder), b(folder);
  CHECK(a.end().code == 0);
  CHECK(b.end().code == 0);
  CHECK(states_of(SweepStore::open(folder.path + "/out")) ==
        "finished(1) finished(1) finished(1) finished(1) finished(1) finished(1) ");
}

TEST_CASE("sweep: a results file of another kind is refused") {
  const SweepFolder folder("sweep-file");
  CHECK_THROWS_AS(SweepStore::open(folder.path), Error);
  ensure_directory(folder.path + "/bad");
  folder.write("bad/sweep.sqlite",
               "this is no database, however long the text may be: " + std::string(500, '.'));
  CHECK_THROWS_AS(SweepStore::open(folder.path + "/bad"), Error);
}

TEST_CASE("sweep: the summary takes seeds together and sorts by accuracy") {
  const SweepFolder folder("sweep-summary");
  SweepStore store =
      store_of(folder, "base_config: base.yaml\nsweep: {train: {lr: [1e-5, 3e-2]}, seed: [1, 2]}",
               {"train.total_steps=60"});
  CHECK(run_sweep(store, quiet()));
  const std::vector<SweepGroup> groups = sweep_groups(store);
  REQUIRE(groups.size() == 2);
  CHECK(groups[0].accuracy.mean >= groups[1].accuracy.mean);
  for (const SweepGroup& g : groups) {
    CHECK(g.settings.size() == 1);
    REQUIRE(g.points.size() == 2);
    CHECK(g.accuracy.n == 2);
    const double a = *g.points[0].loss, b = *g.points[1].loss;
    CHECK(g.loss.mean == doctest::Approx((a + b) / 2));
    CHECK(g.loss.std == doctest::Approx(std::abs(a - b) / std::sqrt(2.0)));
    REQUIRE(g.trained.has_value());
    double sum = 0;
    for (const double percent : g.trained->percent) sum += percent;
    CHECK(sum == doctest::Approx(100));
  }
  CHECK(spread_of({}).n == 0);
  CHECK(std::isnan(spread_of({1.0}).std));
  CHECK(spread_of({1.0, std::nan(""), 3.0}).mean == 2);
}
