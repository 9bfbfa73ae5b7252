#pragma once
// A run's configuration: seed, save, dataset, train, model, spectral. Two dialects:
//
//   format: eigentrace/1 at the top: ours. Unknown keys and keys without effect are errors.
//   no such key: one of the study's own files. Unknown keys are errors; what its code ignores is accepted and
//   told in notices; its defaults are the published ones (schedule, gradient of complex parameters, test
//   set).
#include <optional>
#include <string>
#include <vector>

#include "nn/config/fields.h"
#include "nn/config/model_config.h"
#include "tasks/config.h"

namespace eigentrace {

inline constexpr const char* config_format = "eigentrace/1";

enum class Dialect : unsigned char { ours, study };

enum class ScheduleKind : unsigned char { cosine, constant, published };
constexpr auto enum_names(ScheduleKind) { return std::array{"cosine", "constant", "published"}; }
enum class ComplexGradient : unsigned char { descent, published };
constexpr auto enum_names(ComplexGradient) { return std::array{"descent", "published"}; }
enum class LossMean : unsigned char { labelled, all_positions };
constexpr auto enum_names(LossMean) { return std::array{"labelled", "all_positions"}; }
enum class EvalSplit : unsigned char { validation, test };
constexpr auto enum_names(EvalSplit) { return std::array{"validation", "test"}; }

struct TrainConfig {
  std::optional<int64_t> total_steps, num_epochs;  ///< one of them
  int64_t batch_size = 64, eval_batch_size = 0;
  double lr = 1e-3, wd = 0.1;
  std::vector<double> betas = {0.9, 0.999};
  double clip_grad_norm = 1.0;
  ScheduleKind schedule = ScheduleKind::cosine;
  std::optional<int64_t> warmup_steps, warmup;
  double lr_min = 5e-6;
  std::optional<double> ssm_lr;
  bool cosine_anneal = true;
  double reduce_factor = 1.0;
  int64_t lr_patience = 0;
  std::optional<std::string> param_group;
  std::optional<double> group_lr;
  int64_t update_step = 1;
  ComplexGradient complex_gradient = ComplexGradient::descent;
  LossMean loss_mean = LossMean::labelled;
  int64_t eval_every = 200, eval_examples = 0;
  EvalSplit eval_split = EvalSplit::validation;
  std::optional<double> stop_criterion;
  int64_t checkpoint_every = 0, log_every = 10;

