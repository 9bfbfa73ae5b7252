#pragma once
// The study's training steps on a GPU, as the lines about them time them.
#include <memory>
#include <string>
#include <vector>

#include "nn/train_step.h"
#include "tasks/config.h"
#include "tools/bench.h"
#include "tools/device_batch.h"

namespace eigentrace {

struct StudySize {
  const char* task;
  TaskShape shape;
  std::vector<const char*> families;
};
std::vector<StudySize> study_sizes();

/// A configuration's model and step, and a random batch of its task's sizes on the device.
struct StudyStep {
  StudyStep(const std::string& experiment, const TaskShape& task, const GpuBench& how, Precision precision);
  RunConfig config;
  TaskShape shape;
  std::unique_ptr<Model> model;
  Optimiser optimiser;
  LearningRates rates;
  Context ctx;
  Batch batch;
  DeviceBatch data;
  TrainStep step;
};

}  // namespace eigentrace
