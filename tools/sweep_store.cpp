#include "tools/sweep_store.h"

#include <fmt/format.h>
#include <sqlite3.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <sstream>

#include "tensor/error.h"
#include "tensor/io/file.h"

namespace eigentrace {
namespace {

constexpr const char* file_name = "sweep.sqlite";
constexpr int busy_milliseconds = 60000;

constexpr const char* schema = R"(
CREATE TABLE IF NOT EXISTS sweep (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS points (
  name TEXT PRIMARY KEY,
  position INTEGER,
  config TEXT NOT NULL,
  task TEXT NOT NULL,
  seed INTEGER NOT NULL,
  planned_steps INTEGER,
  state TEXT NOT NULL CHECK (state IN ('pending', 'running', 'interrupted', 'finished', 'failed')),
  error TEXT NOT NULL DEFAULT '',
  attempts INTEGER NOT NULL DEFAULT 0,
  worker TEXT NOT NULL DEFAULT '',
  device TEXT NOT NULL DEFAULT '',
  family TEXT NOT NULL DEFAULT '',
  accuracy REAL, loss REAL, step INTEGER, wall_seconds REAL,
  claimed TEXT, ended TEXT
);
CREATE TABLE IF NOT EXISTS settings (
  point TEXT NOT NULL REFERENCES points (name),
  position INTEGER NOT NULL,
  key TEXT NOT NULL,
  value TEXT NOT NULL,
  PRIMARY KEY (point, key)
);
)";

/// The first line where two texts differ, as "old -> new".
std::string first_difference(const std::string& before, const std::string& after) {
  std::istringstream a(before), b(after);
  std::string x, y;
  for (;;) {
    const bool more_a = static_cast<bool>(std::getline(a, x)), more_b = static_cast<bool>(std::getline(b, y));
    if (!more_a && !more_b) return "no line";
    if (!more_a) x.clear();
    if (!more_b) y.clear();
    if (x != y) return fmt::format("'{}' then, '{}' now", x, y);
  }
}

}  // namespace

std::optional<RunResult> run_result(const std::string& path) {
  if (!std::filesystem::exists(path + "/run.json")) return {};
  const RunFolder folder = RunFolder::open(path);
  RunResult result;
  result.info = folder.read_info();
  for (const MetricsRow& row : folder.read_metrics())
    if (row.split != "train")
      result.accuracy = row.macro_accuracy.value_or(row.accuracy), result.loss = row.loss;
  return result;
}

bool run_complete(const std::string& path) {
  const std::optional<RunResult> run = run_result(path);
  return run && run->info.state == "finished" && std::filesystem::exists(path + "/spectrum_trained.json");
}

// --- SQLite
// -------------------------------------------------------------------------------------------------

void SweepStore::Close::operator()(sqlite3* database) const { sqlite3_close_v2(database); }

/// A prepared statement: bind the values in order, then step and read columns.
class SweepStore::Statement {
 public:
  Statement(const SweepStore& store, const std::string& sql) : store_(store) {
    check(sqlite3_prepare_v2(store.database_.get(), sql.c_str(), -1, &statement_, nullptr));
  }
  ~Statement() { sqlite3_finalize(statement_); }
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;

  Statement& bind(const std::string& text) {
    check(sqlite3_bind_text(statement_, ++bound_, text.data(), static_cast<int>(text.size()),
                            SQLITE_TRANSIENT));
    return *this;
  }
  Statement& bind(std::optional<int64_t> value) {
    check(value ? sqlite3_bind_int64(statement_, ++bound_, *value) : sqlite3_bind_null(statement_, ++bound_));
    return *this;
  }
  Statement& bind_real(std::optional<double> value) {
    const bool known = value && std::isfinite(*value);
    check(known ? sqlite3_bind_double(statement_, ++bound_, *value)
                : sqlite3_bind_null(statement_, ++bound_));
    return *this;
  }
  /// True iff there is a row.
  bool step() {
    const int code = sqlite3_step(statement_);
    if (code != SQLITE_ROW && code != SQLITE_DONE) check(code);
    return code == SQLITE_ROW;
  }
  std::string text(int column) const {
    const unsigned char* data = sqlite3_column_text(statement_, column);
    return data ? reinterpret_cast<const char*>(data) : "";
  }
  bool null(int column) const { return sqlite3_column_type(statement_, column) == SQLITE_NULL; }
  std::optional<int64_t> integer(int column) const {
    if (null(column)) return {};
    return sqlite3_column_int64(statement_, column);
  }
  std::optional<double> real(int column) const {
    if (null(column)) return {};
    return sqlite3_column_double(statement_, column);
  }

