#include "tools/failure.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "tensor/error.h"
#include "tensor/io/npy.h"
#include "tools/commands.h"
#include "tools/progress.h"
#include "tools/trainer.h"

namespace eigentrace {
namespace {

/// The numbers beside a batch's arrays, once: for writing and for reading.
template <class Visitor, class Failed>
void visit_numbers(Visitor&& visit, Failed& failed) {
  visit("examples", failed.batch.examples);
  visit("valid_time", failed.batch.valid_time);
  visit("label_count", failed.batch.label_count);
  visit("epoch", failed.batch.epoch);
  visit("epoch_step", failed.batch.step);
  visit("step", failed.step);
  visit("seed", failed.seed);
}

struct Arrays {
  const std::string& path;
  std::map<std::string, HostArray> all;

  const HostArray& get(const char* name, size_t rank) const {
    const auto found = all.find(name);
    if (found == all.end()) fail(fmt::format("{}: expected an array '{}', found none", path, name));
    if (found->second.shape.size() != rank)
      fail(fmt::format("{}: {}: expected {} axes, found {}", path, name, rank,
                       shape_text(found->second.shape)));
    return found->second;
  }
  template <class T>
  std::vector<T> values(const char* name, size_t rank) const {
    const std::span<const T> found = get(name, rank).as<T>();
    return {found.begin(), found.end()};
  }
};

void check_range(const std::string& path, const char* name, const std::vector<int32_t>& values, int64_t low,
                 int64_t end) {
  for (const int32_t value : values)
    if (value < low || value >= end)
      fail(fmt::format("{}: {}: expected numbers from {} to {}, found {}; the file is another task's", path,
                       name, low, end - 1, value));
}

}  // namespace

void write_failed_batch(const std::string& path, const FailedBatch& failed) {
  const Batch& b = failed.batch;
  const int64_t labels = static_cast<int64_t>(b.labels.size());
  std::vector<std::pair<std::string, HostView>> arrays;
  if (b.features > 0)
    arrays.emplace_back("values", HostView({b.batch, b.time, b.features}, b.values));
  else
    arrays.emplace_back("tokens", HostView({b.batch, b.time}, b.tokens));
  arrays.emplace_back("lengths", HostView({b.batch}, b.lengths));
  arrays.emplace_back("label_rows", HostView({labels}, b.label_rows));
  arrays.emplace_back("labels", HostView({labels}, b.labels));
  arrays.emplace_back("label_weights", HostView({labels}, b.label_weights));
  std::vector<std::pair<std::string, int64_t>> numbers;
  visit_numbers(
      [&](const char* name, auto value) { numbers.emplace_back(name, static_cast<int64_t>(value)); }, failed);
  for (const auto& [name, value] : numbers) arrays.emplace_back(name, HostView(DType::i64, {}, &value));
  write_npz(path, arrays);
}

FailedBatch read_failed_batch(const std::string& path, const TaskShape& shape) {
  const Arrays arrays{path, read_npz(path)};
  FailedBatch failed;
  Batch& b = failed.batch;
  visit_numbers(
      [&](const char* name, auto& value) {
        value = static_cast<std::remove_reference_t<decltype(value)>>(arrays.get(name, 0).as<int64_t>()[0]);
      },
      failed);
  const bool floats = shape.encoding() == Encoding::floats;
  const HostArray& input = floats ? arrays.get("values", 3) : arrays.get("tokens", 2);
  b.batch = input.shape[0], b.time = input.shape[1], b.features = floats ? input.shape[2] : 0;
  b.per_position = shape.per_position;
  const int64_t rows = b.per_position ? b.batch * b.time : b.batch;
  if (b.batch < 1 || b.time < 1 || b.time > shape.time || b.features != shape.features || b.valid_time < 1 ||
      b.valid_time > b.time)
    fail(fmt::format("{}: expected sequences of at most {} positions of {} numbers, found {}", path,
                     shape.time, shape.features, shape_text(input.shape)));
  if (floats)
    b.values = arrays.values<float>("values", 3);
  else
    b.tokens = arrays.values<int32_t>("tokens", 2);
  check_range(path, "tokens", b.tokens, 0, shape.vocabulary);
  b.lengths = arrays.values<int32_t>("lengths", 1);
  check_range(path, "lengths", b.lengths, 1, b.time + 1);
  b.label_rows = arrays.values<int32_t>("label_rows", 1);
  check_range(path, "label_rows", b.label_rows, 0, rows);
  b.labels = arrays.values<int32_t>("labels", 1);
  check_range(path, "labels", b.labels, 0, shape.classes);
  b.label_weights = arrays.values<float>("label_weights", 1);
  const size_t count = b.labels.size();
  if (b.lengths.size() != static_cast<size_t>(b.batch) || b.label_rows.size() != count || count == 0 ||
      b.label_weights.size() != count || b.label_count < 0 || b.label_count > static_cast<int64_t>(count))
    fail(fmt::format("{}: expected arrays of one batch, found lengths that do not go together", path));
  sort_tokens(b, shape.vocabulary);
  return failed;
}

bool all_finite(const Tensor& tensor) {
  return std::ranges::all_of(tensor.to_vector<double>(), [](double x) { return std::isfinite(x); });
}

std::string first_not_finite(const ParameterList& list, bool gradients) {
  const auto look = [](const char* what, const std::string& name, const Tensor& tensor) -> std::string {
    const std::vector<double> values = tensor.to_vector<double>();
    const auto bad = [](double x) { return !std::isfinite(x); };
    const auto first = std::ranges::find_if(values, bad);
    if (first == values.end()) return "";
    return fmt::format("{} '{}' is not finite ({} of {} values, the first {})", what, name,
                       std::ranges::count_if(values, bad), values.size(), *first);
  };
  std::string found;
  for (const Parameter& p : list.parameters())
    if (found.empty())
      found = look(gradients ? "gradient of" : "weight", p.name, gradients ? p.gradient : p.value);
  if (!gradients)
    for (const Buffer& b : list.buffers())
      if (found.empty()) found = look("running statistics", b.name, b.value);
  return found;
}

double gradient_norm(const ParameterList& list) {
  double sum = 0;
  for (const Parameter& p : list.parameters())
    for (const double x : p.gradient.to_vector<double>()) sum += x * x;
  return std::sqrt(sum);
}

int failure_command(const FailureOptions& options) {
  const RunFolder folder = RunFolder::open(options.run);
  if (!std::filesystem::exists(folder.failed_state()))
    fail(fmt::format("{}: no failed step is kept here ({} is missing)", options.run, folder.failed_state()));
  const RunInfo info = folder.read_info();
  TrainerOptions how;
  how.device = parse_device(options.device);
  how.dtype = info.dtype == "f64" ? DType::f64 : DType::f32;
  fmt::print("{}: {}\n", bold(options.run), info.reason);
  const std::unique_ptr<Trainer> trainer = Trainer::failed(folder, how);
  ParameterList& list = trainer->model().parameters();
  if (const std::string wrong = first_not_finite(list, false); !wrong.empty())
    fmt::print("before the step  {}\n", wrong);

  if (std::filesystem::exists(folder.failed_batch())) {
    const FailedBatch failed = read_failed_batch(folder.failed_batch(), trainer->task().shape(Split::train));
    fmt::print("batch            step {}: {} sequences of {} positions, {} labels\n", failed.step,
               failed.batch.batch, failed.batch.time, failed.batch.label_count);
    const auto show = [&](const char* type, const StepLook& look) {
      if (look.not_finite.empty())
        fmt::print("in {}           every value is finite: loss {:.6g}, gradient norm {:.6g}\n", type,
                   look.loss, look.gradient_norm);
      else
        fmt::print("in {}           {}\n", type, look.not_finite);
    };
    show(info.dtype.c_str(), trainer->look_at(failed.batch));
    if (how.dtype == DType::f32) {
      how.dtype = DType::f64;
      show("f64", Trainer::failed(folder, how)->look_at(failed.batch));
    }
  }
  std::vector<std::pair<double, std::string>> largest;
  for (const Parameter& p : list.parameters()) {
    double most = 0;
    for (const double x : p.value.to_vector<double>()) most = std::isnan(x) ? x : std::max(most, std::abs(x));
    largest.emplace_back(std::isnan(most) ? HUGE_VAL : most, p.name);
  }
  std::ranges::sort(largest, std::greater<>());
  fmt::print("largest weights\n");
  for (size_t i = 0; i < std::min<size_t>(largest.size(), 8); ++i)
    fmt::print("  {:<12.4g} {}\n", largest[i].first, largest[i].second);
  return 0;
}

}  // namespace eigentrace
