#pragma once
// The subcommands of `eigentrace`: options as plain structs, filled by cli.cpp. Each function returns the
// exit code: 0 done, 1 something failed or a check did not pass (2, a mistake in usage, is an exception:
// UsageError). Data go to standard output, messages and progress to standard error.
#include <cstdint>
#include <string>
#include <vector>

namespace eigentrace {

struct CommonOptions {
  std::string device = "cpu";
  int threads = 0;    ///< 0: all cores
  bool json = false;  ///< machine-readable standard output
};

struct TrainOptions : CommonOptions {
  std::string config;            ///< YAML file; empty with --resume
  std::vector<std::string> set;  ///< "train.lr=1e-3"
  std::string out;               ///< run folder; empty: runs/<name of the configuration>
  std::string resume;            ///< run folder to go on with
  std::string dtype = "f32";
  std::string precision = "fp32";   ///< of float32 matrix products on a GPU
  std::string attention_precision;  ///< of those inside softmax attention; empty: `precision`
  bool tensorboard = false;         ///< an event file beside metrics.jsonl
  bool eager = false;               ///< on a GPU: launch every kernel of a step by itself
  int64_t max_steps = 0;            ///< stop (to be resumed) after so many steps from here; 0: go to the end
  bool explain = false;             ///< list what the published code ignores in this file, then stop
  bool force = false;               ///< overwrite an existing run folder
};
int train_command(const TrainOptions& options);

struct SpectrumOptions : CommonOptions {
  std::string run;                ///< run folder or checkpoint
  std::string out;                ///< folder for .npz and .json; empty: beside the checkpoint
  std::string stage = "both";     ///< initial, trained, both
  std::string reading = "exact";  ///< exact, published
  bool compare_readings = false;
  bool check = false;  ///< replay every layer and compare
  int64_t batch = 0;   ///< 0: the configuration's
};
int spectrum_command(const SpectrumOptions& options);

struct InterveneOptions : CommonOptions {
  std::string run;                   ///< run folder
  std::vector<std::string> changes;  ///< one row each; clauses of one joined by ";"
  std::string layers, heads;         ///< "0,2": of the changes that name none; empty: all
  std::string stage = "trained";     ///< trained, initial
  std::string split;                 ///< validation, test; empty: the configuration's
  int64_t examples = 0, batch = 0;   ///< 0: the configuration's
  bool replay = false;               ///< simulate in float64 even where there is a form in ops
  std::string dtype;                 ///< empty: the run's
};
int intervene_command(const InterveneOptions& options);

struct CorrelateOptions : CommonOptions {
  std::vector<std::string> runs;
  std::string stage = "trained", figure = "accuracy";  ///< figure: accuracy, loss
  std::string out = "correlations.json";
  int64_t permutations = 9999, resamples = 2000;
  double level = 0.95;
  uint64_t seed = 0;
  std::vector<std::string> statistics;  ///< only those whose name contains one of these
};
int correlate_command(const CorrelateOptions& options);

struct ReportOptions : CommonOptions {
  std::vector<std::string> runs;
  std::string out = "report.html";
  std::string figures;       ///< folder for .svg and .csv; empty: none
  std::string correlations;  ///< a file of `correlate`; empty: worked out where three runs or more are given
};
int report_command(const ReportOptions& options);

struct ParityOptions : CommonOptions {
  std::vector<std::string> files;
  std::string dtype;                                    ///< empty: f64, or f32 where a precision is asked for
  std::string precision = "fp32", attention_precision;  ///< as for train
};
int parity_command(const ParityOptions& options);

struct ImportOptions : CommonOptions {
  std::string file;              ///< .pth
  std::string config;            ///< of the model that was saved
  std::vector<std::string> set;  ///< as for train
  std::string out;               ///< .safetensors
  std::string dtype = "f32";
  bool force = false;  ///< replace an existing file
};
int import_command(const ImportOptions& options);

struct GradcheckOptionsCli : CommonOptions {
  std::string config, op;
  bool list = false;
  int64_t worst = 5;  ///< parameters listed
  uint64_t seed = 1;
};
int gradcheck_command(const GradcheckOptionsCli& options);

struct SelftestOptions : CommonOptions {
  std::vector<std::string> only;  ///< substrings of cases' names
  uint64_t seed = 1;
};
int selftest_command(const SelftestOptions& options);

struct BenchOptions : CommonOptions {
  std::vector<std::string> only;                           ///< substrings of line names
  std::vector<std::string> precisions = {"fp32", "tf32"};  ///< on a GPU
  std::string attention_precision;                         ///< as for train
  bool quick = false, eager = false;
};
int bench_command(const BenchOptions& options);

struct MadOptions : CommonOptions {
  std::string config;  ///< a run of the suite: its model and training; data set and rates are the protocol's
  std::vector<std::string> set;
  std::string out;                 ///< folder: OUT/TASK/SETTING/RUN
  std::vector<std::string> tasks;  ///< empty: all six
  bool baseline_only = false, quiet = false;
};
int mad_command(const MadOptions& options);

struct SweepOptions : CommonOptions {
  std::string file;              ///< what varies; or the folder of a sweep that was begun, to go on with it
  std::string out;               ///< folder; empty: runs/<name of the file>
  std::vector<std::string> set;  ///< for all points
  std::vector<std::string> devices;
  std::vector<std::string> points;  ///< names or numbers; empty: all
  int jobs = 1;                     ///< points trained at once on each device
  std::string dtype = "f32";
  std::string precision = "fp32";   ///< of float32 products, as train takes it
  std::string attention_precision;  ///< of those inside softmax attention; empty: precision
  bool plan = false;                ///< list the points, then stop
  bool retry_failed = false;        ///< go on with failed points as well
  bool slurm = false;               ///< write a job array instead of running
  std::string slurm_options;        ///< "--partition=gpu --time=1:00:00"
};
int sweep_command(const SweepOptions& options);

struct SummaryOptions : CommonOptions {
  std::vector<std::string> paths;  ///< runs, sweeps, or folders that hold some
  bool layers = false;             ///< a line per layer of each spectrum
};
int summary_command(const SummaryOptions& options);

struct TasksOptions : CommonOptions {
  std::string action;            ///< list, describe, sample, export, check, speed
  std::string name;              ///< of the task
  std::vector<std::string> set;  ///< "vocab_size=64"
  std::string split = "train";
  int64_t index = 0, count = 1;  ///< sample: the first example, and how many
  std::string out, format = "npy";
  int64_t limit = 1000;  ///< export, check: examples of a split (0: all)
};
int tasks_command(const TasksOptions& options);

struct InfoOptions : CommonOptions {
  std::string path;  ///< a checkpoint or a run folder to verify and describe; empty: this machine
};
int info_command(const InfoOptions& options);

struct FailureOptions : CommonOptions {
  std::string run;  ///< run folder with a failed step
};
/// Repeats the step that stopped a run, looking at every value, in the run's type and in f64.
int failure_command(const FailureOptions& options);

/// Parses the command line and runs the subcommand; turns exceptions into messages and exit codes.
int run_program(int argc, char** argv);

}  // namespace eigentrace
