#include <doctest/doctest.h>
#include <omp.h>

#include <cmath>

#include "nn/optimiser.h"
#include "tensor/error.h"
#include "tensor/worse.h"

using namespace eigentrace;

namespace {

void set_gradient(Parameter& p, const std::vector<double>& g) { p.gradient.assign(g); }
std::vector<double> values_of(const Parameter& p) { return p.value.to_vector<double>(); }

ParameterGroup all_of(const ParameterList& list, double decay) {
  ParameterGroup group;
  group.weight_decay = decay;
  for (const Parameter& p : list.parameters()) group.members.push_back(p.index);
  return group;
}

}  // namespace

TEST_CASE("optimiser: three steps are AdamW's, written out") {
  Context ctx;
  ParameterList list(1, DType::f64, {});
  Parameter& p = *list.add("p", {2}, init_values({1, -2}));
  Optimiser optimiser(list, {all_of(list, 0.1)}, {0, false});
  const std::vector<std::vector<double>> gradients = {{0.5, 1e-3}, {-0.25, 2e-3}, {4, 0}};
  std::vector<double> x = {1, -2}, m = {0, 0}, v = {0, 0};
  for (int t = 1; t <= 3; ++t) {
    set_gradient(p, gradients[static_cast<size_t>(t - 1)]);
    optimiser.step(ctx, {0.01 * t});
    for (size_t i = 0; i < 2; ++i) {
      const double g = gradients[static_cast<size_t>(t - 1)][i];
      m[i] = 0.9 * m[i] + 0.1 * g, v[i] = 0.999 * v[i] + 0.001 * g * g;
      const double mean = m[i] / (1 - std::pow(0.9, t)), square = v[i] / (1 - std::pow(0.999, t));
      x[i] -= 0.01 * t * (0.1 * x[i] + mean / (std::sqrt(square) + 1e-8));
      CHECK(values_of(p)[i] == doctest::Approx(x[i]).epsilon(1e-12));
    }
  }
  CHECK(optimiser.norm() == doctest::Approx(4));
}

TEST_CASE("optimiser: clipping scales by clip/(norm + 1e-6) over all parameters together") {
  Context ctx;
  ParameterList list(1, DType::f64, {});
  Parameter& a = *list.add("a", {1}, init_constant(0));
  Parameter& b = *list.add("b", {1}, init_constant(0));
  Optimiser optimiser(list, {all_of(list, 0)}, {1, false});
  set_gradient(a, {3}), set_gradient(b, {4});
  optimiser.step(ctx, {1});
  CHECK(optimiser.norm() == doctest::Approx(5));
  const auto state = optimiser.state();
  CHECK(state[0].first == "optimiser.m/a");
  CHECK(state[0].second.item() == doctest::Approx(0.1 * 3 / (5 + 1e-6)).epsilon(1e-12));
  CHECK(state[3].second.item() == doctest::Approx(0.001 * 16 / ((5 + 1e-6) * (5 + 1e-6))).epsilon(1e-12));
}

TEST_CASE("optimiser: a step whose gradients are not finite changes nothing and says so") {
  Context ctx;
  for (double bad : {std::nan(""), double(INFINITY)}) {
    ParameterList list(1, DType::f32, {});
    Parameter& a = *list.add("a", {3}, init_constant(1));
    Optimiser optimiser(list, {all_of(list, 0.1)}, {1, false});
    set_gradient(a, {1, bad, 1});
    optimiser.step(ctx, {1});
    CHECK(optimiser.skipped());
    CHECK(values_of(a) == std::vector<double>{1, 1, 1});
    CHECK(optimiser.state()[1].second.to_vector<double>() == std::vector<double>{0, 0, 0});
    set_gradient(a, {1, 1, 1});
    optimiser.step(ctx, {1});
    CHECK(!optimiser.skipped());
    CHECK(values_of(a)[0] < 0.2);
  }
}

TEST_CASE(
    "optimiser: complex parameters share |g|^2, and the published gradient moves imaginary parts uphill") {
  Context ctx;
  for (bool published : {false, true}) {
    ParameterList list(1, DType::f64, {});
    Parameter& z = *list.add("z", {1, 2}, init_values({1, 1}), true);
    Optimiser optimiser(list, {all_of(list, 0)}, {0, published});
    set_gradient(z, {3, 4});
    optimiser.step(ctx, {0.1});
    CHECK(values_of(z)[0] == doctest::Approx(1 - 0.1 * 3 / 5));
    CHECK(values_of(z)[1] == doctest::Approx(1 - 0.1 * 4 / 5 * (published ? -1 : 1)));
  }
}

