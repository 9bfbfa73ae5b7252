// Other eigenvalues in a system: against sums over the past in which they are written out, never a
// recurrence.
#include "spectral/intervention.h"

#include <doctest/doctest.h>

#include <cmath>
#include <complex>
#include <limits>
#include <numbers>

#include "spectral/dplr.h"
#include "spectral/replay.h"
#include "tensor/error.h"
#include "tests/spectral/systems.h"

using namespace eigentrace;

namespace {

double difference(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  double error = 0, norm = 0;
  for (size_t k = 0; k < a.size(); ++k) error += (a[k] - b[k]) * (a[k] - b[k]), norm += b[k] * b[k];
  return std::sqrt(error / norm);
}

std::vector<double> altered(const Realisation& system, const std::string& text) {
  AlteredSimulation simulation;
  return simulation(system, 0, Interventions(parse_interventions(text)));
}

/// y_i = Σ_{j≤i} (Π_{l=j+1..i} λ'_l) C_i B_j u_j + D u_i of a system with heads, λ' = change(λ) at (b, l, h).
std::vector<double> written_out(const TestSystem& test,
                                const std::function<double(double, int64_t)>& change) {
  const Realisation& system = test.system;
  const LayerSpectrum spectrum = read_spectrum(system, 0);
  const int64_t batch = system.batch(), steps = system.steps(), heads = system.heads(),
                width = system.u.dim(3);
  const auto u = system.u.to_vector<double>();
  const auto d = system.d.defined() ? system.d.to_vector<double>() : std::vector<double>(size_t(heads), 0.0);
  std::vector<double> q, k, weight, log_eta;
  int64_t groups = heads, states = 0;
  double scale = 1;
  const bool kernel = std::holds_alternative<Kernel>(system.maps);
  const auto take = [&](const Tensor& q_, const Tensor& k_, double s) {
    q = q_.to_vector<double>(), k = k_.to_vector<double>(), groups = q_.dim(2), states = q_.dim(3), scale = s;
  };
  if (kernel) {
    const auto& maps = std::get<Kernel>(system.maps);
    take(maps.q, maps.k, maps.scale);
  } else {
    const auto& maps = std::get<Factored>(system.maps);
    take(maps.q, maps.k, maps.scale);
    if (maps.weight.defined()) weight = maps.weight.to_vector<double>();
  }
  if (const auto* ratio = std::get_if<NormaliserRatio>(&system.lambda))
    log_eta = ratio->log_eta.to_vector<double>();
  const auto lambda = [&](int64_t b, int64_t l, int64_t h) {
    const int64_t row =
        spectrum.time_dependent() ? (b * spectrum.shape[1] + l - spectrum.first_step) * heads : 0;
    return change(std::exp(spectrum.log_abs[size_t(row + h)]), h);
  };
  std::vector<double> y(u.size(), 0.0);
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = 0; i < steps; ++i) {
        double product = 1;
        for (int64_t j = i; j >= 0; --j) {
          const int64_t group = h * groups / heads;
          double dot = 0;
          for (int64_t s = 0; s < states; ++s)
            dot += q[size_t(((b * steps + i) * groups + group) * states + s)] *
                   k[size_t(((b * steps + j) * groups + group) * states + s)];
          const size_t at = size_t((b * steps + j) * heads + h);
          double w = kernel ? std::exp(scale * dot) : scale * dot;
          if (!weight.empty()) w *= weight[at];
          if (!log_eta.empty()) w *= std::exp(-log_eta[at]);
          for (int64_t p = 0; p < width; ++p)
            y[size_t(((b * steps + i) * heads + h) * width + p)] +=
                product * w * u[at * size_t(width) + size_t(p)];
          if (j > 0) product *= lambda(b, j, h);
        }
        for (int64_t p = 0; p < width; ++p) {
          const size_t at = size_t(((b * steps + i) * heads + h) * width + p);
          y[at] += d[size_t(h)] * u[at];
        }
      }
  return y;
}

}  // namespace

TEST_CASE("intervention: a change that changes nothing gives the layer's own y, in every family") {
  for (const SystemBuilder& build : all_systems())
    for (const int64_t steps : {1, 63, 100}) {
      const TestSystem test = build(steps, DType::f64, 5);
      CAPTURE(name_of(test.system.family));
      CAPTURE(steps);
      const auto y = test.y.to_vector<double>();
      const double tolerance = test.system.family == Family::s4 ? 1e-8 : 1e-11;
      for (const char* text : {"abs<=inf", "abs^=1", "abs>=0 ; arg*=1", "abs*=1 ; arg+=0"})
        CHECK(difference(altered(test.system, text), y) < tolerance);
    }
}

