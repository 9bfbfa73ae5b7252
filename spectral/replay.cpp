#include "spectral/replay.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "spectral/replay_states.h"
#include "tensor/error.h"
#include "tensor/worse.h"

namespace eigentrace {

namespace {

/// ‖x‖ as largest · √sum, so that neither tiny nor huge elements leave the range of double.
struct Norm {
  double largest = 0, sum = 0;
  void add(double x) {
    const double a = std::abs(x);
    if (a > largest) {
      sum = 1 + sum * (largest / a) * (largest / a);
      largest = a;
    } else if (a != 0) {
      sum += (a / largest) * (a / largest);  // NaN comes here and stays
    }
  }
  void add(const Norm& other) {
    if (other.largest > largest) {
      const double ratio = largest / other.largest;
      sum = other.sum + sum * ratio * ratio, largest = other.largest;
    } else if (other.largest > 0) {
      const double ratio = other.largest / largest;
      sum += other.sum * ratio * ratio;
    } else {
      sum += other.sum;  // NaN alone
    }
  }
  double value() const {
    return largest == 0 && sum == 0 ? 0 : (std::isnan(sum) ? sum : largest * std::sqrt(sum));
  }
};

struct Comparison {
  Norm y, simulated, error;
  void add(double truth, double simulation) {
    y.add(truth), simulated.add(simulation), error.add(simulation - truth);
  }
  void add(const Comparison& other) {
    y.add(other.y), simulated.add(other.simulated), error.add(other.error);
  }
  ReplayPart part(DType dtype) const {
    const double least =
        dtype == DType::f64
            ? std::numeric_limits<double>::min() / std::numeric_limits<double>::epsilon()
            : double(std::numeric_limits<float>::min()) / double(std::numeric_limits<float>::epsilon());
    ReplayPart result;
    result.y_norm = y.value(), result.error_norm = error.value();
    const bool broken = std::isnan(result.y_norm) || std::isnan(result.error_norm);
    result.dead = !broken && y.largest < least && simulated.largest < least;
    result.relative_error = result.dead ? 0 : result.error_norm / result.y_norm;
    return result;
  }
};

/// Feed-through of head or channel c, 0 without one.
struct FeedThrough {
  std::vector<double> d;
  explicit FeedThrough(const Realisation& system)
      : d(system.d.defined() ? system.d.to_vector<double>() : std::vector<double>{}) {}
  double operator[](int64_t c) const { return d.empty() ? 0.0 : d[size_t(c)]; }
};

void replay_heads(const Realisation& system, const Tensor& y, int64_t sequences,
                  std::vector<Comparison>& heads) {
  const int64_t steps = system.steps(), count = system.heads(), width = system.u.dim(3);
  const FeedThrough d(system);
  const bool factored = std::holds_alternative<Factored>(system.maps);
  for (int64_t b = 0; b < sequences; ++b) {
    const HeadInputs in = head_inputs(system, b);
    const std::vector<double> truth = sequence_of(y, b);
    std::vector<Comparison> found(static_cast<size_t>(count));
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t h = 0; h < count; ++h) {
      std::vector<double> simulated(size_t(steps * width));
      factored ? simulate_factored(in, h, simulated.data()) : simulate_kernel(in, h, simulated.data());
      for (int64_t i = 0; i < steps; ++i)
        for (int64_t p = 0; p < width; ++p) {
          const size_t at = size_t((i * count + h) * width + p);
          found[size_t(h)].add(truth[at], simulated[size_t(i * width + p)] + d[h] * in.v[at]);
        }
    }
    for (size_t h = 0; h < found.size(); ++h) heads[h].add(found[h]);
  }
}

void replay_sequences(const Realisation& system, const Tensor& y, int64_t sequences, Comparison& layer) {
  const int64_t width = system.u.dim(2);
  const FeedThrough d(system);
  std::vector<double> simulated;
  for (int64_t b = 0; b < sequences; ++b) {
    if (std::holds_alternative<Dense>(system.maps))
      simulate_dense(system, b, simulated);
    else
      simulate_selective(system, b, simulated);
    const std::vector<double> truth = sequence_of(y, b), u = sequence_of(system.u, b);
    for (size_t at = 0; at < truth.size(); ++at)
      layer.add(truth[at], simulated[at] + d[int64_t(at) % width] * u[at]);
  }
}

/// Channels that take about half a minute: 7e-10 s per N³ log₂ L, measured on two cores.
int64_t affordable_channels(const Realisation& system) {
  const double n = double(std::get<Dplr>(system.lambda).lambda.re.dim(0));
  const double doublings = std::log2(double(std::get<Channels>(system.maps).length) + 1);
  return std::max<int64_t>(16, int64_t(4e10 / (n * n * n * doublings)));
}

void replay_channels(const Realisation& system, const Tensor& y, int64_t most, ReplayResult& result,
                     Comparison& layer) {
  const int64_t width = system.u.dim(2);
  result.channels = std::min(most > 0 ? most : affordable_channels(system), width);
  const FeedThrough d(system);
  // One transfer each; then channels are strided host views.
  const Tensor u = system.u.slice(0, 0, result.sequences).clone({}, system.u.dtype());
  const Tensor truth = y.slice(0, 0, result.sequences).clone({}, y.dtype()).reshape(u.shape());
  std::vector<Comparison> found(static_cast<size_t>(result.channels));
  std::vector<double> conditions(found.size());
  std::vector<std::string> errors(found.size());  // no exception may leave a parallel region
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t n = 0; n < result.channels; ++n) try {
      const int64_t channel = n * width / result.channels;
      const auto input = u.slice(2, channel, 1).to_vector<double>();
      const auto wanted = truth.slice(2, channel, 1).to_vector<double>();
      const ChannelReplay replay = simulate_channel(system, channel, input);
      conditions[size_t(n)] = replay.condition;
      for (size_t at = 0; at < input.size(); ++at)
        found[size_t(n)].add(wanted[at], replay.y[at] + d[channel] * input[at]);
    } catch (const std::exception& error) {
      errors[size_t(n)] = error.what();
    }
  for (size_t n = 0; n < found.size(); ++n) {
    if (!errors[n].empty()) fail(errors[n]);
    layer.add(found[n]);
    result.condition = worse(result.condition, conditions[n]);
  }
}

}  // namespace

