#pragma once
// What is known about a sweep's points: DIR/sweep.sqlite, beside the run folders in DIR/runs (tables in
// tools/README.md). A point is claimed in one transaction and held by a lock on its log, which its child
// inherits: the kernel lets go of it when the last of both has ended, so a claim whose lock is free is stale.
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tools/process.h"
#include "tools/run_folder.h"
#include "tools/sweep.h"

struct sqlite3;

namespace eigentrace {

inline constexpr const char* sweep_results_format = "eigentrace-sweep-results/1";

/// pending, running, interrupted (a checkpoint waits to be resumed), finished, failed.
struct PointRecord {
  std::string name, state, error, worker, device, task, family, config;
  std::vector<SweepSetting> settings;
  uint64_t seed = 0;
  std::optional<int64_t> planned_steps, step;
  std::optional<double> accuracy, loss, wall_seconds;
  int64_t attempts = 0;
};

/// What a run's folder says of it, for the table. accuracy and loss: of the last evaluation (MAD: its macro
/// accuracy).
struct RunResult {
  RunInfo info;
  std::optional<double> accuracy, loss;
};
/// None: no run has begun in the folder.
std::optional<RunResult> run_result(const std::string& path);

/// True iff the run has been trained to its end and its spectra, the last thing it writes, are there.
bool run_complete(const std::string& path);

/// A point that this process alone may train now.
struct Claim {
  PointRecord point;
  LockedFile log;
};

class SweepStore {
 public:
  /// True iff the folder holds a sweep's results.
  static bool exists(const std::string& folder);
  /// Errors: no such file, not a sweep's results, or a format this program does not read.
  static SweepStore open(const std::string& folder);
  /// open, or a new one.
  static SweepStore create(const std::string& folder);
  SweepStore(SweepStore&&) noexcept;
  SweepStore& operator=(SweepStore&&) = delete;
  ~SweepStore();

  /// Takes in the plan: new points are pending, points that it no longer has are left alone, with their
  /// results. Finished points whose folder is gone are pending again. Error (usage): a point that has begun
  /// with another configuration.
  void take(const SweepPlan& plan);
  /// Failed points may be claimed again.
  void retry_failed();
  /// The first point of the plan (of `only`, if any) that is not finished, failed or held by somebody, marked
  /// as running. One that turns out to be finished is marked so and passed over.
  std::optional<Claim> claim(const std::string& device, const std::vector<std::string>& only = {});
  /// The point's new state; its results are read from its folder. `error`: why it failed.
  void ended(const std::string& name, const std::string& state, const std::string& error = "");

  /// In the order of the plan, points that it no longer has at the end.
  std::vector<PointRecord> points() const;
  /// The same; what is marked as running although nobody holds it is interrupted. For tables, not for claims.
  std::vector<PointRecord> points_now() const;
  /// Names of the plan's points, in order.
  std::vector<std::string> planned() const;
  const std::string& folder() const { return folder_; }
  std::string run_path(const std::string& point) const { return folder_ + "/runs/" + point; }

 private:
  struct Close {
    void operator()(sqlite3* database) const;
  };
  class Statement;
  class Transaction;
  SweepStore(std::string folder, bool create);
  void execute(const char* sql) const;
  std::vector<PointRecord> read_points(const std::string& condition, const std::string& value = "") const;
  void take_point(const SweepPoint& point, int64_t position);
  std::string folder_;
  std::unique_ptr<sqlite3, Close> database_;
};

}  // namespace eigentrace
