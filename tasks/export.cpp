// Examples as files for other programs.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "tasks/catalogue.h"
#include "tasks/files.h"
#include "tasks/images.h"
#include "tensor/error.h"
#include "tensor/io/npy.h"

namespace eigentrace {

namespace {

int64_t count_of(const Task& task, Split split, int64_t limit) {
  const int64_t size = task.size(split);
  return limit > 0 ? std::min(limit, size) : size;
}

void export_npy(const Task& task, Split split, int64_t n, const std::filesystem::path& out,
                std::vector<std::string>& files) {
  const TaskShape shape = task.shape(split);
  const int64_t rows = n * shape.documents, t = shape.time;
  std::vector<int32_t> tokens, lengths(rows), labels(shape.per_position ? rows * t : n, -100);
  std::vector<float> values;
  if (shape.features > 0) {
    values.resize(rows * t * shape.features);
  } else {
    tokens.resize(rows * t);
  }
  Batch batch;
  Padding padding;
  padding.time_multiple = t;  // every batch of full length, so that the rows fit one array
  for (int64_t begin = 0; begin < n; begin += 100) {
    std::vector<int64_t> indices;
    for (int64_t i = begin; i < std::min(n, begin + 100); ++i) indices.push_back(i);
    task.make(split, indices, batch, padding);
    for (int64_t d = 0; d < shape.documents; ++d) {
      const int64_t from = d * batch.examples, to = d * n + begin;
      std::copy_n(batch.lengths.begin() + from, batch.examples, lengths.begin() + to);
      if (shape.features > 0) {
        const int64_t width = t * shape.features;
        std::copy_n(batch.values.begin() + from * width, batch.examples * width, values.begin() + to * width);
      } else {
        std::copy_n(batch.tokens.begin() + from * t, batch.examples * t, tokens.begin() + to * t);
      }
    }
    for (int64_t i = 0; i < batch.label_count; ++i)
      labels[begin * (shape.per_position ? t : 1) + batch.label_rows[i]] = batch.labels[i];
  }
  const auto write = [&](const char* what, const HostView& array) {
    files.push_back((out / fmt::format("{}_{}.npy", split_name(split), what)).string());
    write_npy(files.back(), array);
  };
  if (shape.features > 0) {
    write("values", HostView({rows, t, shape.features}, values));
  } else {
    write("tokens", HostView({rows, t}, tokens));
  }
  write("lengths", HostView({rows}, lengths));
  write("labels", shape.per_position ? HostView({rows, t}, labels) : HostView({n}, labels));
}

void export_listops(const ListOpsConfig& c, Split split, int64_t n, const std::filesystem::path& out,
                    std::vector<std::string>& files) {
  const char* names[3] = {"basic_train.tsv", "basic_val.tsv", "basic_test.tsv"};
  std::vector<ListOpsRow> rows;
  if (!c.data_dir.empty()) {
    const auto file = std::filesystem::path(c.data_dir) / names[static_cast<int>(split)];
    rows = parse_listops_tsv(read_data(file, {"listops", "", ""}), file.string());
    rows.resize(n);
  }
  for (int64_t i = static_cast<int64_t>(rows.size()); i < n; ++i) {
    rows.push_back({make_listops(c, split, i), 0});
    rows.back().target = listops_value(rows.back().codes);
  }
  files.push_back((out / names[static_cast<int>(split)]).string());
  write_file(files.back(), listops_tsv(rows));
}

// The folders hold one set; the reader splits it. Images are numbered through, splits one after another.
void export_pathfinder(const PathfinderConfig& c, const Task& task, const ExportOptions& options,
                       std::vector<std::string>& files) {
  if (!c.data_dir.empty())
    fail_usage("export: pathfinder: the images of data_dir have the published form already");
  const auto level = std::filesystem::path(options.out) / "pathfinder32" / c.level;
  std::string metadata;
  int64_t number = 0;
  for (Split split : options.splits) {
    for (int64_t i = 0; i < count_of(task, split, options.limit); ++i, ++number) {
      const PathfinderImage image = draw_pathfinder(c, split, i);
      const std::string folder = fmt::format("imgs/{}", number / 1000),
                        name = fmt::format("sample_{}.png", number % 1000);
      files.push_back((level / folder / name).string());
      write_file(files.back(), write_png(image.pixels, c.resolution, c.resolution));
      metadata += fmt::format("{} {} {} {}\n", folder, name, number, image.label);
      if (number % 1000 == 999) {
        write_file(level / "metadata" / fmt::format("{}.npy", number / 1000), metadata);
        metadata.clear();
      }
    }
  }
  if (!metadata.empty()) write_file(level / "metadata" / fmt::format("{}.npy", number / 1000), metadata);
}

}  // namespace

std::vector<std::string> export_task(const TaskConfig& config, const ExportOptions& options) {
  if (options.out.empty()) fail_usage("export: out: expected a folder, found none");
  const std::unique_ptr<Task> task = make_task(config);
  const std::filesystem::path out = options.out;
  std::vector<std::string> files;
  std::error_code problem;
  std::filesystem::create_directories(out, problem);
  if (problem) fail(fmt::format("{}: cannot be created ({})", options.out, problem.message()));
  if (options.format == "official" && std::holds_alternative<PathfinderConfig>(config)) {
    export_pathfinder(std::get<PathfinderConfig>(config), *task, options, files);
    return files;
  }
  for (Split split : options.splits) {
    const int64_t n = count_of(*task, split, options.limit);
    if (n == 0) continue;
    if (options.format == "npy") {
      export_npy(*task, split, n, out, files);
    } else if (options.format == "jsonl") {
      std::string lines;
      for (int64_t i = 0; i < n; ++i) lines += sample_task(*task, split, i, true);
      files.push_back((out / fmt::format("{}.jsonl", split_name(split))).string());
      write_file(files.back(), lines);
    } else if (options.format == "official" && std::holds_alternative<ListOpsConfig>(config)) {
      export_listops(std::get<ListOpsConfig>(config), split, n, out, files);
    } else if (options.format == "official") {
      fail_usage(fmt::format(
          "export: format: {} is not written in an official form (listops and pathfinder are); use "
          "npy or jsonl",
          task->name()));
    } else {
      fail_usage(fmt::format("export: format: expected npy, jsonl or official, found '{}'", options.format));
    }
  }
  return files;
}

}  // namespace eigentrace