TEST_CASE(
    "intervention: clamped, scaled and set eigenvalues give the sum over the past in which they are "
    "written") {
  for (const SystemBuilder build :
       {softmax_system, linear_system, norm_system, mamba2_system, pseudo_lti_system}) {
    const TestSystem test = build(63, DType::f64, 9);
    CAPTURE(name_of(test.system.family));
    const auto y = test.y.to_vector<double>();
    const auto check_change = [&](const char* text, const std::function<double(double, int64_t)>& change) {
      CAPTURE(std::string(text));
      const auto found = altered(test.system, text);
      CHECK(difference(found, written_out(test, change)) < 1e-10);
      CHECK(difference(found, y) > 1e-6);  // and that is another y
    };
    check_change("abs<=0.7", [](double x, int64_t) { return std::min(x, 0.7); });
    check_change("abs>=1.02", [](double x, int64_t) { return std::max(x, 1.02); });
    check_change("lambda=0.5", [](double, int64_t) { return 0.5; });
    check_change("abs*=0.9", [](double x, int64_t) { return 0.9 * x; });
    check_change("abs^=2", [](double x, int64_t) { return x * x; });
    check_change("abs=0.3 heads=1", [](double x, int64_t h) { return h == 1 ? 0.3 : x; });
    check_change("abs<=0.9; abs*=0.5 heads=0",
                 [](double x, int64_t h) { return std::min(x, 0.9) * (h == 0 ? 0.5 : 1.0); });
    // λ := 0 is the memoryless layer: y_i = C_i B_i u_i + D u_i.
    check_change("lambda=0", [](double, int64_t) { return 0.0; });
  }
}

TEST_CASE("intervention: λ := 0 leaves LRU, S5, Mamba-1 and S4 the present input alone") {
  for (const SystemBuilder build : {lru_system, s5_bidirectional_system, mamba1_system, s4_system}) {
    const TestSystem test = build(63, DType::f64, 9);
    CAPTURE(name_of(test.system.family));
    // Without memory a sequence of one step is all there is: each step alone, from a zero state. S4's C̄
    // belongs to the length 63 and is kept.
    std::vector<double> expected;
    for (int64_t b = 0; b < test.system.batch(); ++b)
      for (int64_t i = 0; i < 63; ++i) {
        Realisation step = test.system;
        const auto cut = [&](Tensor& tensor) { tensor = tensor.slice(0, b, 1).slice(1, i, 1); };
        cut(step.u);
        if (auto* outer = std::get_if<Outer>(&step.lambda)) {
          cut(outer->delta);
          auto& maps = std::get<Selective>(step.maps);
          cut(maps.b), cut(maps.c);
        }
        const auto y = altered(step, "abs<=inf");
        expected.insert(expected.end(), y.begin(), y.end());
      }
    CHECK(difference(altered(test.system, "lambda=0"), expected) < 1e-9);
  }
}

TEST_CASE("intervention: phases of LRU and S4 are set and shifted") {
  const TestSystem lru = lru_system(63, DType::f64, 4);
  Realisation turned = lru.system;
  auto& lambda = std::get<Diagonal>(turned.lambda);
  std::vector<double> args = lambda.arg.to_vector<double>();
  for (double& arg : args) arg += std::numbers::pi / 6;
  lambda.arg = Tensor::from(args, lambda.arg.shape());
  CHECK(difference(altered(lru.system, "arg+=30"), altered(turned, "abs<=inf")) < 1e-12);
  lambda.arg = Tensor::from(std::vector<double>(args.size(), 0.0), lambda.arg.shape());
  CHECK(difference(altered(lru.system, "arg=0"), altered(turned, "abs<=inf")) < 1e-12);
  CHECK(difference(altered(lru.system, "arg+=30"), altered(lru.system, "arg=0")) > 1e-3);

  // S4: K'_l = Re(C̄ V Λ'ˡ V⁻¹ B̄); scaling every λ by s scales tap l by sˡ, whatever the eigenvectors.
  const TestSystem s4 = s4_system(63, DType::f64, 4);
  const auto& dplr = std::get<Dplr>(s4.system.lambda);
  const auto& maps = std::get<Channels>(s4.system.maps);
  const int64_t width = s4.system.u.dim(2), steps = 63, batch = s4.system.batch();
  const auto u = s4.system.u.to_vector<double>(), d = s4.system.d.to_vector<double>();
  std::vector<double> expected(u.size());
  for (int64_t c = 0; c < width; ++c) {
    const auto column = [&](const ComplexTensor& z) {
      const auto re = z.re.slice(1, c, 1).to_vector<double>(), im = z.im.slice(1, c, 1).to_vector<double>();
      std::vector<std::complex<double>> out;
      for (size_t n = 0; n < re.size(); ++n) out.push_back({re[n], im[n]});
      return out;
    };
    const auto poles = column(dplr.lambda), p = column(dplr.p);
    const auto kernel =
        dplr_kernel(dplr_realisation({poles, p, std::exp(dplr.log_step.to_vector<double>()[size_t(c)])},
                                     column(maps.b), column(maps.c), maps.length),
                    steps);
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t i = 0; i < steps; ++i) {
        double sum = d[size_t(c)] * u[size_t((b * steps + i) * width + c)];
        for (int64_t j = 0; j <= i; ++j)
          sum +=
              std::pow(0.8, double(i - j)) * kernel[size_t(i - j)] * u[size_t((b * steps + j) * width + c)];
        expected[size_t((b * steps + i) * width + c)] = sum;
      }
  }
  CHECK(difference(altered(s4.system, "abs*=0.8"), expected) < 1e-8);
}

