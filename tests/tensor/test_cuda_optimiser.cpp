// The optimiser's CUDA bodies against the CPU's: odd sizes, blocks whole and cut, views off 16 bytes, groups,
// complex parameters, sums over steps.
#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include "tensor/error.h"
#include "tensor/kernels.h"
#include "tensor/rng.h"
#include "tests/cuda_testing.h"

using namespace eigentrace;
using namespace eigentrace::testing;

namespace {

/// The same numbers whatever the device and type; `offset`: elements by which the data miss their alignment.
Tensor numbers(Rng& rng, const Shape& shape, int64_t offset, double low, double high, Device device,
               DType dtype) {
  std::vector<double> values(static_cast<size_t>(shape.numel() + offset));
  for (double& x : values) x = rng.uniform(low, high);
  const Tensor all = Tensor::from(values, {shape.numel() + offset}).clone(device, dtype);
  return all.slice(0, offset, shape.numel()).reshape(shape);
}

struct State {
  std::vector<kernels::AdamTensors> tensors;
  std::vector<kernels::AdamGroup> groups;
  Tensor rates, norm;

  State(Device device, DType dtype) {
    Rng rng(11);
    const std::vector<Shape> shapes = {{1},     {63}, {100, 33}, {2048}, {4096, 2}, {5000},
                                       {33, 2}, {0},  {8, 256},  {31},   {7, 3, 2}, {4097}};
    for (int i = 0; i < 150; ++i) {  // more than one table of tensors holds
      const Shape shape = i < 24 ? shapes[static_cast<size_t>(i) % shapes.size()] : Shape{1 + i % 5};
      const int64_t offset = i % 4 == 3 ? 1 : 0;  // whatever the group
      const auto make = [&](double low, double high) {
        return numbers(rng, shape, offset, low, high, device, dtype);
      };
      const bool is_complex = shape.rank() > 1 && shape[-1] == 2;
      kernels::AdamTensors t{make(-1, 1), make(-2, 2), make(-0.1, 0.1), make(0, 0.1), i % 3, is_complex};
      if (is_complex) {  // one second moment for both parts
        std::vector<double> v = t.v.to_vector<double>();
        for (size_t k = 0; k < v.size(); k += 2) v[k + 1] = v[k];
        t.v.assign(v);
      }
      tensors.push_back(t);
    }
    groups = {{0.9, 0.999, 1e-8, 0.1, false}, {0.8, 0.95, 1e-6, 0, true}, {0, 0.98, 1e-9, 0.01, true}};
    rates = Tensor::from(std::vector<double>{1e-2, 0.271, 0.003, 1, 3e-3, 0.2, 0.05, 0, 1e-1, 1, 0.02, 1},
                         {3, 4}, device);
    norm = Tensor::zeros({1}, DType::f64, device);
  }
  void step(Context& ctx, double clip, bool published) {
    std::vector<Tensor> gradients;
    for (const kernels::AdamTensors& t : tensors) gradients.push_back(t.gradient);
    kernels::global_norm(ctx, gradients, norm);
    kernels::adamw(ctx, tensors, groups, rates, norm, clip, published);
    synchronise(ctx.device());
  }
  std::vector<std::vector<double>> values() const {
    std::vector<std::vector<double>> all;
    for (const kernels::AdamTensors& t : tensors)
      for (const Tensor* x : {&t.value, &t.gradient, &t.m, &t.v})
        all.push_back(x->clone({}, DType::f64).to_vector<double>());
    return all;
  }
};

double worst(const std::vector<std::vector<double>>& x, const std::vector<std::vector<double>>& y) {
  double most = 0;
  for (size_t k = 0; k < y.size(); ++k)
    for (size_t i = 0; i < y[k].size(); ++i) {
      const double d = std::abs(x[k][i] - y[k][i]) / (1 + std::abs(y[k][i]));
      most = d <= most ? most : d;
    }
  return most;
}

}  // namespace

TEST_CASE("cuda optimiser: three steps give the CPU's values") {
  if (!gpu_here()) return;
  Context cpu = poisoned({}), gpu = poisoned(parse_device("cuda"));
  for (const bool published : {false, true})
    for (const double clip : {0.0, 0.7}) {
      State exact({}, DType::f64), wide(gpu.device(), DType::f64), narrow(gpu.device(), DType::f32);
      for (int step = 0; step < 3; ++step) {
        exact.step(cpu, clip, published);
        wide.step(gpu, clip, published);
        narrow.step(gpu, clip, published);
        CHECK(wide.norm.item() == doctest::Approx(exact.norm.item()).epsilon(1e-13));
        CHECK(narrow.norm.item() == doctest::Approx(exact.norm.item()).epsilon(1e-7));
      }
      CHECK(worst(wide.values(), exact.values()) < 1e-13);
      CHECK(worst(narrow.values(), exact.values()) < 5e-6);
    }
}

TEST_CASE("cuda optimiser: two runs give the same bits") {
  if (!gpu_here()) return;
  Context gpu = poisoned(parse_device("cuda"));
  State a(gpu.device(), DType::f32), b(gpu.device(), DType::f32);
  for (int step = 0; step < 2; ++step) a.step(gpu, 1, false), b.step(gpu, 1, false);
  CHECK(a.norm.item() == b.norm.item());
  CHECK(a.values() == b.values());
}

TEST_CASE("cuda optimiser: a norm that is not finite leaves every number as it was") {
  if (!gpu_here()) return;
  Context gpu = poisoned(parse_device("cuda"));
  for (const double bad : {std::nan(""), double(INFINITY)}) {
    State s(gpu.device(), DType::f32);
    s.tensors[2].gradient.assign(std::vector<double>(3300, bad));
    auto before = s.values(), after = before;
    s.step(gpu, 1, false);
    after = s.values();
    CHECK(!std::isfinite(s.norm.item()));
    before.erase(before.begin() + 9), after.erase(after.begin() + 9);  // the bad gradient itself: NaN ≠ NaN
    CHECK(before == after);
  }
}

TEST_CASE("cuda optimiser: one float of 1e30 does not overflow the norm") {
  if (!gpu_here()) return;
  Context gpu = poisoned(parse_device("cuda"));
  const Tensor g = Tensor::from(std::vector<float>{1e30f, 0, 1e30f}, {3}, gpu.device());
  Tensor norm = Tensor::zeros({1}, DType::f64, gpu.device());
  kernels::global_norm(gpu, {g}, norm);
  CHECK(norm.item() == doctest::Approx(std::sqrt(2.0) * 1e30).epsilon(1e-6));
}
