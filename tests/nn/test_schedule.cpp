#include <doctest/doctest.h>

#include <cmath>

#include "nn/config/node.h"
#include "nn/schedule.h"
#include "tensor/io/file.h"

using namespace eigentrace;

namespace {

double number(const ConfigNode& node, const char* key) { return std::stod(node.find(key)->text); }

/// Every schedule of the reference file, in its order.
ConfigNode reference() {
  static const std::string path = std::string(EIGENTRACE_TEST_DATA) + "/nn/data/schedules.json";
  return *parse_yaml(read_file(path), path).find("schedules");
}

TrainConfig config_of(const ConfigNode& s) {
  const std::string trainer = s.find("trainer")->text;
  TrainConfig c;
  c.schedule = ScheduleKind::published;
  c.lr = number(s, "lr");
  c.ssm = trainer.starts_with("jax");
  c.batch_size = 7;
  const auto optional = [&](const char* key, std::optional<int64_t>& to) {
    if (const ConfigNode* node = s.find(key);
        node && node->text != "null" && node->kind == ConfigNode::Kind::scalar)
      to = std::stoll(node->text);
  };
  optional("total_steps", c.total_steps), optional("num_epochs", c.num_epochs);
  optional("warmup_steps", c.warmup_steps), optional("warmup", c.warmup);
  if (s.find("ssm_lr")) c.ssm_lr = number(s, "ssm_lr");
  if (s.find("lr_min")) c.lr_min = number(s, "lr_min");
  return c;
}

}  // namespace

TEST_CASE("schedule: published rates are the reference's, step by step") {
  int compared = 0;
  for (const ConfigNode& s : reference().items) {
    const ConfigNode* expected = s.find("lr_at_step");
    if (!expected) continue;
    INFO(s.find("trainer")->text);
    const int64_t examples =
        s.find("steps_per_epoch") ? 7 * static_cast<int64_t>(number(s, "steps_per_epoch")) : 0;
    const LearningRates rates(config_of(s), examples);
    const bool exact = s.find("lr_at_step_float64") != nullptr;
    // The file's torch values are double; its jax values were stored as float32.
    const double tolerance = s.find("trainer")->text.starts_with("torch") || exact ? 1e-12 : 1e-7;
    const ConfigNode& list = exact ? *s.find("lr_at_step_float64") : *expected;
    for (size_t i = 0; i < list.items.size(); ++i, ++compared) {
      INFO("step " << i);
      const double want = std::stod(list.items[i].text);
      CHECK(std::abs(rates.at(GroupKind::regular, static_cast<int64_t>(i)) - want) <= tolerance * want);
    }
    if (const ConfigNode* ssm = s.find("ssm_lr_at_step"))
      for (size_t i = 0; i < ssm->items.size(); ++i) {
        const double want = std::stod(ssm->items[i].text);
        CHECK(std::abs(rates.at(GroupKind::ssm, static_cast<int64_t>(i)) - want) <= 1e-7 * want);
      }
  }
  CHECK(compared == 300);
}

TEST_CASE("schedule: reduce-on-plateau follows the reference row by row") {
  for (const ConfigNode& s : reference().items) {
    const ConfigNode* rows = s.find("rows");
    if (!rows) continue;
    TrainConfig c;
    c.schedule = ScheduleKind::constant;
    c.ssm = true, c.lr = number(s, "lr"), c.ssm_lr = number(s, "ssm_lr"), c.lr_min = number(s, "lr_min");
    c.reduce_factor = number(s, "factor"), c.lr_patience = static_cast<int64_t>(number(s, "patience"));
    c.total_steps = 1000;
    LearningRates rates(c, 0);
    for (const ConfigNode& row : rows->items) {
      const auto cell = [&](size_t i) { return std::stod(row.items[i].text); };
      rates.evaluated(cell(0));
      CHECK(rates.at(GroupKind::regular, 5) == doctest::Approx(cell(1)).epsilon(1e-12));
      CHECK(rates.at(GroupKind::ssm, 5) == doctest::Approx(cell(2)).epsilon(1e-12));
      CHECK(static_cast<double>(rates.plateau().count) == cell(3));
      CHECK(rates.plateau().best == cell(4));
    }
  }
}

TEST_CASE("schedule: ours warms up once, then goes down a half cosine to lr_min; constant stays") {
  TrainConfig c;
  c.lr = 1, c.lr_min = 0.1, c.total_steps = 110, c.warmup_steps = 10;
  const LearningRates rates(c, 0);
  CHECK(rates.at(GroupKind::regular, 0) == doctest::Approx(0.1));
  CHECK(rates.at(GroupKind::regular, 9) == doctest::Approx(1));
  CHECK(rates.at(GroupKind::regular, 10) == doctest::Approx(1));
  CHECK(rates.at(GroupKind::regular, 60) == doctest::Approx(0.55));
  CHECK(rates.at(GroupKind::regular, 110) == doctest::Approx(0.1));
  c.schedule = ScheduleKind::constant;
  CHECK(LearningRates(c, 0).at(GroupKind::regular, 109) == 1);
  c.total_steps.reset(), c.warmup_steps.reset(), c.num_epochs = 3, c.warmup = 1, c.batch_size = 8;
  const LearningRates epochs(c, 20);  // 3 steps an epoch, the last one ragged
  CHECK(epochs.total_steps() == 9);
  CHECK(epochs.at(GroupKind::regular, 0) == doctest::Approx(1.0 / 3));
  CHECK(epochs.at(GroupKind::regular, 3) == 1);
}

TEST_CASE(
    "schedule: a published run by steps reads warmup_steps, not warmup, and the named group always anneals") {
  TrainConfig c;
  c.schedule = ScheduleKind::published, c.lr = 1e-2, c.total_steps = 100, c.warmup = 10;
  c.param_group = "offset", c.group_lr = 1e-2;
  const LearningRates rates(c, 0);
  CHECK(rates.at(GroupKind::regular, 99) == 1e-2);
  CHECK(rates.at(GroupKind::named, 0) == 1e-2);
  CHECK(rates.at(GroupKind::named, 50) == doctest::Approx((1e-2 + 5e-6) / 2));
}
