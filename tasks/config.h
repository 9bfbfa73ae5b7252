#pragma once
// The configurations of all tasks. A new task adds its header and its place in the variant, nothing else:
// name, documentation and keys come from the struct itself (kName, kAbout, visit_fields).
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "tasks/cifar.h"
#include "tasks/imdb.h"
#include "tasks/listops.h"
#include "tasks/mad.h"
#include "tasks/mnist.h"
#include "tasks/mqar.h"
#include "tasks/pairs.h"
#include "tasks/pathfinder.h"
#include "tasks/retrieval.h"
#include "tasks/synthetic.h"
#include "tasks/task.h"
#include "tasks/wikitext.h"

namespace eigentrace {

using TaskConfig = std::variant<MqarConfig, CifarConfig, ImdbConfig, ListOpsConfig, WikiTextConfig,
                                RetrievalConfig, PathfinderConfig, MnistConfig, MadConfig, CopyConfig,
                                DelayConfig, ParityConfig, ModularConfig, InductionConfig, PairsConfig>;

/// The task a configuration describes. Errors: sizes that do not fit (usage), missing or wrong files.
std::unique_ptr<Task> make_task(const TaskConfig& config);
/// Names of all tasks (`dataset._name_`), in the order of the variant.
std::vector<std::string> task_names();
/// The default configuration of the task of that name; a usage error that lists the names for any other.
TaskConfig task_config(const std::string& name);
/// Name of a configuration's task, and one line about it.
std::string task_name(const TaskConfig& config);
std::string task_about(const TaskConfig& config);

}  // namespace eigentrace
