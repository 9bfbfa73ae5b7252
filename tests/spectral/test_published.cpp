#include "spectral/published.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "spectral/dplr.h"
#include "spectral/statistics.h"
#include "tensor/error.h"
#include "tensor/worse.h"
#include "tests/spectral/text_fixture.h"

using namespace eigentrace;

namespace {

struct Sizes {
  int64_t batch, steps, heads;
};

Sizes sizes_of(const TextCase& f) {
  const auto& s = f["sizes"];
  return {static_cast<int64_t>(s[0]), static_cast<int64_t>(s[1]), static_cast<int64_t>(s[2])};
}

// Largest |λ/expected − 1| over all cases whose name begins with `kind`; `read` gives log λ of (case, batch,
// head).
template <class Read>
double worst_error(const std::string& kind, Read read) {
  double worst = 0;
  int found = 0;
  for (const TextCase& f : read_text_cases(EIGENTRACE_TEST_DATA "/spectral/published.txt")) {
    if (f.name.rfind(kind, 0) != 0) continue;
    ++found;
    const Sizes s = sizes_of(f);
    for (int64_t b = 0; b < s.batch; ++b)
      for (int64_t h = 0; h < s.heads; ++h) {
        const std::vector<double> log_lambda = read(f, s, b, h);
        const int64_t steps = static_cast<int64_t>(log_lambda.size());
        REQUIRE(steps * s.batch * s.heads == static_cast<int64_t>(f["expected"].size()));
        for (int64_t t = 0; t < steps; ++t)
          worst = worse(worst,
                        std::abs(std::exp(log_lambda[t]) / f["expected"][(b * steps + t) * s.heads + h] - 1));
      }
  }
  REQUIRE(found > 0);
  return worst;
}

template <class T>
std::vector<double> attention(const TextCase& f, const Sizes& s, int64_t b, int64_t h, bool softmax) {
  std::vector<double> log_eta;
  for (int64_t i = 0; i < s.steps; ++i) {
    const auto begin = f["scores"].begin() + ((b * s.heads + h) * s.steps + i) * s.steps;
    const std::vector<T> row(begin, begin + s.steps);
    const std::span<const T> scores(row);
    log_eta.push_back(softmax ? published_softmax_log_eta(scores, i, s.steps)
                              : published_linear_log_eta(scores, i));
  }
  return published_ratios(log_eta);
}

template <class T>
std::vector<T> strided(const std::vector<double>& v, const Sizes& s, int64_t b, int64_t h) {
  std::vector<T> out;
  for (int64_t t = 0; t < s.steps; ++t) out.push_back(static_cast<T>(v[(b * s.steps + t) * s.heads + h]));
  return out;
}

}  // namespace

TEST_CASE("published: softmax and linear attention equal the study's own values") {
  for (bool softmax : {true, false}) {
    const char* kind = softmax ? "softmax" : "linear";
    CHECK(worst_error(kind, [&](const TextCase& f, const Sizes& s, int64_t b, int64_t h) {
            return attention<double>(f, s, b, h, softmax);
          }) < 1e-11);
    CHECK(worst_error(kind, [&](const TextCase& f, const Sizes& s, int64_t b, int64_t h) {
            return attention<float>(f, s, b, h, softmax);
          }) < 2e-5);
  }
}

TEST_CASE("published: norm attention equals the study's own values for every function") {
  for (const auto& each : {std::pair{"norm exp", PublishedNormFunction::exp},
                           {"norm elu", PublishedNormFunction::elu},
                           {"norm softplus", PublishedNormFunction::softplus},
                           {"norm sigmoid", PublishedNormFunction::sigmoid}}) {
    const char* name = each.first;
    const PublishedNormFunction function = each.second;
    CAPTURE(name);
    CHECK(worst_error(name, [&](const TextCase& f, const Sizes& s, int64_t b, int64_t h) {
            return published_norm<double>(strided<double>(f["n"], s, b, h), f["offset"][h], function);
          }) < 1e-11);
    CHECK(worst_error(name, [&](const TextCase& f, const Sizes& s, int64_t b, int64_t h) {
            return published_norm<float>(strided<float>(f["n"], s, b, h), static_cast<float>(f["offset"][h]),
                                         function);
          }) < 2e-5);
  }
}

TEST_CASE("published: Mamba-2 and its pseudo-LTI form equal the study's own values") {
  CHECK(worst_error("mamba2", [](const TextCase& f, const Sizes& s, int64_t b, int64_t h) {
          return published_mamba2<double>(strided<double>(f["dt"], s, b, h), f["dt_bias"][h], f["A_log"][h]);
        }) < 1e-11);
  CHECK(worst_error("mamba2", [](const TextCase& f, const Sizes& s, int64_t b, int64_t h) {
          return published_mamba2<float>(strided<float>(f["dt"], s, b, h),
                                         static_cast<float>(f["dt_bias"][h]),
                                         static_cast<float>(f["A_log"][h]));
        }) < 1e-5);
  CHECK(worst_error("pseudo_lti", [](const TextCase& f, const Sizes& s, int64_t, int64_t h) {
          return published_pseudo_lti<double>(f["A"][h], s.steps);
        }) < 1e-12);
}

