// What a run does that a reader of its configuration might not expect.
#include <fmt/format.h>

#include "nn/config/config.h"

namespace eigentrace {
namespace {

void explain_schedule(const RunConfig& run, std::vector<std::string>& out) {
  const TrainConfig& t = run.train;
  if (t.schedule != ScheduleKind::published) return;
  if (!t.ssm && !(t.steps() ? t.warmup_steps : t.warmup))
    out.push_back(
        fmt::format("published schedule: the learning rate is constant, for {} is not set and the cosine "
                    "ticks only inside the "
                    "warm-up",
                    t.steps() ? "warmup_steps" : "warmup"));
  if (t.ssm)
    out.push_back(
        "published schedule: the first step runs at the full rate, every other one at the rate meant for the "
        "step "
        "before; the cosine counts from the first step, so that the rate jumps down after the warm-up");
  if (t.ssm && t.lr_patience > 0 && task_name(run.dataset) == "wikitext")
    out.push_back(
        "published schedule: the plateau rule takes the perplexity for an accuracy, so both rates shrink "
        "while it "
        "improves");
}

void explain_groups(const RunConfig& run, std::vector<std::string>& out) {
  const TrainConfig& t = run.train;
  if (const SsmConfig* ssm = std::get_if<SsmConfig>(&run.model)) {
    if (ssm->layer == SsmKind::lru && t.ssm_lr)
      out.push_back(
          "train.ssm_lr has no effect: ssm_lr_vars names no parameter of LRU, which trains at lr with decay");
    if (ssm->layer == SsmKind::s5 && t.schedule == ScheduleKind::published)
      out.push_back(
          "train.betas has no effect: S5's published optimiser has (0.9, 0.999); its ssm group is Lambda_re, "
          "Lambda_im and log_step, B trains at lr with decay");
  }
  if (t.s4 && t.complex_gradient == ComplexGradient::published)
    out.push_back("train.complex_gradient is published: the imaginary parts of P and B move up the loss");
  if (t.ssm && t.schedule == ScheduleKind::published) out.push_back("gradients are not clipped");
  if (t.param_group && t.update_step > 1)
    out.push_back("the sums of the group's gradients enter the clipping norm of every step");
}

void explain_data(const RunConfig& run, std::vector<std::string>& out) {
  const SsmConfig* ssm = std::get_if<SsmConfig>(&run.model);
  if (run.train.loss_mean == LossMean::all_positions && !(ssm && ssm->pooling != PoolKind::none))
    out.push_back(
        "train.loss_mean is all_positions: unlabelled positions count as zero loss, so loss and gradients "
        "are smaller "
        "by the labelled share");
  if (run.train.eval_split == EvalSplit::test)
    out.push_back("train.eval_split is test: stopping and the reported score look at the test set");
  if (const MqarConfig* mqar = std::get_if<MqarConfig>(&run.dataset); mqar && mqar->published_split)
    out.push_back("dataset.published_split: test example k has the keys of training example k");
}

void explain_model(const RunConfig& run, std::vector<std::string>& out) {
  if (const auto* c = std::get_if<TransformerConfig>(&run.model)) {
    if (c->attention_fn == AttentionKind::norm && c->norm_fn == NormFn::exp && c->offset)
      out.push_back(
          "model.norm_fn exp with offset: exp(-exp(n + offset)) underflows in float32 at the initial "
          "offsets, "
          "so that most heads are dead");
    if (c->classifier && c->mixer_dim == 0)
      out.push_back("model.mixer_dim is 0: the pooled features are the output, output_dim is not read");
    if (c->classifier && c->pooling != PoolKind::none && run.dialect == Dialect::study)
      out.push_back(
          "pooling covers padding: the result of a sequence depends on the longest one of its batch");
  }
  if (const auto* c = std::get_if<MambaConfig>(&run.model); c && !c->glu && c->dropout > 0)
    out.push_back("model.dropout acts twice in a row, for glu is False");
  const auto* mad = std::get_if<MadConfig>(&run.dataset);
  const auto* mad_model = std::get_if<MadModelConfig>(&run.model);
  if (mad && mad->task == "compression" && !(mad_model && mad_model->auto_encoder))
    out.push_back("compression without model.auto_encoder: every position sees the token it is asked for");
}

}  // namespace

std::vector<std::string> explain(const RunConfig& run) {
  std::vector<std::string> out;
  explain_schedule(run, out);
  explain_groups(run, out);
  explain_data(run, out);
  explain_model(run, out);
  return out;
}

}  // namespace eigentrace
