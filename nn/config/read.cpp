// From a parsed document to typed configurations, in both dialects.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "nn/config/config.h"
#include "nn/config/field_io.h"
#include "spectral/intervention.h"
#include "tensor/error.h"
#include "tensor/io/file.h"

namespace eigentrace {
namespace {

using Ignored = std::map<std::string, std::string>;  // key the study writes without effect → why

struct Rules {
  Dialect dialect = Dialect::ours;
  Ignored ignored;                     // study only
  std::vector<std::string> elsewhere;  // keys read by the caller
  std::vector<std::string>* notices = nullptr;
};

void note(const Rules& rules, const ConfigPlace& place, const std::string& why) {
  if (rules.notices) rules.notices->push_back(fmt::format("{} has no effect: {}", place.text(), why));
}

/// Reads the section's keys into the struct that `fields` describes.
void read_fields(const std::function<Fields()>& fields, const ConfigNode& node, const ConfigPlace& place,
                 const Rules& rules) {
  if (node.kind != ConfigNode::Kind::map && node.kind != ConfigNode::Kind::null)
    fail_usage(fmt::format("{}: expected a section of keys", place.text()));
  const Fields before = fields();
  std::vector<std::string> names = rules.elsewhere;
  for (const Field& field : before) names.push_back(field.name);
  for (const ConfigEntry& entry : node.entries) {
    const std::string& key = entry.key;
    const ConfigNode& value = entry.value;
    const ConfigPlace here = place.below(key, value);
    const auto field =
        std::find_if(before.begin(), before.end(), [&](const Field& f) { return f.name == key; });
    const auto ignored = rules.ignored.find(key);
    if (field != before.end())
      assign_field(*field, value, here);
    else if (rules.dialect == Dialect::study && ignored != rules.ignored.end())
      note(rules, here, ignored->second);
    else if (std::find(rules.elsewhere.begin(), rules.elsewhere.end(), key) == rules.elsewhere.end())
      fail_usage(fmt::format("{}: there is no such key{}", here.text(), suggestion(key, names)));
  }
  // What applies is known only now that all keys are read.
  for (const Field& field : fields())
    if (const ConfigNode* given = node.find(field.name); given && !field.applies) {
      const ConfigPlace here = place.below(field.name, *given);
      if (rules.dialect == Dialect::ours)
        fail_usage(fmt::format("{}: has no effect: {}; remove the key", here.text(), field.why));
      note(rules, here, field.why);
    }
}

const ConfigNode& section(const ConfigNode& root, const std::string& name) {
  static const ConfigNode empty;
  const ConfigNode* found = root.find(name);
  return found ? *found : empty;
}

// --- model ------------------------------------------------------------------------------------------------

const char* const never = "the published code never reads it";

Ignored ignored_by(const TransformerConfig&) {
  return {{"learn_A", never},
          {"mode", never},
          {"mlp_dim", never},
          {"cosine_anneal", never},
          {"use_flash", "it chose a half precision kernel; here attention runs in the type of the run"}};
}
Ignored ignored_by(const MambaConfig&) {
  Ignored keys;
  for (const char* key : {"embedding", "max_pos_embed", "mixer", "mixer_dim", "classifier", "cosine_anneal"})
    keys[key] = never;
  return keys;
}
Ignored ignored_by(const SsmConfig&) {
  return {{"decode", never}, {"dual", never}, {"param_group", never}, {"cosine_anneal", never}};
}
Ignored ignored_by(const MadModelConfig&) { return {}; }

ModelConfig read_model(const ConfigNode& node, const ConfigPlace& place, Rules rules) {
  const ConfigNode* layer = node.find("layer");
  const std::vector<std::string> layers = {"transformer", "mamba", "s4", "s5", "lru", "mad"};
  const std::string choices = fmt::format("expected one of {}", fmt::join(layers, ", "));
  if (!layer) fail_usage(fmt::format("{}.layer: is missing; {}", place.text(), choices));
  const std::string& name = layer->text;
  ModelConfig config;
  if (name == "transformer")
    config = TransformerConfig{};
  else if (name == "mamba")
    config = MambaConfig{};
  else if (name == "s4" || name == "s5" || name == "lru")
    config = SsmConfig(name == "s4" ? SsmKind::s4 : name == "s5" ? SsmKind::s5 : SsmKind::lru);
  else if (name == "mad")
    config = MadModelConfig{};
  else
    fail_usage(fmt::format("{}: {}, found '{}'", place.below("layer", *layer).text(), choices, name));
  rules.elsewhere = {"layer"};
  std::visit(
      [&](auto& c) {
        rules.ignored = ignored_by(c);
        read_fields([&] { return fields_of(c); }, node, place, rules);
      },
      config);
  return config;
}

// --- dataset ----------------------------------------------------------------------------------------------

TaskConfig read_dataset(const ConfigNode& node, const ConfigPlace& place, Rules rules) {
  const ConfigNode* name = node.find("_name_");
  if (!name)
    fail_usage(fmt::format("{}._name_: is missing; expected one of {}", place.text(),
                           fmt::join(task_names(), ", ")));
  TaskConfig config = task_config(name->text);
  rules.elsewhere = {"_name_"};
  for (const char* key : {"name", "data_dir", "fixed_size", "input_seq_length", "num_kv_pairs", "grayscale",
                          "tokenize", "version", "block_size", "cache_dir", "num_workers", "vocab_size"})
    rules.ignored[key] = "this data set has no such choice";
  std::visit(
      [&](auto& c) {
        if (rules.dialect == Dialect::study)
          for (const Field& field : fields_of(c))
            if (field.name == "published_split") *std::get<bool*>(field.place) = true;
        read_fields([&] { return fields_of(c); }, node, place, rules);
      },
      config);
  return config;
}

// --- train ------------------------------------------------------------------------------------------------

void check_train(const TrainConfig& c, const std::string& origin) {
  const auto need = [&](bool good, const std::string& what) {
    if (!good) fail_usage(fmt::format("{}: train.{}", origin, what));
  };
  need(c.total_steps || c.num_epochs, "total_steps: is missing (or num_epochs)");
  need(c.total_steps.value_or(1) >= 1 && c.num_epochs.value_or(1) >= 1,
       "total_steps, num_epochs: expected at least 1");
  need(c.batch_size >= 1, fmt::format("batch_size: expected at least 1, found {}", c.batch_size));
  need(c.eval_batch_size >= 0, "eval_batch_size: expected 0 (batch_size) or more");
  need(c.lr > 0, fmt::format("lr: expected a positive number, found {}", c.lr));
  need(c.wd >= 0, fmt::format("wd: expected 0 or more, found {}", c.wd));
  need(c.betas.size() == 2 && std::ranges::all_of(c.betas, [](double b) { return b >= 0 && b < 1; }),
       "betas: expected two numbers from 0 to below 1, e.g. [0.9, 0.999]");
  need(c.clip_grad_norm >= 0, "clip_grad_norm: expected 0 (off) or more");
  need(c.warmup_steps.value_or(0) >= 0 && c.warmup.value_or(0) >= 0,
       "warmup_steps, warmup: expected 0 or more");
  if (c.steps())
    need(c.warmup_steps.value_or(0) < *c.total_steps,
         fmt::format("warmup_steps: expected less than total_steps {}, found {}", *c.total_steps,
                     c.warmup_steps.value_or(0)));
  else
    need(c.warmup.value_or(0) < *c.num_epochs,
         fmt::format("warmup: expected less than num_epochs {}, found {}", *c.num_epochs,
                     c.warmup.value_or(0)));
  need(c.lr_min >= 0, "lr_min: expected 0 or more");
  need(c.reduce_factor > 0 && c.reduce_factor <= 1, "reduce_factor: expected more than 0 and at most 1");
  need(c.lr_patience >= 0, "lr_patience: expected 0 (never) or more");
  need(!c.ssm_lr || *c.ssm_lr > 0, "ssm_lr: expected a positive number");
  need(!c.param_group || (c.group_lr && *c.group_lr > 0),
       "group_lr: expected a positive rate for param_group");
  need(c.update_step >= 1, "update_step: expected at least 1");
  need(c.eval_every >= 1 && c.log_every >= 1, "eval_every, log_every: expected at least 1");
  need(c.eval_examples >= 0, "eval_examples: expected 0 (the whole split) or more");
  need(c.checkpoint_every >= 0, "checkpoint_every: expected 0 (at the end only) or more");
}

TrainConfig train_defaults(Dialect dialect, const ModelConfig& model) {
  TrainConfig c;
  const SsmConfig* ssm = std::get_if<SsmConfig>(&model);
  c.ssm = ssm != nullptr;
  const MadModelConfig* mad = std::get_if<MadModelConfig>(&model);
  c.s4 = (ssm && ssm->layer == SsmKind::s4) || (mad && mad->mixer == MadMixer::s4);
  if (dialect == Dialect::study) {
    c.schedule = ScheduleKind::published;
    c.complex_gradient = ComplexGradient::published;
    c.loss_mean = c.ssm ? LossMean::all_positions : LossMean::labelled;
    c.eval_split = EvalSplit::test;
    c.reduce_factor = c.ssm ? 0.5 : 1.0;
  }
  return c;
}

/// root.a.b = value, from "a.b=value".
void override_key(ConfigNode& root, const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0)
    fail_usage(fmt::format("--set: expected section.key=value, found '{}'", text));
  const ConfigNode value = parse_yaml(text.substr(equals + 1), "--set " + text);
  ConfigNode* at = &root;
  for (size_t begin = 0; begin <= equals;) {
    const size_t end = std::min(text.find('.', begin), equals);
    const std::string key = text.substr(begin, end - begin);
    if (at->kind == ConfigNode::Kind::null) at->kind = ConfigNode::Kind::map;
    if (at->kind != ConfigNode::Kind::map)
      fail_usage(fmt::format("--set {}: '{}' is below a value, not below a section", text, key));
    auto found = std::find_if(at->entries.begin(), at->entries.end(), [&](auto& e) { return e.key == key; });
    if (found == at->entries.end()) found = at->entries.insert(at->entries.end(), {key, ConfigNode{}});
    at = &found->value;
    begin = end + 1;
    if (end == equals) break;
  }
  *at = value;
  at->line = 0;
}

}  // namespace

