// `eigentrace gradcheck`: audit the gradients of any op or any configured model.
#include <fmt/format.h>

#include <numeric>

#include "autograd/gradcheck.h"
#include "autograd/op_cases.h"
#include "nn/config/config.h"
#include "nn/model.h"
#include "tasks/config.h"
#include "tensor/error.h"
#include "tensor/io/json_writer.h"
#include "tensor/rng.h"
#include "tools/commands.h"
#include "tools/device_batch.h"
#include "tools/progress.h"

namespace eigentrace {
namespace {

constexpr double tolerance =
    1e-5;  // central differences of float64 losses: truncation and rounding meet near 1e-8

/// L = Σ cotangent·output of a configured model on a batch of two examples, dropout off.
GradcheckReport check_model(const GradcheckOptionsCli& options) {
  RunConfig config = read_config_file(options.config).config;
  const std::unique_ptr<Task> task = make_task(config.dataset);
  fit_model(config.model, task->shape(Split::train));
  const Device device = parse_device(options.device);
  Context ctx(device);
  const std::unique_ptr<Model> model = make_model(config.model, config.seed, DType::f64, device);
  Batch batch;
  const std::vector<int64_t> indices = {0, 1};
  task->make(Split::train, indices, batch);
  sort_tokens(batch, task->shape(Split::train).vocabulary);
  DeviceBatch data(device, DType::f64);
  data.load(batch, std::holds_alternative<SsmConfig>(config.model), LossAverage::labelled);

  std::vector<Tensor> inputs;
  std::vector<std::string> names;
  std::vector<std::vector<double>> analytic;
  std::vector<double> cotangent;  // of the output, drawn once its size is known
  const auto loss = [&](bool record) {
    Tape tape(ctx, record);
    Forward forward(tape, model->parameters());
    forward.batch_statistics = true;
    const Var output = model->output(forward, data.input());
    Rng rng(options.seed);
    while (static_cast<int64_t>(cotangent.size()) < output.value().numel()) cotangent.push_back(rng.normal());
    if (record) {
      const Tensor seed = Tensor::from(cotangent, output.shape(), device);
      tape.backward(std::span(&output, 1), std::span(&seed, 1));
    }
    const std::vector<double> y = output.value().to_vector<double>();
    return std::inner_product(y.begin(), y.end(), cotangent.begin(), 0.0);
  };
  loss(true);
  for (Parameter& parameter : model->parameters().parameters()) {
    inputs.push_back(parameter.value);
    names.push_back(parameter.name);
    analytic.push_back(parameter.gradient.to_vector<double>());
  }
  GradcheckOptions check;
  check.max_elements = 4;
  check.seed = options.seed;
  const int64_t evaluations = std::accumulate(
      inputs.begin(), inputs.end(), int64_t{0},
      [&](int64_t sum, const Tensor& t) { return sum + 2 * std::min(t.numel(), check.max_elements); });
  Progress progress("gradcheck", evaluations);
  int64_t done = 0;
  return compare_gradients(
      [&] {
        const double value = loss(false);
        progress.update(++done, "");
        return value;
      },
      inputs, analytic, names, check);
}

struct Line {
  std::string name;
  GradcheckReport report;
  bool pass() const { return report.max_error() < tolerance; }
};

}  // namespace

int gradcheck_command(const GradcheckOptionsCli& options) {
  if (options.list) {
    for (int i = 0; i < op_count; ++i)
      fmt::print("{:<22} {}\n", name_of(static_cast<Op>(i)), equation_of(static_cast<Op>(i)));
    return 0;
  }
  if (options.config.empty() == options.op.empty())
    fail_usage("gradcheck: one of --config FILE and --op NAME (or --op all; --list shows them)");
  std::vector<Line> lines;
  if (!options.config.empty()) {
    lines.push_back({options.config, check_model(options)});
  } else {
    Context ctx(parse_device(options.device));
    for (const OpCase& c : op_cases()) {
      if (options.op != "all" && options.op != name_of(c.op)) continue;
      lines.push_back({c.name, check_case(ctx, c, options.seed)});
    }
    if (lines.empty()) fail_usage(fmt::format("gradcheck: no op '{}'; --list shows them", options.op));
  }
  bool all = true;
  JsonWriter json(JsonWriter::Style::pretty);
  json.begin_array();
  for (const Line& line : lines) {
    all = all && line.pass();
    if (options.json) {
      json.begin_object()
          .field("name", line.name)
          .field("max_error", line.report.max_error())
          .field("pass", line.pass());
      json.key("worst").begin_array();
    } else {
      fmt::print("{:<52} {:.2e}  {}\n", line.name, line.report.max_error(), line.pass() ? "pass" : "FAIL");
    }
    const bool listed = options.json || !options.config.empty() || !line.pass();
    for (size_t i = 0; listed && i < line.report.worst.size() && static_cast<int64_t>(i) < options.worst;
         ++i) {
      const GradcheckEntry& entry = line.report.worst[i];
      if (options.json)
        json.begin_object()
            .field("input", entry.input)
            .field("element", entry.element)
            .field("analytic", entry.analytic)
            .field("numeric", entry.numeric)
            .field("error", entry.error)
            .end_object();
      else
        fmt::print("    {:<44} [{}]  tape {:+.9e}  differences {:+.9e}  error {:.2e}\n", entry.input,
                   entry.element, entry.analytic, entry.numeric, entry.error);
    }
    if (options.json) json.end_array().end_object();
  }
  json.end_array();
  if (options.json) fmt::print("{}\n", json.text());
  return all ? 0 : 1;
}

}  // namespace eigentrace
