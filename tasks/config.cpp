#include "tasks/config.h"

#include <fmt/format.h>

#include <optional>
#include <utility>

#include "tensor/error.h"

namespace eigentrace {

namespace {

template <class F>
void for_each_config(F&& f) {
  [&]<size_t... i>(std::index_sequence<i...>) { (f(std::variant_alternative_t<i, TaskConfig>{}), ...); }
  (std::make_index_sequence<std::variant_size_v<TaskConfig>>{});
}

}  // namespace

std::unique_ptr<Task> make_task(const TaskConfig& config) {
  return std::visit([](const auto& c) { return make_task(c); }, config);
}

std::vector<std::string> task_names() {
  std::vector<std::string> names;
  for_each_config([&](const auto& c) { names.push_back(c.kName); });
  return names;
}

TaskConfig task_config(const std::string& name) {
  std::optional<TaskConfig> found;
  for_each_config([&](const auto& c) {
    if (name == c.kName) found = c;
  });
  if (!found)
    fail_usage(fmt::format("task '{}' is not known; the tasks are {}", name, fmt::join(task_names(), ", ")));
  return *found;
}

std::string task_name(const TaskConfig& config) {
  return std::visit([](const auto& c) { return std::string(c.kName); }, config);
}

std::string task_about(const TaskConfig& config) {
  return std::visit([](const auto& c) { return std::string(c.kAbout); }, config);
}

}  // namespace eigentrace