 private:
  void check(int code) const {
    if (code == SQLITE_OK) return;
    fail(fmt::format("{}/{}: {}", store_.folder_, file_name, sqlite3_errmsg(store_.database_.get())));
  }
  const SweepStore& store_;
  sqlite3_stmt* statement_ = nullptr;
  int bound_ = 0;
};

/// Nobody else writes while it lives; undone unless it was committed.
class SweepStore::Transaction {
 public:
  explicit Transaction(const SweepStore& store) : store_(store) { store.execute("BEGIN IMMEDIATE"); }
  ~Transaction() {
    if (!committed_) sqlite3_exec(store_.database_.get(), "ROLLBACK", nullptr, nullptr, nullptr);
  }
  Transaction(const Transaction&) = delete;
  Transaction& operator=(const Transaction&) = delete;
  void commit() {
    store_.execute("COMMIT");
    committed_ = true;
  }

 private:
  const SweepStore& store_;
  bool committed_ = false;
};

void SweepStore::execute(const char* sql) const {
  char* message = nullptr;
  if (sqlite3_exec(database_.get(), sql, nullptr, nullptr, &message) == SQLITE_OK) return;
  const std::string text = message ? message : sqlite3_errmsg(database_.get());
  sqlite3_free(message);
  fail(fmt::format("{}/{}: {}", folder_, file_name, text));
}

bool SweepStore::exists(const std::string& folder) {
  return std::filesystem::exists(folder + "/" + file_name);
}

SweepStore SweepStore::open(const std::string& folder) {
  if (!exists(folder))
    fail(fmt::format("'{}' is no sweep's folder: it has no {} (those of `eigentrace sweep` have)", folder,
                     file_name));
  return {folder, false};
}

SweepStore SweepStore::create(const std::string& folder) {
  ensure_directory(folder + "/runs");
  return {folder, true};
}

SweepStore::SweepStore(std::string folder, bool create) : folder_(std::move(folder)) {
  sqlite3* database = nullptr;
  const std::string path = folder_ + "/" + file_name;
  const int code = sqlite3_open_v2(path.c_str(), &database,
                                   SQLITE_OPEN_READWRITE | (create ? SQLITE_OPEN_CREATE : 0), nullptr);
  database_.reset(database);
  if (code != SQLITE_OK) fail(fmt::format("{}: cannot be opened: {}", path, sqlite3_errstr(code)));
  sqlite3_busy_timeout(database, busy_milliseconds);
  Transaction transaction(*this);
  if (create) execute(schema);
  std::string found;
  {
    Statement tables(*this, "SELECT 1 FROM sqlite_master WHERE name = 'sweep'");
    if (tables.step()) {
      Statement format(*this, "SELECT value FROM sweep WHERE key = 'format'");
      if (format.step()) found = format.text(0);
    }
  }
  if (create && found.empty()) {
    Statement(*this, "INSERT INTO sweep VALUES ('format', ?)").bind(found = sweep_results_format).step();
  }
  if (found != sweep_results_format)
    fail(fmt::format("{}: format '{}', this program reads '{}'", path, found, sweep_results_format));
  transaction.commit();
}

SweepStore::SweepStore(SweepStore&&) noexcept = default;
SweepStore::~SweepStore() = default;

// --- points
// -------------------------------------------------------------------------------------------------

void SweepStore::take_point(const SweepPoint& point, int64_t position) {
  const std::optional<RunResult> run = run_result(run_path(point.name));
  const std::string path = run_path(point.name);
  Statement former(*this, "SELECT config, state FROM points WHERE name = ?");
  former.bind(point.name);
  std::string state = "pending";
  if (former.step()) {
    state = former.text(1);
    const bool changed = former.text(0) != point.config;
    const std::string log = path + "/point.log";
    if (changed && (run || (std::filesystem::exists(log) && !LockedFile::open(log))))
      fail_usage(
          fmt::format("sweep: point {} has begun with another configuration ({}); choose another --out, or "
                      "remove {}",
                      point.name, first_difference(former.text(0), point.config), path));
    if (!run && (changed || state == "finished")) state = "pending";
  } else if (run) {
    fail_usage(fmt::format(
        "sweep: '{}' holds a run that is not this sweep's; choose another --out, or remove it", path));
  }
  Statement(*this, R"(INSERT INTO points (name, position, config, task, seed, planned_steps, state)
      VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET position = excluded.position,
      config = excluded.config, task = excluded.task, seed = excluded.seed,
      planned_steps = excluded.planned_steps, state = excluded.state)")
      .bind(point.name)
      .bind(position)
      .bind(point.config)
      .bind(point.task)
      .bind(static_cast<int64_t>(point.seed))
      .bind(point.steps)
      .bind(state)
      .step();
  Statement(*this, "DELETE FROM settings WHERE point = ?").bind(point.name).step();
  for (size_t i = 0; i < point.settings.size(); ++i)
    Statement(*this, "INSERT INTO settings VALUES (?, ?, ?, ?)")
        .bind(point.name)
        .bind(static_cast<int64_t>(i))
        .bind(point.settings[i].key)
        .bind(point.settings[i].value)
        .step();
}

void SweepStore::take(const SweepPlan& plan) {
  Transaction transaction(*this);
  Statement(*this, "INSERT OR REPLACE INTO sweep VALUES ('name', ?)").bind(plan.name).step();
  execute("UPDATE points SET position = NULL");
  int64_t position = 0;
  for (const SweepPoint& point : plan.points) take_point(point, position++);
  transaction.commit();
}

void SweepStore::retry_failed() {
  Transaction transaction(*this);
  execute("UPDATE points SET state = 'interrupted' WHERE state = 'failed' AND position IS NOT NULL");
  transaction.commit();
}

std::optional<Claim> SweepStore::claim(const std::string& device, const std::vector<std::string>& only) {
  Transaction transaction(*this);
  std::vector<std::string> candidates;
  {
    Statement rows(*this,
                   "SELECT name FROM points WHERE position IS NOT NULL AND state IN ('pending', "
                   "'running', 'interrupted') ORDER BY position");
    while (rows.step())
      if (only.empty() || std::find(only.begin(), only.end(), rows.text(0)) != only.end())
        candidates.push_back(rows.text(0));
  }
  std::optional<Claim> claimed;
  for (const std::string& name : candidates) {
    ensure_directory(run_path(name));
    std::optional<LockedFile> log = LockedFile::open(run_path(name) + "/point.log");
    if (!log) continue;
    if (run_complete(run_path(name))) {
      ended(name, "finished");
      continue;
    }
    Statement(*this, R"(UPDATE points SET state = 'running', error = '', attempts = attempts + 1, worker = ?,
        device = ?, claimed = datetime('now'), ended = NULL WHERE name = ?)")
        .bind(process_label())
        .bind(device)
        .bind(name)
        .step();
    claimed.emplace(Claim{read_points("name = ?", name).at(0), std::move(*log)});
    break;
  }
  transaction.commit();
  return claimed;
}

void SweepStore::ended(const std::string& name, const std::string& state, const std::string& error) {
  std::optional<RunResult> run;
  try {
    run = run_result(run_path(name));
  } catch (const Error&) {  // a folder that cannot be read has no results
  }
  Statement(*this, R"(UPDATE points SET state = ?, error = ?, family = ?, accuracy = ?, loss = ?, step = ?,
      wall_seconds = ?, ended = datetime('now') WHERE name = ?)")
      .bind(state)
      .bind(error)
      .bind(run ? run->info.family : "")
      .bind_real(run ? run->accuracy : std::nullopt)
      .bind_real(run ? run->loss : std::nullopt)
      .bind(run ? std::optional<int64_t>(run->info.step) : std::nullopt)
      .bind_real(run ? std::optional<double>(run->info.wall_seconds) : std::nullopt)
      .bind(name)
      .step();
}

std::vector<PointRecord> SweepStore::read_points(const std::string& condition,
                                                 const std::string& value) const {
  std::vector<PointRecord> points;
  Statement rows(
      *this,
      "SELECT name, state, error, worker, device, task, family, config, seed, planned_steps, step, "
      "accuracy, loss, wall_seconds, attempts FROM points WHERE " +
          condition + " ORDER BY position IS NULL, position, name");
  if (!value.empty()) rows.bind(value);
  while (rows.step()) {
    PointRecord& p = points.emplace_back();
    int column = 0;
    for (std::string* text :
         {&p.name, &p.state, &p.error, &p.worker, &p.device, &p.task, &p.family, &p.config})
      *text = rows.text(column++);
    p.seed = static_cast<uint64_t>(rows.integer(column++).value_or(0));
    p.planned_steps = rows.integer(column++), p.step = rows.integer(column++);
    p.accuracy = rows.real(column++), p.loss = rows.real(column++), p.wall_seconds = rows.real(column++);
    p.attempts = rows.integer(column).value_or(0);
    Statement settings(*this, "SELECT key, value FROM settings WHERE point = ? ORDER BY position");
    settings.bind(p.name);
    while (settings.step()) p.settings.push_back({settings.text(0), settings.text(1)});
  }
  return points;
}

std::vector<PointRecord> SweepStore::points() const { return read_points("1"); }

std::vector<PointRecord> SweepStore::points_now() const {
  std::vector<PointRecord> all = points();
  for (PointRecord& p : all) {
    const std::string log = run_path(p.name) + "/point.log";
    if (p.state == "running" && (!std::filesystem::exists(log) || LockedFile::open(log)))
      p.state = "interrupted";
  }
  return all;
}

std::vector<std::string> SweepStore::planned() const {
  std::vector<std::string> names;
  Statement rows(*this, "SELECT name FROM points WHERE position IS NOT NULL ORDER BY position");
  while (rows.step()) names.push_back(rows.text(0));
  return names;
}

}  // namespace eigentrace
