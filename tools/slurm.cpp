#include "tools/slurm.h"

#include <fmt/format.h>

#include <algorithm>
#include <sstream>

#include "tensor/error.h"

namespace eigentrace {
namespace {

/// Each sbatch option as typed; "--time 10" is two words and one option.
std::vector<std::string> split_options(const std::string& text) {
  std::istringstream words(text);
  std::vector<std::string> options;
  for (std::string word; words >> word;) {
    if (word.starts_with("-"))
      options.push_back(word);
    else if (!options.empty() && options.back().find_first_of("= ") == std::string::npos)
      options.back() += " " + word;
    else
      fail_usage(fmt::format("--slurm-options: expected options of sbatch such as --time=1:00:00, found '{}'",
                             word));
  }
  for (const std::string& option : options)
    if (option.starts_with("--array") || option.starts_with("-a"))
      fail_usage("--slurm-options: --array is the sweep's own; use --point to choose points");
  return options;
}

/// A path inside a #SBATCH line, where % begins a pattern.
std::string pattern_path(const std::string& path) {
  std::string out;
  for (const char c : path) out += c == '%' ? std::string("%%") : std::string(1, c);
  return out;
}

}  // namespace

std::string shell_word(const std::string& text) {
  const bool plain = !text.empty() && std::ranges::all_of(text, [](unsigned char c) {
    return std::isalnum(c) || std::string("_.,+-=/:%@").find(static_cast<char>(c)) != std::string::npos;
  });
  if (plain) return text;
  std::string out = "'";
  for (const char c : text) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

std::string slurm_script(const SlurmJob& job) {
  if (job.points.empty()) fail_usage("sweep --slurm: every point is finished or failed; nothing to submit");
  for (const std::string& path : {job.folder, job.work_folder, job.program})
    if (path.find_first_of("\"\n\\") != std::string::npos)
      fail_usage(
          fmt::format("sweep --slurm: '{}': a path without quotes, backslashes and newlines expected", path));
  std::string script = fmt::format(R"(#!/bin/bash
# {0} points of the sweep in {1}. Submit with: sbatch {2}
# Submitting it again is harmless: finished points end at once, interrupted ones go on.
#SBATCH --job-name={3}
#SBATCH --array=0-{4}
#SBATCH --output="{5}/slurm-%A_%a.log"
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
)",
                                   job.points.size(), job.folder, shell_word(job.folder + "/slurm.sh"),
                                   job.name, job.points.size() - 1, pattern_path(job.folder));
  for (const std::string& option : split_options(job.options)) script += "#SBATCH " + option + "\n";
  script += "\npoints=(\n";
  for (const std::string& point : job.points) script += "  " + shell_word(point) + "\n";
  std::string arithmetic;
  for (const std::string& word : job.arithmetic)
    arithmetic += (arithmetic.empty() ? "" : " ") + shell_word(word);
  script += fmt::format(R"()
cd {} || exit 1
{} sweep {} --point "${{points[$SLURM_ARRAY_TASK_ID]}}" --device {} {} \
  --threads "${{SLURM_CPUS_PER_TASK:-1}}" &
worker=$!
again=no
trap 'kill -TERM "$worker" 2>/dev/null' TERM
trap 'again=yes; kill -TERM "$worker" 2>/dev/null' USR1
# A signal ends wait early; the worker is still saving then.
wait "$worker"
code=$?
while kill -0 "$worker" 2>/dev/null; do
  wait "$worker"
  code=$?
done
if [ "$again" = yes ] && [ "$code" -ne 0 ]; then
  echo "time is nearly up: saved, and back into the queue"
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
  sleep 60  # until Slurm ends this task
fi
exit "$code"
)",
                        shell_word(job.work_folder), shell_word(job.program), shell_word(job.folder),
                        shell_word(job.device), arithmetic);
  return script;
}

}  // namespace eigentrace
