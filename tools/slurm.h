#pragma once
// A sweep as a Slurm job array: one task a point.
#include <string>
#include <vector>

namespace eigentrace {

struct SlurmJob {
  std::string name, program, folder, work_folder;  ///< paths absolute
  std::vector<std::string> points;                 ///< task i trains points[i]
  std::string device = "cpu";
  std::vector<std::string> arithmetic = {"--dtype", "f32"};  ///< options of sweep
  std::string options;  ///< of sbatch, as typed: "--partition=gpu --time=1:00:00"
};

/// The batch script. Any task may be submitted or requeued at any time: it goes on with its point, or ends at
/// once where there is nothing left to do. On SIGTERM, and on SIGUSR1 two minutes before time is up, the
/// point saves; after SIGUSR1 the task requeues itself. Errors (usage): no points, an option that is none, a
/// path that a batch script cannot hold.
std::string slurm_script(const SlurmJob& job);

/// text as one word of a shell.
std::string shell_word(const std::string& text);

}  // namespace eigentrace