TEST_CASE("intervention: what is read of an altered spectrum satisfies the clamp, head by head") {
  for (const SystemBuilder& build : all_systems()) {
    const TestSystem test = build(63, DType::f64, 5);
    CAPTURE(name_of(test.system.family));
    LayerSpectrum spectrum = read_spectrum(test.system, 2);
    const LayerSpectrum before = spectrum;
    const Interventions clamp(parse_interventions("abs<=0.8 ; abs>=0.6"));
    clamp.alter(spectrum);
    bool moved = false;
    for (size_t k = 0; k < spectrum.log_abs.size(); ++k) {
      CHECK(spectrum.log_abs[k] <= std::log(0.8));
      CHECK(spectrum.log_abs[k] >= std::log(0.6));
      moved = moved || spectrum.log_abs[k] != before.log_abs[k];
    }
    CHECK(moved);
    CHECK(spectrum.arg == before.arg);
    LayerSpectrum other = before;
    Interventions(parse_interventions("abs=0.5 layers=0,1")).alter(other);
    CHECK(other.log_abs == before.log_abs);
  }
}

TEST_CASE("intervention: frozen eigenvalues are the means over batch and time, or those of another system") {
  const TestSystem test = linear_system(63, DType::f64, 5), other = linear_system(63, DType::f64, 6);
  const LayerSpectrum spectrum = read_spectrum(test.system, 0);
  Interventions mean(parse_interventions("freeze=mean"));
  mean.freeze(0, frozen_mean(spectrum));
  LayerSpectrum now = spectrum;
  mean.alter(now);
  const int64_t heads = spectrum.shape[2];
  for (int64_t h = 0; h < heads; ++h) {
    double sum = 0, count = 0;
    for (size_t k = size_t(h); k < spectrum.log_abs.size(); k += size_t(heads))
      sum += spectrum.log_abs[k], count += 1;
    for (size_t k = size_t(h); k < now.log_abs.size(); k += size_t(heads))
      CHECK(now.log_abs[k] == doctest::Approx(sum / count).epsilon(1e-12));
  }
  Interventions profile(parse_interventions("freeze=profile heads=1"));
  profile.freeze(0, frozen_profile(spectrum));
  now = spectrum;
  profile.alter(now);
  CHECK(now.log_abs[0] == spectrum.log_abs[0]);
  const int64_t steps = spectrum.shape[1];
  CHECK(now.log_abs[1] ==
        doctest::Approx((spectrum.log_abs[1] + spectrum.log_abs[size_t(steps * heads) + 1]) / 2)
            .epsilon(1e-12));
  CHECK(now.log_abs[size_t(steps * heads) + 1] == now.log_abs[1]);
  // Another system's own eigenvalues on the same batch, sequence by sequence.
  Interventions foreign(parse_interventions("freeze=initial"));
  CHECK_THROWS_AS(foreign.alter(now), UsageError);  // not told which
  const LayerSpectrum theirs = read_spectrum(other.system, 0);
  foreign.freeze(0, theirs);
  now = spectrum;
  foreign.alter(now);
  CHECK(now.log_abs == theirs.log_abs);
  AlteredSimulation simulation;
  const auto y = simulation(test.system, 0, foreign);
  Interventions own(parse_interventions("freeze=initial"));
  own.freeze(0, spectrum);
  CHECK(difference(simulation(test.system, 0, own), test.y.to_vector<double>()) < 1e-10);
  CHECK(difference(y, test.y.to_vector<double>()) > 1e-3);
}

TEST_CASE("intervention: a mistake in the text is told") {
  for (const char* text :
       {"", "abs<0.9", "abs<=", "abs<=x", "abs<=-1", "abs=0.5 abs=0.6", "layers=1",
        "abs=1 layers=", "abs=1 layers=a", "freeze=", "lambda=nan", "lambda=inf", "abs=inf", ";"}) {
    CAPTURE(std::string(text));
    CHECK_THROWS_AS(parse_interventions(text), UsageError);
  }
  const auto list = parse_interventions("abs<=0.9 heads=2 layers=0,1; arg=0", {3}, {});
  REQUIRE(list.size() == 2);
  CHECK(list[0].layers == std::vector<int64_t>{0, 1});
  CHECK(list[0].heads == std::vector<int64_t>{2});
  CHECK(list[1].layers == std::vector<int64_t>{3});
  CHECK(list[1].heads.empty());
  const TestSystem real = linear_system(5, DType::f64, 1), fixed = lru_system(5, DType::f64, 1);
  CHECK_THROWS_AS(altered(real.system, "arg+=30"), UsageError);
  CHECK_THROWS_AS(altered(real.system, "lambda=-0.5"), UsageError);
  CHECK_NOTHROW(altered(real.system, "arg=0"));
  CHECK_THROWS_AS(altered(real.system, "abs=1 heads=7"), UsageError);
  CHECK_THROWS_AS(altered(fixed.system, "abs=1 heads=0"), UsageError);
  CHECK_THROWS_AS(frozen_mean(read_spectrum(fixed.system, 0)), UsageError);
}
