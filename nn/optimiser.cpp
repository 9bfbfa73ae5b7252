#include "nn/optimiser.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "tensor/error.h"

namespace eigentrace {

std::vector<ParameterGroup> make_groups(const ParameterList& list, const ModelConfig& model,
                                        const TrainConfig& train, Dialect dialect,
                                        std::vector<std::string>* notices) {
  ParameterGroup regular, special;
  regular.name = "regular";
  regular.beta1 = train.betas[0], regular.beta2 = train.betas[1], regular.weight_decay = train.wd;
  std::string what;
  std::function<bool(const std::string&)> chosen;
  if (const SsmConfig* ssm = std::get_if<SsmConfig>(&model)) {
    if (!train.ssm_lr) {
      chosen = nullptr;
    } else {
      const bool s5 = ssm->layer == SsmKind::s5;
      special.kind = GroupKind::ssm, special.name = "ssm";
      special.beta1 = regular.beta1, special.beta2 = regular.beta2;
      // S5's published trainer names its own list and reads no betas.
      if (s5 && train.schedule == ScheduleKind::published) {
        special.beta1 = regular.beta1 = 0.9;
        special.beta2 = regular.beta2 = 0.999;
      }
      const std::vector<std::string> last_names =
          s5 ? std::vector<std::string>{"Lambda_re", "Lambda_im", "log_step"} : ssm->ssm_lr_vars;
      what = s5 ? "train.ssm_lr" : "model.ssm_lr_vars";
      chosen = [last_names](const std::string& name) {
        return std::ranges::find(last_names, name.substr(name.rfind('.') + 1)) != last_names.end();
      };
    }
  } else if (train.param_group) {
    special.kind = GroupKind::named, special.name = *train.param_group;
    special.weight_decay = 0.01, special.update_every = train.update_step;
    what = "train.param_group";
    chosen = [part = *train.param_group](const std::string& name) {
      return name.find(part) != std::string::npos;
    };
  }
  for (const Parameter& p : list.parameters())
    (chosen && chosen(p.name) ? special : regular).members.push_back(p.index);
  // The resolved form of a study's run is written in our dialect and must go on as it began.
  const bool strict = dialect == Dialect::ours && train.schedule != ScheduleKind::published;
  std::vector<ParameterGroup> groups;
  for (ParameterGroup* group : {&regular, &special}) {
    if (!group->members.empty()) {
      groups.push_back(std::move(*group));
    } else if (group == &regular || chosen) {
      const std::string message =
          group == &special
              ? fmt::format("{} selects no parameter: the group '{}' is empty", what, special.name)
              : fmt::format("{} selects every parameter: no other is left", what);
      if (strict) fail_usage(message + "; remove the key or name parameters that exist");
      if (notices) notices->push_back(message);
    }
  }
  return groups;
}

OptimiserOptions optimiser_options(const TrainConfig& train) {
  const bool published = train.schedule == ScheduleKind::published;
  return {published && train.ssm ? 0.0 : train.clip_grad_norm,
          train.complex_gradient == ComplexGradient::published};
}

Optimiser::Optimiser(ParameterList& list, std::vector<ParameterGroup> groups, const OptimiserOptions& options)
    : list_(list), groups_(std::move(groups)), options_(options), tensors_(list.parameters().size()) {
  if (tensors_.empty()) fail("Optimiser: the model has no parameters");
  std::vector<int> seen(tensors_.size(), 0);
  for (size_t g = 0; g < groups_.size(); ++g) {
    const ParameterGroup& group = groups_[g];
    const bool accumulates = group.update_every > 1;
    constants_.push_back({group.beta1, group.beta2, group.epsilon, group.weight_decay, accumulates});
    for (int index : group.members) {
      const Parameter& p = list_.parameters()[static_cast<size_t>(index)];
      const auto zeros = [&] { return Tensor::zeros(p.value.shape(), p.value.dtype(), p.value.device()); };
      tensors_[static_cast<size_t>(index)] = {
          p.value, accumulates ? zeros() : p.gradient, zeros(), zeros(), static_cast<int>(g), p.is_complex};
      ++seen[static_cast<size_t>(index)];
    }
  }
  for (size_t i = 0; i < seen.size(); ++i)
    if (seen[i] != 1)
      fail(fmt::format("Optimiser: groups: parameter '{}' must be in one group, found in {}",
                       list_.parameters()[i].name, seen[i]));
  rates_ = Tensor::zeros({static_cast<int64_t>(groups_.size()), 4}, DType::f64, list.device());
  norm_ = Tensor::zeros({1}, DType::f64, list.device());
}

std::vector<double> Optimiser::row(int64_t step, const std::vector<double>& rates) const {
  if (rates.size() != groups_.size())
    fail(fmt::format("Optimiser: rates: {} expected, one per group, found {}", groups_.size(), rates.size()));
  std::vector<double> numbers;
  for (size_t g = 0; g < groups_.size(); ++g) {
    const ParameterGroup& group = groups_[g];
    const auto t = static_cast<double>(step / group.update_every);
    // 1 − βᵗ by expm1: for β close to 1 and small t the difference would cancel.
    const auto correction = [t](double beta) { return beta > 0 ? -std::expm1(t * std::log(beta)) : 1.0; };
    const bool active = step % group.update_every == 0;
    numbers.insert(numbers.end(),
                   {rates[g], correction(group.beta1), correction(group.beta2), active ? 1.0 : 0.0});
  }
  return numbers;
}

void Optimiser::update(Context& ctx) {
  std::vector<Tensor> gradients;
  for (const kernels::AdamTensors& t : tensors_) {
    if (constants_[static_cast<size_t>(t.group)].accumulates) {
      Tensor sum = t.gradient;
      kernels::accumulate(ctx, list_.parameters()[gradients.size()].gradient, sum);
    }
    gradients.push_back(t.gradient);
  }
  kernels::global_norm(ctx, gradients, norm_);
  kernels::adamw(ctx, tensors_, constants_, rates_, norm_, options_.clip_norm, options_.published_complex);
}

void Optimiser::step(Context& ctx, const std::vector<double>& rates) {
  const std::vector<double> numbers = row(++steps_, rates);
  if (!ctx.dry()) rates_.assign(numbers);
  update(ctx);
}

bool Optimiser::skipped() const { return steps_ > 0 && !std::isfinite(norm()); }

std::vector<std::pair<std::string, Tensor>> Optimiser::state() const {
  std::vector<std::pair<std::string, Tensor>> all;
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const std::string& name = list_.parameters()[i].name;
    all.emplace_back("optimiser.m/" + name, tensors_[i].m);
    all.emplace_back("optimiser.v/" + name, tensors_[i].v);
    if (constants_[static_cast<size_t>(tensors_[i].group)].accumulates)
      all.emplace_back("optimiser.sum/" + name, tensors_[i].gradient);
  }
  return all;
}

}  // namespace eigentrace
