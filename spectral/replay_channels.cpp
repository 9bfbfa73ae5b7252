#include <algorithm>
#include <cmath>

#include "spectral/dplr.h"
#include "spectral/replay_states.h"

namespace eigentrace {

namespace {

using Complex128 = std::complex<double>;

std::vector<Complex128> column(const ComplexTensor& tensor, int64_t channel) {
  const auto re = tensor.re.slice(1, channel, 1).to_vector<double>();
  const auto im = tensor.im.slice(1, channel, 1).to_vector<double>();
  std::vector<Complex128> values(re.size());
  for (size_t s = 0; s < re.size(); ++s) values[s] = {re[s], im[s]};
  return values;
}

}  // namespace

ChannelReplay simulate_channel(const Realisation& system, int64_t channel, const std::vector<double>& u) {
  const auto& maps = std::get<Channels>(system.maps);
  const auto& dplr = std::get<Dplr>(system.lambda);
  const auto lambda = column(dplr.lambda, channel), p = column(dplr.p, channel);
  const auto log_step = dplr.log_step.to_vector<double>();
  const DplrRealisation recurrence =
      dplr_realisation({lambda, p, std::exp(log_step[size_t(channel)])}, column(maps.b, channel),
                       column(maps.c, channel), maps.length);
  const int64_t steps = system.steps(), sequences = int64_t(u.size()) / steps;
  ChannelReplay replay{std::vector<double>(u.size()), recurrence.condition};
  std::vector<Complex128> h(lambda.size());
  for (int64_t b = 0; b < sequences; ++b) {
    std::fill(h.begin(), h.end(), 0.0);
    for (int64_t i = 0; i < steps; ++i) {
      recurrence.a.apply(h);
      const double input = u[size_t(b * steps + i)];
      double sum = 0;
      for (size_t s = 0; s < h.size(); ++s) {
        h[s] += recurrence.b[s] * input;
        sum += recurrence.c[s].real() * h[s].real() - recurrence.c[s].imag() * h[s].imag();
      }
      replay.y[size_t(b * steps + i)] = sum;
    }
  }
  return replay;
}

}  // namespace eigentrace
