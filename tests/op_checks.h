#pragma once
// What every op must pass, in one call: gradients, the same bits for any number of threads, no poison in any
// result, a dry run that asks for the same memory, float32 close to float64.
#include <doctest/doctest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "autograd/gradcheck.h"
#include "tensor/rng.h"
#include "tensor/worse.h"

namespace eigentrace::testing {

inline Tensor random_tensor(const Shape& shape, uint64_t seed, double scale = 1, double mean = 0) {
  Rng rng(seed, 77);
  std::vector<double> values(static_cast<size_t>(shape.numel()));
  for (double& v : values) v = mean + scale * rng.normal();
  return Tensor::from(values, shape);
}

inline Tensor uniform_tensor(const Shape& shape, uint64_t seed, double low, double high) {
  Rng rng(seed, 78);
  std::vector<double> values(static_cast<size_t>(shape.numel()));
  for (double& v : values) v = rng.uniform(low, high);
  return Tensor::from(values, shape);
}

/// Outputs, then gradients of all inputs for fixed cotangents.
inline std::vector<std::vector<double>> run_op(Context& ctx, const TestedFunction& f,
                                               const std::vector<Tensor>& inputs, DType dtype) {
  std::vector<std::vector<double>> results;
  Tape tape(ctx);
  std::vector<Var> leaves;
  for (const Tensor& input : inputs) leaves.push_back(tape.leaf(input.clone({}, dtype)));
  const std::vector<Var> outputs = f(tape, leaves);
  std::vector<Tensor> cotangents;
  for (const Var& y : outputs) {
    if (!ctx.dry()) results.push_back(y.value().to_vector<double>());
    cotangents.push_back(random_tensor(y.shape(), 5).clone({}, dtype));
  }
  tape.backward(outputs, cotangents);
  for (const Var& leaf : leaves)
    if (!ctx.dry()) results.push_back(tape.gradient_of(leaf).to_vector<double>());
  return results;
}

/// Largest |a − b| of any pair, relative to the largest |b| of its vector; NaN where one is.
inline double relative_difference(const std::vector<std::vector<double>>& a,
                                  const std::vector<std::vector<double>>& b) {
  double worst = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    double largest = 1e-6, difference = 0;
    for (size_t k = 0; k < b[i].size(); ++k) {
      largest = std::max(largest, std::abs(b[i][k]));
      const double d = std::abs(a[i][k] - b[i][k]);
      difference = worse(difference, d);
    }
    worst = worse(worst, difference / largest);
  }
  return worst;
}

struct OpTolerance {
  double gradient = 1e-7, f32 = 2e-5;
};

inline void check_op(const TestedFunction& f, const std::vector<Tensor>& inputs,
                     const std::vector<std::string>& names, const OpTolerance& tolerance = {}) {
  Context ctx;
  ctx.poison = true;
  const GradcheckReport report = gradcheck(ctx, f, inputs, names, {.max_elements = 24});
  for (const GradcheckEntry& entry : report.worst) {
    CAPTURE(entry.input);
    CAPTURE(entry.element);
    CAPTURE(entry.analytic);
    CAPTURE(entry.numeric);
    CHECK(entry.error < tolerance.gradient);
  }
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const auto one64 = run_op(ctx, f, inputs, DType::f64), one32 = run_op(ctx, f, inputs, DType::f32);
  omp_set_num_threads(2);
  CHECK(run_op(ctx, f, inputs, DType::f64) == one64);
  CHECK(run_op(ctx, f, inputs, DType::f32) == one32);
  omp_set_num_threads(threads);
  CHECK(relative_difference(one32, one64) < tolerance.f32);
  ctx.slab().reset_peak();
  run_op(ctx, f, inputs, DType::f32);
  Context dry = Context::dry_run({});
  run_op(dry, f, inputs, DType::f32);
  CHECK(dry.slab().peak() == ctx.slab().peak());
  CHECK(ctx.slab().in_use() == 0);
}

}  // namespace eigentrace::testing
