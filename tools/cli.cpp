// The command line. The only file that includes CLI11: it costs seconds to compile.
#include <fmt/format.h>
#include <omp.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <functional>

#include "tensor/error.h"
#include "tools/commands.h"
#include "tools/progress.h"
#include "tools/version.h"

namespace eigentrace {
namespace {

void add_common(CLI::App* command, CommonOptions& options) {
  command->add_option("--device", options.device, "cpu, cuda or cuda:INDEX")->capture_default_str();
  command->add_option("--threads", options.threads, "CPU threads (0: all cores)")->capture_default_str();
  command->add_flag("--json", options.json, "machine-readable output");
}

/// Declares a subcommand whose options live as long as the App; `run` is called after parsing.
template <class Options, class Declare>
void subcommand(CLI::App& app, const char* name, const char* about, std::function<int()>& chosen,
                int (*run)(const Options&), Declare&& declare) {
  CLI::App* command = app.add_subcommand(name, about);
  auto options = std::make_shared<Options>();
  declare(command, *options);
  add_common(command, *options);
  command->callback([&chosen, options, run] {
    chosen = [options, run] {
      if (options->threads < 0) fail_usage("--threads: a number from 1, or 0 for all cores");
      if (options->threads > 0) omp_set_num_threads(options->threads);
      return run(*options);
    };
  });
}

void declare_commands(CLI::App& app, std::function<int()>& chosen) {
  subcommand<TrainOptions>(
      app, "train", "train a model, write a run folder", chosen, train_command,
      [](CLI::App* c, TrainOptions& o) {
        c->add_option("config", o.config, "YAML configuration (ours or the study's own)");
        c->add_option("--set", o.set, "override a key: train.lr=1e-3 (repeatable)");
        c->add_option("--out", o.out, "run folder (default: runs/NAME)");
        c->add_option("--resume", o.resume, "go on with the run in this folder");
        c->add_option("--dtype", o.dtype, "f32 or f64")->capture_default_str();
        c->add_option("--precision", o.precision,
                      "of float32 matrix products on a GPU: fp32, tf32, tf32x3 or bf16 (activations too)")
            ->capture_default_str();
        c->add_option("--attention-precision", o.attention_precision,
                      "of those inside softmax attention (default: as --precision)");
        c->add_flag("--tensorboard", o.tensorboard, "also write metrics as TensorBoard's event file");
        c->add_flag("--eager", o.eager, "on a GPU: launch every kernel by itself instead of a captured step");
        c->add_option("--max-steps", o.max_steps,
                      "stop after so many steps, to be resumed (0: go to the end)");
        c->add_flag("--explain", o.explain,
                    "print the resolved configuration and what has no effect in it; do not train");
        c->add_flag("--force", o.force, "replace an existing run folder");
      });
  subcommand<SpectrumOptions>(
      app, "spectrum", "read the eigenvalues of every layer of a run or checkpoint", chosen, spectrum_command,
      [](CLI::App* c, SpectrumOptions& o) {
        c->add_option("run", o.run, "run folder or checkpoint file")->required();
        c->add_option("--out", o.out, "folder for .npz and .json (default: beside the checkpoint)");
        c->add_option("--stage", o.stage, "initial, trained or both")->capture_default_str();
        c->add_option("--reading", o.reading, "exact, or published (as the study's script)")
            ->capture_default_str();
        c->add_flag("--compare-readings", o.compare_readings,
                    "how far the published reading is from the exact one");
        c->add_flag("--check", o.check, "replay every layer from its eigenvalues and compare");
        c->add_option("--batch", o.batch, "sequences (0: the configuration's)");
      });
  subcommand<InterveneOptions>(
      app, "intervene", "evaluate a run with its eigenvalues clamped, shifted or frozen, and without", chosen,
      intervene_command, [](CLI::App* c, InterveneOptions& o) {
        c->add_option("run", o.run, "run folder")->required();
        c->add_option(
             "--clamp,--change", o.changes,
             "a change, e.g. 'abs<=0.9', 'lambda=0', 'arg=0; abs*=0.9 layers=0 heads=2', 'freeze=mean' "
             "(repeatable: one row each)")
            ->required();
        c->add_option("--layers", o.layers, "of changes that name none: 0,1 (default: all)");
        c->add_option("--heads", o.heads, "of changes that name none (S4: channels)");
        c->add_option("--stage", o.stage, "trained or initial weights")->capture_default_str();
        c->add_option("--split", o.split, "validation or test (default: the configuration's)");
        c->add_option("--examples", o.examples, "so many examples (0: the configuration's)");
        c->add_option("--batch", o.batch, "sequences a pass (0: the configuration's)");
        c->add_option("--dtype", o.dtype, "f32 or f64 (default: the run's)");
        c->add_flag("--replay", o.replay, "simulate in float64 also where the ops of training would do");
      });
  subcommand<CorrelateOptions>(
      app, "correlate",
      "statistics of many runs' spectra against accuracy; means over seeds; initial against trained", chosen,
      correlate_command, [](CLI::App* c, CorrelateOptions& o) {
        c->add_option("runs", o.runs, "run folders, and folders that hold some")->required();
        c->add_option("--figure", o.figure, "accuracy or loss")->capture_default_str();
        c->add_option("--stage", o.stage, "table of: initial, trained or change")->capture_default_str();
        c->add_option("--statistic", o.statistics, "only statistics whose name contains this (repeatable)");
        c->add_option("--level", o.level, "of intervals")->capture_default_str();
        c->add_option("--permutations", o.permutations, "of a p-value")->capture_default_str();
        c->add_option("--resamples", o.resamples, "of an interval")->capture_default_str();
        c->add_option("--seed", o.seed, "of both")->capture_default_str();
        c->add_option("-o,--out", o.out, "file of all results")->capture_default_str();
      });
  subcommand<ReportOptions>(app, "report", "one self-contained HTML page for runs, and a summary table",
                            chosen, report_command, [](CLI::App* c, ReportOptions& o) {
                              c->add_option("runs", o.runs, "run folders")->required();
                              c->add_option("-o,--out", o.out, "HTML file")->capture_default_str();
                              c->add_option("--figures", o.figures,
                                            "also write every figure as .svg and .csv into this folder");
                              c->add_option("--correlations", o.correlations,
                                            "what `correlate` wrote (default: worked out for three runs or "
                                            "more)");
                            });
  subcommand<ParityOptions>(
      app, "parity", "compare with fixtures computed by the published code", chosen, parity_command,
      [](CLI::App* c, ParityOptions& o) {
        c->add_option("files", o.files, "fixtures (.safetensors, format parity/1)")->required();
        c->add_option("--dtype", o.dtype, "f64 or f32 (default: f64; f32 where a precision is given)");
        c->add_option("--precision", o.precision,
                      "of float32 matrix products on a GPU: fp32, tf32, tf32x3 or bf16")
            ->capture_default_str();
        c->add_option("--attention-precision", o.attention_precision,
                      "of those inside softmax attention (default: as --precision)");
      });
  subcommand<ImportOptions>(
      app, "import", "turn a PyTorch checkpoint (.pth) of the published code into ours", chosen,
      import_command, [](CLI::App* c, ImportOptions& o) {
        c->add_option("file", o.file, "a state_dict saved by torch.save")->required();
        c->add_option("--config", o.config, "YAML configuration it was trained with")->required();
        c->add_option("--set", o.set, "override a key: model.num_layers=2 (repeatable)");
        c->add_option("--out", o.out, "checkpoint to write (.safetensors)")->required();
        c->add_option("--dtype", o.dtype, "f32 or f64")->capture_default_str();
        c->add_flag("--force", o.force, "replace an existing file");
      });
  subcommand<GradcheckOptionsCli>(
      app, "gradcheck", "float64 central differences against the tape", chosen, gradcheck_command,
      [](CLI::App* c, GradcheckOptionsCli& o) {
        c->add_option("--config", o.config, "check a configured model (shrink it with --config's own sizes)");
        c->add_option("--op", o.op, "check one op (all: every op)");
        c->add_flag("--list", o.list, "list the ops");
        c->add_option("--worst", o.worst, "parameters listed")->capture_default_str();
        c->add_option("--seed", o.seed, "of values, cotangents and samples")->capture_default_str();
      });
  subcommand<SelftestOptions>(
      app, "selftest", "check every op on this device: values, gradients, the same bits twice", chosen,
      selftest_command, [](CLI::App* c, SelftestOptions& o) {
        c->add_option("only", o.only, "check cases whose name contains one of these words");
        c->add_option("--seed", o.seed, "of shapes and numbers")->capture_default_str();
      });
  subcommand<BenchOptions>(
      app, "bench", "time kernels and training steps against this machine's ceilings", chosen, bench_command,
      [](CLI::App* c, BenchOptions& o) {
        c->add_option("only", o.only, "run lines whose name contains one of these words");
        c->add_flag("--quick", o.quick, "small sizes, one repetition");
        c->add_option("--precision", o.precisions, "on a GPU: fp32, tf32, tf32x3, bf16")
            ->delimiter(',')
            ->capture_default_str();
        c->add_option("--attention-precision", o.attention_precision,
                      "on a GPU: of the products inside softmax attention");
        c->add_flag("--eager", o.eager,
                    "on a GPU: steps not captured; with --quick for a profiler: no times");
      });
  subcommand<TasksOptions>(
      app, "tasks", "list, describe, sample, export or check tasks; measure how fast examples are made",
      chosen, tasks_command, [](CLI::App* c, TasksOptions& o) {
        c->add_option("action", o.action, "list, describe, sample, export, check or speed")->required();
        c->add_option("name", o.name, "task (all actions but list)");
        c->add_option("--set", o.set, "override a key of the task: vocab_size=64 (repeatable)");
        c->add_option("--split", o.split, "train, validation or test")->capture_default_str();
        c->add_option("--index", o.index, "sample: the first example")->capture_default_str();
        c->add_option("--count", o.count, "sample: how many")->capture_default_str();
        c->add_option("--out", o.out, "export: folder");
        c->add_option("--format", o.format, "export: npy, jsonl or official")->capture_default_str();
        c->add_option("--limit", o.limit, "export, check: examples of a split (0: all)")
            ->capture_default_str();
      });
  subcommand<MadOptions>(
      app, "mad",
      "the MAD suite: best of six runs in every setting, mean over settings (finished runs are kept)", chosen,
      mad_command, [](CLI::App* c, MadOptions& o) {
        c->add_option("config", o.config,
                      "YAML of one run, e.g. tasks/experiments/mad-in-context-recall-mamba2.yaml")
            ->required();
        c->add_option("--out", o.out, "folder of the runs")->required();
        c->add_option("--task", o.tasks, "only these tasks (repeatable)");
        c->add_option("--set", o.set, "override a key of the configuration (repeatable)");
        c->add_flag("--baseline-only", o.baseline_only, "no difficulty changes");
      });
  subcommand<SweepOptions>(
      app, "sweep", "train every point of a sweep, each in a process of its own; go on where it was left",
      chosen, sweep_command, [](CLI::App* c, SweepOptions& o) {
        c->add_option("file", o.file, "YAML: base_config and what varies; or the folder of a begun sweep")
            ->required();
        c->add_option("--out", o.out, "folder (default: runs/NAME)");
        c->add_option("--set", o.set, "override a key of all points (repeatable)");
        c->add_flag("--plan", o.plan, "list the points, do not train");
        c->add_option("--devices", o.devices, "a worker each: cuda:0,cuda:1 (default: --device)")
            ->delimiter(',');
        c->add_option("--jobs", o.jobs, "points trained at once on each device")->capture_default_str();
        c->add_option("--point", o.points, "only this point, by name or number (repeatable)");
        c->add_option("--dtype", o.dtype, "f32 or f64")->capture_default_str();
        c->add_option("--precision", o.precision, "of float32 products on a GPU: fp32, tf32, tf32x3, bf16")
            ->capture_default_str();
        c->add_option("--attention-precision", o.attention_precision,
                      "of those inside softmax attention (default: as --precision)");
        c->add_flag("--retry-failed", o.retry_failed, "go on with failed points as well");
        c->add_flag("--slurm", o.slurm, "write a Slurm job array instead of training");
        c->add_option("--slurm-options", o.slurm_options, "options of sbatch, as one text");
      });
  subcommand<SummaryOptions>(
      app, "summary", "tables of runs and sweeps: results, spectra, seeds together", chosen, summary_command,
      [](CLI::App* c, SummaryOptions& o) {
        c->add_option("paths", o.paths, "run folders, sweeps, or folders that hold some")->required();
        c->add_flag("--layers", o.layers, "spectra layer by layer");
      });
  subcommand<FailureOptions>(app, "failure", "repeat the step that stopped a run, looking at every value",
                             chosen, failure_command, [](CLI::App* c, FailureOptions& o) {
                               c->add_option("run", o.run, "run folder with failed.safetensors")->required();
                             });
  subcommand<InfoOptions>(app, "info", "devices, threads, libraries, versions; or what a checkpoint is",
                          chosen, info_command, [](CLI::App* c, InfoOptions& o) {
                            c->add_option("path", o.path, "checkpoint or run folder to verify and describe");
                          });
}

}  // namespace

int run_program(int argc, char** argv) {
  CLI::App app{"eigentrace: sequence models trained from scratch, every layer read as a dynamical system"};
  app.set_version_flag("--version", version_line());
  app.require_subcommand(1);
  std::function<int()> chosen;
  declare_commands(app, chosen);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  try {
    const int code = chosen();
    if (std::fflush(stdout) != 0) fail("standard output: cannot be written (disk full or closed)");
    return code;
  } catch (const UsageError& error) {
    fmt::print(stderr, "eigentrace: {}\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    fmt::print(stderr, "eigentrace: {}\n", error.what());
    return 1;
  }
}

}  // namespace eigentrace
