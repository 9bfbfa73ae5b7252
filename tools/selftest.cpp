// `eigentrace selftest`: every op on the user's own device against float64 on the CPU, twice for the same
// bits, and its gradients by differences.
#include <fmt/format.h>

#include <algorithm>
#include <string>

#include "autograd/op_cases.h"
#include "tensor/error.h"
#include "tensor/io/json_writer.h"
#include "tools/commands.h"
#include "tools/progress.h"

namespace eigentrace {
namespace {

struct Line {
  std::string name, error;  ///< error: what was thrown
  double f64 = 0, f32 = 0, gradient = 0;
  double rounded =
      0;  ///< on a GPU: the largest share of its bound that any other precision of products takes
  bool same_bits = false, pass = false;
};

Line test_case(Context& cpu, Context& device, const OpCase& op_case, uint64_t seed) {
  Line line;
  line.name = op_case.name;
  try {
    const OpResults exact = run_case(cpu, op_case, DType::f64, seed);
    line.f64 = largest_difference(run_case(device, op_case, DType::f64, seed), exact);
    const OpResults single = run_case(device, op_case, DType::f32, seed);
    line.same_bits = single == run_case(device, op_case, DType::f32, seed);
    if (op_case.float32_tolerance > 0) line.f32 = largest_difference(single, exact);
    if (device.device().is_cuda() && op_case.float32_tolerance > 0)
      for (const Precision precision : {Precision::tf32x3, Precision::tf32, Precision::bf16}) {
        device.precision = precision;
        const double error = largest_difference(run_case(device, op_case, DType::f32, seed), exact);
        line.rounded = std::max(line.rounded, error / op_case.bound(precision));
      }
    device.precision = Precision::fp32;
    line.gradient = check_case(device, op_case, seed).max_error();
    line.pass = line.f64 < 1e-10 && line.f32 <= op_case.float32_tolerance && line.rounded <= 1 &&
                line.same_bits && line.gradient < op_case.tolerance;
  } catch (const Error& error) {
    line.error = error.what();
  }
  return line;
}

}  // namespace

int selftest_command(const SelftestOptions& options) {
  const Device device = parse_device(options.device);
  Context cpu, ctx(device, device.is_cuda() ? size_t{1} << 30 : 0);
  cpu.poison = ctx.poison = true;  // a result that nothing wrote is not a number
  std::vector<OpCase> cases = op_cases();
  const auto wanted = [&](const OpCase& op_case) {
    return options.only.empty() || std::ranges::any_of(options.only, [&](const std::string& word) {
             return op_case.name.find(word) != std::string::npos;
           });
  };
  std::erase_if(cases, [&](const OpCase& op_case) { return !wanted(op_case); });
  if (cases.empty())
    fail_usage(
        fmt::format("selftest: no case's name contains {}; `eigentrace gradcheck --list` names the ops",
                    fmt::join(options.only, " or ")));
  std::vector<Line> lines;
  Progress progress("selftest", static_cast<int64_t>(cases.size()));
  for (const OpCase& op_case : cases) {
    progress.update(static_cast<int64_t>(lines.size()), op_case.name);
    lines.push_back(test_case(cpu, ctx, op_case, options.seed));
  }
  progress.finish();
  const auto failed = std::ranges::count_if(lines, [](const Line& line) { return !line.pass; });
  if (options.json) {
    JsonWriter json(JsonWriter::Style::pretty);
    json.begin_object().field("device", describe(device)).field("failed", static_cast<int64_t>(failed));
    json.key("cases").begin_array();
    for (const Line& line : lines)
      json.begin_object()
          .field("name", line.name)
          .field("pass", line.pass)
          .field("f64_error", line.f64)
          .field("f32_error", line.f32)
          .field("gradient_error", line.gradient)
          .field("share_of_precision_bounds", line.rounded)
          .field("same_bits", line.same_bits)
          .field("error", line.error)
          .end_object();
    json.end_array().end_object();
    fmt::print("{}\n", json.text());
  } else {
    fmt::print("{} ({})\n", to_string(device), describe(device));
    // tf32…bf16: the largest share of its bound that an error takes in any of these precisions
    fmt::print("{:<52} {:>9} {:>9} {:>10} {:>9}  {:<9}\n", "case", "f64", "f32", "tf32..bf16", "gradient",
               "bits");
    for (const Line& line : lines)
      fmt::print("{:<52} {:>9.1e} {:>9.1e} {:>9.0f}% {:>9.1e}  {:<9} {}\n", line.name, line.f64, line.f32,
                 100 * line.rounded, line.gradient, line.same_bits ? "same" : "differ",
                 line.pass ? "pass" : "FAIL " + line.error);
    fmt::print("{} case{}, {} failed\n", lines.size(), lines.size() == 1 ? "" : "s", failed);
  }
  return failed == 0 ? 0 : 1;
}

}  // namespace eigentrace
