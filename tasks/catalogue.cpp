#include "tasks/catalogue.h"

#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <optional>
#include <type_traits>
#include <unordered_map>

#include "tasks/sampling.h"
#include "tasks/token_cache.h"
#include "tensor/error.h"
#include "tensor/io/json_writer.h"

namespace eigentrace {

namespace {

constexpr Split kSplits[] = {Split::train, Split::validation, Split::test};

struct Key {
  std::string name, value, about, idle;  // idle: why it has no effect, if it has none
};

template <class T>
std::string text_of(const T& value) {
  if constexpr (std::is_same_v<T, std::optional<std::string>>) {
    return value.value_or("null");
  } else if constexpr (std::is_same_v<T, std::string>) {
    return value.empty() ? "null" : value;
  } else {
    return fmt::format("{}", value);
  }
}

std::vector<Key> keys_of(TaskConfig config) {
  std::vector<Key> keys;
  const auto visitor = [&](const char* name, auto& value, const char* about, bool applies = true,
                           const char* why = "") {
    keys.push_back({name, text_of(value), about, applies ? "" : why});
  };
  std::visit([&](auto& c) { visit_fields(visitor, c); }, config);
  return keys;
}

double processor_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

Batch one_example(const Task& task, Split split, int64_t index) {
  Batch batch;
  task.make(split, std::span(&index, 1), batch);
  return batch;
}

}  // namespace

std::vector<TaskEntry> list_tasks() {
  std::vector<TaskEntry> entries;
  for (const std::string& name : task_names()) {
    const TaskConfig config = task_config(name);
    const std::vector<Key> keys = keys_of(config);
    const bool reads =
        std::ranges::any_of(keys, [](const Key& k) { return k.name == "data_dir" && k.value != "null"; });
    entries.push_back({name, task_about(config), reads});
  }
  return entries;
}

std::string describe_task(const TaskConfig& config, const Task* task, bool json) {
  const std::vector<Key> keys = keys_of(config);
  const TaskShape shape = task != nullptr ? task->shape(Split::train) : TaskShape{};
  if (json) {
    JsonWriter out(JsonWriter::Style::pretty);
    out.begin_object().field("name", task_name(config)).field("about", task_about(config));
    out.key("keys").begin_array();
    for (const Key& k : keys) {
      out.begin_object().field("name", k.name).field("value", k.value).field("about", k.about);
      if (!k.idle.empty()) out.field("no_effect", k.idle);
      out.end_object();
    }
    out.end_array();
    if (task != nullptr) {
      out.key("sizes").begin_object();
      for (Split split : kSplits) out.field(split_name(split), task->size(split));
      out.end_object();
      out.key("shape").begin_object();
      out.field("time", shape.time).field("features", shape.features).field("vocabulary", shape.vocabulary);
      out.field("classes", shape.classes).field("per_position", shape.per_position);
      out.field("fixed_length", shape.fixed_length).field("documents", shape.documents).end_object();
    }
    return out.end_object().text() + "\n";
  }
  std::string text = fmt::format("{}: {}\n\n", task_name(config), task_about(config));
  for (const Key& k : keys)
    text += fmt::format("  {:<24} {:<26} {}{}\n", k.name, k.value, k.about,
                        k.idle.empty() ? "" : fmt::format(" (no effect: {})", k.idle));
  if (task == nullptr) return text;
  text += fmt::format("\n  {} training, {} validation, {} test examples of {} {} positions\n",
                      task->size(Split::train), task->size(Split::validation), task->size(Split::test),
                      shape.fixed_length ? "exactly" : "at most", shape.time);
  text += shape.features > 0 ? fmt::format("  input: {} numbers a position\n", shape.features)
                             : fmt::format("  input: tokens of a vocabulary of {}\n", shape.vocabulary);
  text += fmt::format("  labels: {} classes, {}{}\n", shape.classes,
                      shape.per_position ? "at positions" : "one for the sequence",
                      shape.documents == 2 ? " pair" : "");
  return text;
}

std::string sample_task(const Task& task, Split split, int64_t index, bool json) {
  if (!json) return task.show(split, index);
  const Batch one = one_example(task, split, index);
  JsonWriter out;
  out.begin_object().field("task", task.name()).field("split", split_name(split)).field("index", index);
  const auto input = [&](int64_t b) {
    const int64_t n = one.lengths[b];
    if (one.features == 0) {
      out.values(one.row(b).subspan(0, static_cast<size_t>(n)));
      return;
    }
    out.begin_array();
    for (int64_t t = 0; t < n; ++t) {
      const float* x = one.values.data() + (b * one.time + t) * one.features;
      out.values(std::span(x, static_cast<size_t>(one.features)));
    }
    out.end_array();
  };
  out.key(one.features == 0 ? "tokens" : "values");
  if (one.batch == 1) {
    input(0);
  } else {
    out.begin_array();
    for (int64_t b = 0; b < one.batch; ++b) input(b);
    out.end_array();
  }
  if (one.per_position) {
    const auto count = static_cast<size_t>(one.label_count);
    out.key("label_positions").values(std::span(one.label_rows).subspan(0, count));
    out.key("labels").values(std::span(one.labels).subspan(0, count));
  } else {
    out.field("label", one.labels[0]);
  }
  return out.end_object().text() + "\n";
}

std::vector<Finding> check_task(const Task& task, int64_t limit) {
  std::vector<Finding> findings;
  const auto add = [&](const std::string& what, bool good, const std::string& text) {
    findings.push_back({what, text, good});
  };
  std::unordered_map<uint64_t, Split> seen;  // digest of an input → the first split it stood in
  int64_t across = 0, checked = 0;
  Batch batch, again;
  for (Split split : kSplits) {
    const int64_t size = task.size(split), n = limit > 0 ? std::min(limit, size) : size;
    const TaskShape shape = task.shape(split);
    int64_t wrong = 0, changed = 0, twice = 0;
    for (int64_t begin = 0; begin < n; begin += 100) {
      std::vector<int64_t> indices;
      for (int64_t i = begin; i < std::min(n, begin + 100); ++i) indices.push_back(i);
      try {
        task.make(split, indices, batch);
      } catch (const Error& error) {  // a label out of range, which it names
        add(fmt::format("{} labels", split_name(split)), false, error.what());
        break;
      }
      for (int32_t id : batch.tokens) wrong += id < 0 || id >= shape.vocabulary;
      for (int32_t length : batch.lengths) wrong += length < 1 || length > shape.time;
      for (float x : batch.values) wrong += !(x >= -1e6f && x <= 1e6f);
      wrong += batch.label_count == 0;
      const int64_t lone = indices.back();
      task.make(split, std::span(&lone, 1), again);  // by itself it must be what it was among others
      const int64_t b = batch.examples - 1, length = batch.lengths[b];
      changed += again.lengths[0] != length ||
                 (batch.features == 0 && !std::equal(again.tokens.begin(), again.tokens.begin() + length,
                                                     batch.tokens.begin() + b * batch.time));
      const int64_t padded = batch.batch / shape.documents;
      for (int64_t e = 0; e < batch.examples; ++e) {
        uint64_t h = 0;
        for (int64_t r = e; r < batch.batch; r += padded) {
          const auto bytes = [&](const auto& v, int64_t width) {
            return std::string_view(reinterpret_cast<const char*>(v.data() + r * batch.time * width),
                                    static_cast<size_t>(batch.lengths[r] * width) * sizeof v[0]);
          };
          h = batch.features == 0 ? digest(bytes(batch.tokens, 1), h)
                                  : digest(bytes(batch.values, batch.features), h);
        }
        const auto [found, fresh] = seen.emplace(h, split);
        if (!fresh) (found->second == split ? twice : across) += 1;
      }
    }
    checked += n;
    add(fmt::format("{} examples", split_name(split)), wrong == 0,
        fmt::format(
            "{} of {} looked at, {} tokens, lengths or values out of range, or examples without labels", n,
            size, wrong));
    add(fmt::format("{} purity", split_name(split)), changed == 0,
        fmt::format("{} examples differ when made again by themselves", changed));
    // Real data repeat themselves: that is told, not judged.
    add(fmt::format("{} repeats", split_name(split)), true,
        fmt::format("{} inputs stand in it more than once", twice));
  }
  add("split overlap", true, fmt::format("{} of {} inputs stand in two splits", across, checked));
  for (const Finding& finding : task.inspect()) findings.push_back(finding);
  return findings;
}

Throughput measure_task(const Task& task, Split split, int64_t batch_size, double seconds) {
  const int64_t examples = task.size(split), vocabulary = task.shape(split).vocabulary;
  if (examples < 1) fail_usage(fmt::format("task {} has no {} examples", task.name(), split_name(split)));
  const std::vector<int64_t> order = permutation(1, 0, examples);
  std::vector<int64_t> indices(batch_size);
  Batch batch;
  Throughput result;
  int64_t at = 0;
  // The first batch allocates and fills caches; it is not counted.
  for (double begin = 0; result.seconds < seconds;) {
    for (int64_t& index : indices) index = order[at++ % examples];
    task.make(split, indices, batch);
    sort_tokens(batch, vocabulary);
    if (begin == 0) {
      begin = processor_seconds();
      continue;
    }
    result.examples += batch_size;
    result.seconds = processor_seconds() - begin;
  }
  return result;
}

}  // namespace eigentrace