bool ReplayResult::agrees(double tolerance) const {
  if (!layer.dead && !(layer.relative_error < tolerance)) return false;
  return std::all_of(heads.begin(), heads.end(),
                     [&](const ReplayPart& head) { return head.dead || head.relative_error < tolerance; });
}

std::string ReplayResult::text() const {
  std::string line = layer.dead ? "dead branch" : fmt::format("relative error {:.2g}", layer.relative_error);
  if (heads.size() > 1 && !layer.dead) {
    for (size_t h = 0; h < heads.size(); ++h)
      if (heads[h].dead) line += fmt::format(", head {}: dead branch", h);
  }
  if (condition > 0) line += fmt::format(", condition {:.2g}, {} channels", condition, channels);
  return line;
}

ReplayResult replay(const Realisation& system, const Tensor& y, const ReplayOptions& options) {
  check(system);
  if (!y.defined() || !is_floating(y.dtype()) || y.numel() != system.u.numel() || y.dim(0) != system.batch())
    fail("replay: y: expected as many elements as u " + to_string(system.u) + ", batch first, found " +
         to_string(y));
  ReplayResult result;
  result.sequences =
      options.max_sequences > 0 ? std::min(options.max_sequences, system.batch()) : system.batch();
  std::vector<Comparison> parts(static_cast<size_t>(system.heads()));
  if (system.u.rank() == 4)
    replay_heads(system, y, result.sequences, parts);
  else if (std::holds_alternative<Channels>(system.maps))
    replay_channels(system, y, options.max_channels, result, parts[0]);
  else
    replay_sequences(system, y, result.sequences, parts[0]);
  Comparison whole;
  for (const Comparison& part : parts) {
    whole.add(part);
    result.heads.push_back(part.part(y.dtype()));
  }
  result.layer = whole.part(y.dtype());
  return result;
}

}  // namespace eigentrace
