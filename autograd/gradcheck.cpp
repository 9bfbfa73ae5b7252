#include "autograd/gradcheck.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "tensor/error.h"
#include "tensor/rng.h"

namespace eigentrace {
namespace {

double weighted_sum(const std::vector<Var>& outputs, const std::vector<std::vector<double>>& cotangents) {
  double sum = 0;
  for (size_t i = 0; i < outputs.size(); ++i) {
    const std::vector<double> y = outputs[i].value().to_vector<double>();
    for (size_t k = 0; k < y.size(); ++k) sum += y[k] * cotangents[i][k];
  }
  return sum;
}

double evaluate(Context& ctx, const TestedFunction& f, const std::vector<Tensor>& inputs,
                const std::vector<std::vector<double>>& cotangents) {
  Tape tape(ctx, false);
  std::vector<Var> leaves;
  for (const Tensor& input : inputs) leaves.push_back(tape.constant(input));
  return weighted_sum(f(tape, leaves), cotangents);
}

}  // namespace

GradcheckReport compare_gradients(const std::function<double()>& loss, const std::vector<Tensor>& inputs,
                                  const std::vector<std::vector<double>>& analytic,
                                  const std::vector<std::string>& names, const GradcheckOptions& options) {
  Rng rng(options.seed, 1);
  GradcheckReport report;
  for (size_t n = 0; n < inputs.size(); ++n) {
    std::vector<double> values = inputs[n].to_vector<double>();
    const int64_t count = static_cast<int64_t>(values.size());
    double scale = 1e-3;  // a gradient that vanishes altogether is compared in absolute terms
    for (double g : analytic[n]) scale = std::max(scale, std::abs(g));
    GradcheckEntry worst{names[n], 0, 0, 0, -1};
    for (int64_t trial = 0; trial < std::min(count, options.max_elements); ++trial) {
      const size_t k = static_cast<size_t>(
          count <= options.max_elements ? trial : rng.below(static_cast<uint32_t>(count)));
      const double x = values[k], h = options.step * std::max(1.0, std::abs(x));
      values[k] = x + h;
      inputs[n].assign(values);
      const double above = loss();
      values[k] = x - h;
      inputs[n].assign(values);
      const double below = loss();
      values[k] = x;
      inputs[n].assign(values);
      const double numeric = (above - below) / (2 * h), error = std::abs(numeric - analytic[n][k]) / scale;
      // !(error <= …) so that a NaN is the worst there is
      if (!(error <= worst.error))
        worst = {names[n], static_cast<int64_t>(k), analytic[n][k], numeric, error};
      if (std::isnan(error)) worst.error = INFINITY;
    }
    if (count > 0) report.worst.push_back(worst);
  }
  std::sort(report.worst.begin(), report.worst.end(),
            [](const GradcheckEntry& a, const GradcheckEntry& b) { return a.error > b.error; });
  return report;
}

GradcheckReport gradcheck(Context& ctx, const TestedFunction& f, const std::vector<Tensor>& inputs,
                          const std::vector<std::string>& names, const GradcheckOptions& options) {
  Rng rng(options.seed);
  std::vector<std::vector<double>> cotangents;
  std::vector<std::vector<double>> analytic;
  {
    Tape tape(ctx);
    std::vector<Var> leaves;
    for (const Tensor& input : inputs) {
      if (input.dtype() != DType::f64) fail("gradcheck: inputs of f64 expected, found " + to_string(input));
      leaves.push_back(tape.leaf(input));
    }
    const std::vector<Var> outputs = f(tape, leaves);
    std::vector<Tensor> seeds;
    for (const Var& output : outputs) {
      std::vector<double> cotangent(static_cast<size_t>(output.value().numel()));
      for (double& c : cotangent) c = rng.normal();
      seeds.push_back(Tensor::from(cotangent, output.shape(), ctx.device()));
      cotangents.push_back(std::move(cotangent));
    }
    tape.backward(outputs, seeds);
    for (const Var& leaf : leaves) analytic.push_back(tape.gradient_of(leaf).to_vector<double>());
  }
  return compare_gradients([&] { return evaluate(ctx, f, inputs, cotangents); }, inputs, analytic, names,
                           options);
}

}  // namespace eigentrace