TEST_CASE("published: S5 is read without clipping and without the bilinear map") {
  int found = 0;
  for (const TextCase& f : read_text_cases(EIGENTRACE_TEST_DATA "/spectral/published.txt")) {
    if (f.name.rfind("s5", 0) != 0) continue;
    ++found;
    std::vector<std::complex<double>> lambda;
    for (size_t n = 0; n < f["lambda_re"].size(); ++n)
      lambda.emplace_back(f["lambda_re"][n], f["lambda_im"][n]);
    const auto r = published_s5(lambda, f["log_step"]);
    for (size_t n = 0; n < lambda.size(); ++n) {
      const std::complex<double> expected(f["expected_re"][n], f["expected_im"][n]);
      CHECK(std::abs(std::polar(std::exp(r.log_abs[n]), r.arg[n]) - expected) < 1e-13);
    }
  }
  CHECK(found == 2);
}

TEST_CASE("published: S4 is channel 1's dense matrix, in double and in float") {
  for (const TextCase& f : read_text_cases(EIGENTRACE_TEST_DATA "/spectral/s4_channels.txt")) {
    const int64_t width = static_cast<int64_t>(f["log_step"].size()),
                  states = static_cast<int64_t>(f["lambda_re"].size()) / width;
    std::vector<std::complex<double>> lambda, p;
    std::vector<std::complex<float>> lambda_f, p_f;
    for (int64_t n = 0; n < states; ++n) {
      const int64_t at = n * width + published_s4_channel;
      lambda.emplace_back(std::min(f["lambda_re"][at], -1e-4), f["lambda_im"][at]);
      p.emplace_back(f["p"][2 * at], f["p"][2 * at + 1]);
      lambda_f.emplace_back(lambda.back()), p_f.emplace_back(p.back());
    }
    const double step = std::exp(f["log_step"][published_s4_channel]);
    const auto exact = published_s4<double>(lambda, p, step);
    const auto single = published_s4<float>(lambda_f, p_f, static_cast<float>(step));
    for (const auto& [read, tolerance] : {std::pair{&exact, 1e-12}, {&single, 2e-4}}) {
      double worst = 0;
      for (int64_t n = 0; n < states; ++n) {
        const std::complex<double> expected(f["published_re"][n], f["published_im"][n]);
        double nearest = 1e300;
        for (int64_t k = 0; k < states; ++k)
          nearest =
              std::min(nearest, std::abs(std::polar(std::exp(read->log_abs[k]), read->arg[k]) - expected));
        worst = worse(worst, nearest);
      }
      CHECK(worst < tolerance);
    }
  }
}

TEST_CASE("published: each masked position of softmax counts as the larger of the maximum and one") {
  // Scores −3 in every place, T = 4: row 0 has three masked ones of e⁰, the last row none.
  const std::vector<double> low(4, -3.0), high(4, 2.0);
  CHECK(published_softmax_log_eta<double>(low, 0, 4) == doctest::Approx(std::log(std::exp(-3.0) + 3)));
  CHECK(published_softmax_log_eta<double>(low, 3, 4) == doctest::Approx(std::log(4 * std::exp(-3.0))));
  CHECK(published_softmax_log_eta<double>(high, 1, 4) == doctest::Approx(std::log(4 * std::exp(2.0))));
  // The last row has nothing masked and takes its true maximum, however low.
  const std::vector<double> deep(2, -800.0);
  CHECK(published_softmax_log_eta<double>(deep, 1, 2) == doctest::Approx(-800 + std::log(2.0)));
  // Huge scores stay finite in the logarithm.
  const std::vector<float> huge{3000, -3000};
  CHECK(published_softmax_log_eta<float>(huge, 1, 2) == doctest::Approx(3000));
}

TEST_CASE("published: zeros become 2e-23, so two dead steps read as exactly one") {
  const std::vector<float> zero{0, 0}, dead{10, 11, -200, 12};
  CHECK(published_linear_log_eta<float>(zero, 1) == std::log(2e-23));
  const auto norm = published_norm<float>(dead, 0.0f, PublishedNormFunction::exp);
  CHECK(norm[0] == 0);
  CHECK(norm[1] == doctest::Approx(-std::log(2e-23)));
  const auto mamba = published_mamba2<float>(std::vector<float>{500}, 0.0f, 1.0f);
  CHECK(mamba[0] == -INFINITY);  // exp underflows in float32
}

TEST_CASE("published: bad input is an error") {
  const std::vector<double> three(3, 0.0);
  CHECK_THROWS_AS(published_softmax_log_eta<double>(three, 3, 8), Error);
  CHECK_THROWS_AS(published_softmax_log_eta<double>(three, 2, 2), Error);
  CHECK_THROWS_AS(published_linear_log_eta<double>(three, -1), Error);
  CHECK_THROWS_AS(published_ratios({}), Error);
  CHECK_THROWS_AS(published_norm<double>({}, 0.0, PublishedNormFunction::elu), Error);
  const std::vector<std::complex<double>> one{-1.0}, two{-1.0, -2.0};
  CHECK_THROWS_AS(published_s5(one, three), Error);
  CHECK_THROWS_AS(published_s4<double>(one, two, 0.1), Error);
  CHECK_THROWS_AS(published_s4<double>(one, one, 0.0), Error);
}