  /// Not a key: the family that is trained, which decides what the keys above mean.
  bool ssm = false;  ///< s4, s5 or lru
  bool s4 = false;   ///< s4: it alone has complex parameters
  bool steps() const { return total_steps.has_value(); }
};

template <class V>
void visit_fields(V& v, TrainConfig& c) {
  const bool published = c.schedule == ScheduleKind::published, steps = c.steps();
  const bool cosine = published ? c.cosine_anneal : c.schedule == ScheduleKind::cosine;
  const char* torch = "only s4, s5 and lru read it";
  const char* not_published = "only schedule: published reads it";
  v("total_steps", c.total_steps, "length of training in steps", steps || !c.num_epochs, "num_epochs is set");
  v("num_epochs", c.num_epochs, "or in epochs", !steps, "total_steps is set");
  v("batch_size", c.batch_size, "examples per step");
  v("eval_batch_size", c.eval_batch_size, "examples per evaluation batch (0: batch_size)");
  v("lr", c.lr, "learning rate");
  v("wd", c.wd, "decoupled weight decay");
  v("betas", c.betas, "of the two moments");
  v("clip_grad_norm", c.clip_grad_norm, "global norm (0: off; published: 1, for s4, s5 and lru off)",
    !(published && c.ssm), "the published trainer of s4, s5 and lru does not clip");
  v("schedule", c.schedule,
    "cosine: warm-up, then cosine to lr_min; constant: warm-up, then lr; published: as the study's trainers");
  v("warmup_steps", c.warmup_steps, "steps of linear warm-up", steps,
    "training is by epochs: it reads warmup");
  v("warmup", c.warmup, "epochs of linear warm-up", !steps, "training is by steps: it reads warmup_steps");
  v("lr_min", c.lr_min, "where the cosine ends", published ? c.ssm : (cosine || c.lr_patience > 0),
    published ? "the published cosine of the others ends at 5e-6" : "schedule is constant");
  v("ssm_lr", c.ssm_lr, "rate of the recurrent parameters, without decay (null: no such group)", c.ssm,
    torch);
  v("cosine_anneal", c.cosine_anneal, "anneal after the warm-up", published && c.ssm,
    published ? torch : not_published);
  v("reduce_factor", c.reduce_factor, "of both base rates on a plateau",
    c.lr_patience > 0 && (c.ssm || !published), published && !c.ssm ? torch : "lr_patience is 0");
  v("lr_patience", c.lr_patience, "evaluations without a better figure before a reduction (0: never)",
    c.ssm || !published, torch);
  v("param_group", c.param_group, "parameters whose name contains this are a group of their own", !c.ssm,
    "only transformer and mamba read it");
  v("group_lr", c.group_lr, "its rate", !c.ssm && c.param_group.has_value(), "param_group is not set");
  v("update_step", c.update_step, "its gradient is summed over so many steps, then applied",
    !c.ssm && c.param_group.has_value(), "param_group is not set");
  v("complex_gradient", c.complex_gradient, "of complex parameters; published: imaginary parts move uphill",
    c.s4, "only s4 has complex parameters");
  v("loss_mean", c.loss_mean, "over labelled places, or over all positions, unlabelled ones counting 0");
  v("eval_every", c.eval_every, "steps between evaluations", steps,
    "training by epochs evaluates after each");
  v("eval_examples", c.eval_examples,
    "evaluate on so many examples, a choice that is always the same (0: the whole split)");
  v("eval_split", c.eval_split, "validation or test");
  v("stop_criterion", c.stop_criterion, "stop when the accuracy exceeds it");
  v("checkpoint_every", c.checkpoint_every, "steps between checkpoints (0: at the end only)");
  v("log_every", c.log_every, "steps between lines of metrics");
}

enum class Reading : unsigned char { exact, published, both };
constexpr auto enum_names(Reading) { return std::array{"exact", "published", "both"}; }
enum class SpectralPrecision : unsigned char { f32, f64 };
constexpr auto enum_names(SpectralPrecision) { return std::array{"f32", "f64"}; }

enum class SpectralPass : unsigned char { training, evaluation };
constexpr auto enum_names(SpectralPass) { return std::array{"training", "evaluation"}; }

struct SpectralConfig {
  int64_t every = 0;
  SpectralPass pass = SpectralPass::training;
  int64_t batch = 8;
  Reading reading = Reading::exact;
  SpectralPrecision dtype = SpectralPrecision::f32;
  int64_t channels = 0;
  std::vector<std::string> intervention;
};

template <class V>
void visit_fields(V& v, SpectralConfig& c) {
  v("every", c.every, "steps between readings during training (0: before and after only)");
  v("pass", c.pass,
    "along training: training (the step's own pass, where it has what is asked for) or evaluation (one "
    "more)");
  v("batch", c.batch, "sequences read");
  v("reading", c.reading, "exact, published or both");
  v("dtype", c.dtype, "f32 or f64: the pass that is read");
  v("channels", c.channels, "channels of an s4 layer whose eigenproblems are solved (0: all)");
  v("intervention", c.intervention,
    "eigenvalues changed in training and evaluation, such as [abs<=0.9 layers=0,1, freeze=mean]");
}

struct RunConfig {
  Dialect dialect = Dialect::ours;  ///< of the file it came from
  uint64_t seed = 1919;
  bool save = true;
  TaskConfig dataset;
  TrainConfig train;
  ModelConfig model;
  SpectralConfig spectral;
};

struct LoadedConfig {
  RunConfig config;
  std::vector<std::string> notices;  ///< what the file says without effect, then explain(config)
};

/// What the run does that a reader of its file might not expect, one sentence each: the published trainers'
/// oddities that this configuration meets, options that cannot work.
std::vector<std::string> explain(const RunConfig& config);

/// Reads a configuration. `origin` names it in errors; `overrides` are "a.b=value", applied before anything
/// is read. Errors (usage): not YAML, unknown keys (with the nearest known one), values of the wrong type,
/// keys twice, in our dialect keys without effect.
LoadedConfig read_config(const std::string& text, const std::string& origin,
                         const std::vector<std::string>& overrides = {});
LoadedConfig read_config_file(const std::string& path, const std::vector<std::string>& overrides = {});

/// A task by name, its keys overridden by "key=value". Errors (usage) as of read_config.
TaskConfig read_task_config(const std::string& name, const std::vector<std::string>& overrides);

/// The resolved configuration in our dialect, only keys that have an effect. read_config(to_yaml(c)) is c.
std::string to_yaml(const RunConfig& config);
std::string to_json(const RunConfig& config);
bool operator==(const RunConfig& a, const RunConfig& b);

/// Fills in what the data decide (seq_len; vocab_size, input_dim, output_dim where they are 0) and checks the
/// model against the data. Errors (usage): a table smaller than the vocabulary, positions shorter than the
/// sequences, an input of the other kind, fewer outputs than classes, one output where many are labelled.
void fit_model(ModelConfig& model, const TaskShape& data);

}  // namespace eigentrace