TEST_CASE("optimiser: a group with update_every sums its gradients, and the sums enter every step's norm") {
  Context ctx;
  ParameterList list(1, DType::f64, {});
  Parameter& a = *list.add("a", {1}, init_constant(0));
  Parameter& b = *list.add("b", {1}, init_constant(0));
  ParameterGroup one = all_of(list, 0), two = one;
  one.members = {0}, two.members = {1}, two.update_every = 2;
  Optimiser optimiser(list, {one, two}, {0, false});
  set_gradient(a, {0}), set_gradient(b, {3});
  optimiser.step(ctx, {1, 1});
  CHECK(values_of(b)[0] == 0);
  set_gradient(b, {1});
  optimiser.step(ctx, {1, 1});
  CHECK(optimiser.norm() == doctest::Approx(4));
  CHECK(values_of(b)[0] == doctest::Approx(-1));
  set_gradient(b, {1});
  optimiser.step(ctx, {1, 1});
  CHECK(optimiser.norm() == doctest::Approx(1));  // the sum began anew
}

TEST_CASE("optimiser: same bits for one and two threads, and float32 follows float64") {
  Context ctx;
  const auto run = [&](int threads, DType dtype) {
    const int before = omp_get_max_threads();
    omp_set_num_threads(threads);
    ParameterList list(7, dtype, {});
    for (int64_t size : {1, 63, 100, 40001}) list.add("p" + std::to_string(size), {size}, init_normal(1));
    Optimiser optimiser(list, {all_of(list, 0.1)}, {1, false});
    for (int step = 0; step < 3; ++step) {
      for (Parameter& p : list.parameters()) {
        Rng rng(9, static_cast<uint64_t>(p.index + 100 * step));
        std::vector<double> g(static_cast<size_t>(p.value.numel()));
        for (double& e : g) e = rng.normal();
        set_gradient(p, g);
      }
      optimiser.step(ctx, {1e-2});
    }
    omp_set_num_threads(before);
    return values_of(list.parameters().back());
  };
  const std::vector<double> one = run(1, DType::f32), two = run(2, DType::f32), exact = run(1, DType::f64);
  CHECK(one == two);
  double worst = 0;
  for (size_t i = 0; i < one.size(); ++i) worst = worse(worst, std::abs(one[i] - exact[i]));
  CHECK(worst < 1e-5);
}

TEST_CASE("optimiser: groups follow the study: names, decay, constants; an empty one is an error of ours") {
  ParameterList list(1, DType::f32, {});
  for (const char* name :
       {"encoder.layers_0.seq.Lambda_re", "encoder.layers_0.seq.B", "encoder.layers_0.seq.C"})
    list.add(name, {1}, init_constant(0));
  TrainConfig train;
  train.schedule = ScheduleKind::published;
  train.ssm_lr = 1e-3, train.wd = 0.05, train.betas = {0.9, 0.95};
  const auto s4 = make_groups(list, SsmConfig(SsmKind::s4), train, Dialect::study);
  REQUIRE(s4.size() == 2);
  CHECK(s4[0].members == std::vector<int>{2});
  CHECK(s4[0].weight_decay == 0.05);
  CHECK(s4[1].members == std::vector<int>{0, 1});
  CHECK(s4[1].weight_decay == 0);
  CHECK(s4[1].beta2 == 0.95);
  const auto s5 = make_groups(list, SsmConfig(SsmKind::s5), train, Dialect::study);
  CHECK(s5[1].members == std::vector<int>{0});
  CHECK(s5[0].beta2 == 0.999);
  train.ssm_lr.reset(), train.param_group = "offset", train.group_lr = 1;
  std::vector<std::string> notices;
  CHECK(make_groups(list, TransformerConfig{}, train, Dialect::study, &notices).size() == 1);
  CHECK(notices.size() == 1);
  CHECK(make_groups(list, TransformerConfig{}, train, Dialect::ours).size() ==
        1);  // the resolved form goes on
  train.schedule = ScheduleKind::cosine;
  CHECK_THROWS_WITH_AS(make_groups(list, TransformerConfig{}, train, Dialect::ours),
                       doctest::Contains("selects no parameter"), UsageError);
  CHECK_THROWS_WITH_AS(Optimiser(list, {s5[1]}, {}), doctest::Contains("must be in one group"), Error);
}

TEST_CASE("module: initial values depend on seed and name alone, and keep their laws") {
  ParameterList a(5, DType::f64, {}), b(5, DType::f64, {}), c(6, DType::f64, {});
  a.add("x", {100}, init_uniform(2)), a.add("y", {63}, init_normal(1));
  b.add("y", {63}, init_normal(1)), b.add("x", {100}, init_uniform(2));
  c.add("x", {100}, init_uniform(2));
  CHECK(values_of(*a.find("x")) == values_of(*b.find("x")));
  CHECK(values_of(*a.find("y")) == values_of(*b.find("y")));
  CHECK(values_of(*a.find("x")) != values_of(*c.find("x")));
  CHECK_THROWS_WITH_AS(a.add("x", {1}, init_constant(0)), doctest::Contains("two parameters are named"),
                       Error);
  const Parameter& lecun = *c.add("k", {100000}, init_lecun_normal(16));
  double square = 0, largest = 0;
  for (double e : values_of(lecun)) square += e * e, largest = std::max(largest, std::abs(e));
  CHECK(std::sqrt(square / 1e5) == doctest::Approx(0.25).epsilon(0.01));
  CHECK(largest <= 2 * 0.25 / 0.87962566103423978);
}