TaskConfig read_task_config(const std::string& name, const std::vector<std::string>& overrides) {
  ConfigNode root, dataset, word;
  root.kind = dataset.kind = ConfigNode::Kind::map;
  word.kind = ConfigNode::Kind::scalar;
  word.text = name;
  dataset.entries.push_back({"_name_", word});
  root.entries.push_back({"dataset", dataset});
  for (const std::string& text : overrides) override_key(root, "dataset." + text);
  return read_dataset(*root.find("dataset"), {"", "dataset", 0}, {Dialect::ours, {}, {}, nullptr});
}

ModelConfig read_model_config(const std::string& text, std::vector<std::string>* notices) {
  const ConfigNode node = parse_yaml(text, "model");
  ModelConfig config = read_model(node, {"", "model", 0}, {Dialect::study, {}, {}, notices});
  check(config);
  return config;
}

LoadedConfig read_config(const std::string& text, const std::string& origin,
                         const std::vector<std::string>& overrides) {
  ConfigNode root = parse_yaml(text, origin);
  for (const std::string& text_of_override : overrides) override_key(root, text_of_override);
  LoadedConfig out;
  RunConfig& run = out.config;
  const ConfigPlace top{origin, "", 0};
  Rules rules{Dialect::study, {}, {}, &out.notices};
  if (const ConfigNode* format = root.find("format")) {
    if (format->text != config_format)
      fail_usage(fmt::format("{}: expected {}, found '{}'; this program reads no other",
                             top.below("format", *format).text(), config_format, format->text));
    rules.dialect = Dialect::ours;
  }
  run.dialect = rules.dialect;

  struct Top {
    uint64_t* seed;
    bool* save;
  } keys{&run.seed, &run.save};
  Rules top_rules = rules;
  top_rules.elsewhere = {"format", "dataset", "train", "model", "spectral"};
  top_rules.ignored = {{"optimization", "its only key, jax_seed, is not read"},
                       {"wandb", "metrics go to the run's folder"}};
  read_fields(
      [&] {
        return Fields{{"seed", keys.seed, "of weights, order and masks", true, ""},
                      {"save", keys.save, "keep the trained weights", true, ""}};
      },
      root, top, top_rules);

  const auto place = [&](const char* name) { return top.below(name, section(root, name)); };
  for (const char* name : {"dataset", "model", "train"})
    if (!root.find(name)) fail_usage(fmt::format("{}: section '{}' is missing", origin, name));
  run.model = read_model(section(root, "model"), place("model"), rules);
  run.dataset = read_dataset(section(root, "dataset"), place("dataset"), rules);
  run.train = train_defaults(rules.dialect, run.model);
  read_fields([&] { return fields_of(run.train); }, section(root, "train"), place("train"), rules);
  read_fields([&] { return fields_of(run.spectral); }, section(root, "spectral"), place("spectral"), rules);
  check(run.model);
  check_train(run.train, origin);
  if (run.spectral.batch < 1 || run.spectral.every < 0 || run.spectral.channels < 0)
    fail_usage(fmt::format("{}: spectral: batch: at least 1; every, channels: 0 or more", origin));
  for (const std::string& text : run.spectral.intervention) parse_interventions(text);
  for (std::string& sentence : explain(run)) out.notices.push_back(std::move(sentence));
  return out;
}

LoadedConfig read_config_file(const std::string& path, const std::vector<std::string>& overrides) {
  return read_config(read_file(path, uint64_t(1) << 20), path, overrides);
}

}  // namespace eigentrace
