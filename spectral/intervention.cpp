#include "spectral/intervention.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numbers>
#include <sstream>

#include "tensor/error.h"

namespace eigentrace {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double unknown = std::numeric_limits<double>::quiet_NaN();
constexpr double radians_per_degree = std::numbers::pi / 180;

constexpr const char* known =
    "abs<=R, abs>=R, abs=R, abs*=S, abs^=P, lambda=C, arg=A, arg+=A, arg*=S, "
    "freeze=mean|profile|initial|FILE, then layers=0,1 and heads=2 if not all";

double number_in(const std::string& text, const std::string& clause) {
  size_t used = 0;
  double value = unknown;
  try {
    value = std::stod(text, &used);
  } catch (const std::exception&) {}
  if (used != text.size() || text.empty() || std::isnan(value))
    fail_usage(fmt::format("intervention '{}': a number expected, found '{}'", clause, text));
  return value;
}

std::vector<int64_t> places_in(const std::string& text, const std::string& clause) {
  std::vector<int64_t> places;
  std::stringstream list(text);
  for (std::string one; std::getline(list, one, ',');) {
    if (one.empty() || one.size() > 9 || one.find_first_not_of("0123456789") != std::string::npos)
      fail_usage(
          fmt::format("intervention '{}': numbers from 0 such as 0,2 expected, found '{}'", clause, text));
    places.push_back(std::stoll(one));
  }
  if (places.empty()) fail_usage(fmt::format("intervention '{}': an empty list of layers or heads", clause));
  return places;
}

struct Verb {
  const char* start;
  Change change;
};
// Longer ones first where one begins another.
constexpr std::array verbs{Verb{"abs<=", Change::abs_at_most}, Verb{"abs>=", Change::abs_at_least},
                           Verb{"abs*=", Change::abs_scale},   Verb{"abs^=", Change::abs_power},
                           Verb{"abs=", Change::abs_set},      Verb{"lambda=", Change::lambda_set},
                           Verb{"arg+=", Change::arg_shift},   Verb{"arg*=", Change::arg_scale},
                           Verb{"arg=", Change::arg_set},      Verb{"freeze=", Change::freeze}};

Intervention parse_clause(const std::string& clause, const std::vector<int64_t>& layers,
                          const std::vector<int64_t>& heads) {
  Intervention out;
  out.layers = layers, out.heads = heads;
  std::stringstream words(clause);
  bool found = false;
  for (std::string word; words >> word;) {
    out.text += (out.text.empty() ? "" : " ") + word;
    if (word.starts_with("layers=")) {
      out.layers = places_in(word.substr(7), clause);
      continue;
    }
    if (word.starts_with("heads=")) {
      out.heads = places_in(word.substr(6), clause);
      continue;
    }
    const auto verb =
        std::find_if(verbs.begin(), verbs.end(), [&](const Verb& v) { return word.starts_with(v.start); });
    if (verb == verbs.end() || found)
      fail_usage(fmt::format("intervention '{}': '{}' is no change; known are {}", clause, word, known));
    found = true;
    out.change = verb->change;
    const std::string rest = word.substr(std::string(verb->start).size());
    if (out.change == Change::freeze) {
      if (rest.empty())
        fail_usage(fmt::format("intervention '{}': freeze to what? known are {}", clause, known));
      out.source = rest;
      continue;
    }
    out.number = number_in(rest, clause);
    const bool radius = out.change <= Change::abs_power;
    if ((radius && out.number < 0) || (!std::isfinite(out.number) && out.change > Change::abs_at_least))
      fail_usage(fmt::format("intervention '{}': a {}finite number expected, found {}", clause,
                             radius ? "not negative, " : "", rest));
  }
  if (!found) fail_usage(fmt::format("intervention '{}': no change named; known are {}", clause, known));
  return out;
}

bool in(const std::vector<int64_t>& list, int64_t one) {
  return list.empty() || std::find(list.begin(), list.end(), one) != list.end();
}

/// Mean of log|λ| over a batch, and over time if asked. λ = 0 counts as exp of nothing finite: left out.
LayerSpectrum averaged(const LayerSpectrum& spectrum, bool over_time) {
  if (!spectrum.time_dependent())
    fail_usage(
        fmt::format("intervention: layer {}: freeze=mean and freeze=profile average over time, and its "
                    "eigenvalues do not depend on it; freeze=initial or a checkpoint",
                    spectrum.layer));
  LayerSpectrum out = spectrum;
  const int64_t batch = spectrum.shape[0], steps = spectrum.shape[1], width = spectrum.shape[2];
  const int64_t kept = over_time ? 1 : steps;
  out.shape = {1, kept, width};
  out.arg.clear(), out.streamed = {};
  std::vector<double> sums(size_t(kept * width), 0.0), counts(sums.size(), 0.0);
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t t = 0; t < steps; ++t)
      for (int64_t m = 0; m < width; ++m) {
        const double x = spectrum.log_abs[size_t((b * steps + t) * width + m)];
        if (!std::isfinite(x)) continue;
        const size_t at = size_t((over_time ? 0 : t) * width + m);
        sums[at] += x, counts[at] += 1;
      }
  out.log_abs.resize(sums.size());
  for (size_t at = 0; at < sums.size(); ++at)
    out.log_abs[at] = counts[at] > 0 ? sums[at] / counts[at] : unknown;
  out.full_count = int64_t(out.log_abs.size());
  return out;
}

/// Heads, or S4's channels; 0: the layer has neither.
int64_t places(const LayerSpectrum& spectrum) {
  if (spectrum.kind != SpectrumKind::fixed_per_channel) return spectrum.heads();
  return spectrum.channels.empty() ? spectrum.shape[0] : spectrum.channels.back() + 1;
}

int64_t place_of(const LayerSpectrum& spectrum, size_t at) {
  if (spectrum.kind == SpectrumKind::fixed_per_channel) {
    const size_t row = at / size_t(spectrum.shape[1]);
    return spectrum.channels.empty() ? int64_t(row) : spectrum.channels[row];
  }
  return int64_t(at) % spectrum.shape.back();
}

}  // namespace

bool Intervention::in_layer(int64_t layer) const { return in(layers, layer); }
bool Intervention::in_head(int64_t head) const { return in(heads, head); }

std::vector<Intervention> parse_interventions(const std::string& text, const std::vector<int64_t>& layers,
                                              const std::vector<int64_t>& heads) {
  std::vector<Intervention> all;
  std::stringstream clauses(text);
  for (std::string clause; std::getline(clauses, clause, ';');)
    all.push_back(parse_clause(clause, layers, heads));
  if (all.empty()) fail_usage(fmt::format("intervention: an empty text; known are {}", known));
  return all;
}

void change_eigenvalue(const Intervention& one, double& log_abs, double& arg) {
  switch (one.change) {
    case Change::abs_at_most:
      if (log_abs > std::log(one.number)) log_abs = std::log(one.number);
      break;
    case Change::abs_at_least:
      if (log_abs < std::log(one.number)) log_abs = std::log(one.number);
      break;
    case Change::abs_set:
      log_abs = std::log(one.number);
      break;
    case Change::abs_scale:
      log_abs += std::log(one.number);
      break;
    case Change::abs_power:
      log_abs = one.number == 0 ? 0 : log_abs * one.number;
      break;
    case Change::lambda_set:
      log_abs = std::log(std::abs(one.number)), arg = one.number < 0 ? std::numbers::pi : 0;
      break;
    case Change::arg_set:
      arg = wrap_angle(one.number * radians_per_degree);
      break;
    case Change::arg_shift:
      arg = wrap_angle(arg + one.number * radians_per_degree);
      break;
    case Change::arg_scale:
      arg = wrap_angle(arg * one.number);
      break;
    case Change::freeze:
      fail("change_eigenvalue: freeze: what it is frozen to is no function of the eigenvalue");
  }
}

LayerSpectrum frozen_mean(const LayerSpectrum& spectrum) { return averaged(spectrum, true); }
LayerSpectrum frozen_profile(const LayerSpectrum& spectrum) { return averaged(spectrum, false); }

bool Interventions::touches(int64_t layer) const {
  return std::any_of(list_.begin(), list_.end(),
                     [&](const Intervention& one) { return one.in_layer(layer); });
}

void Interventions::freeze(size_t n, LayerSpectrum values) {
  const int64_t layer = values.layer;
  frozen_[{n, layer}] = std::move(values);
}

const LayerSpectrum* Interventions::frozen(size_t n, int64_t layer) const {
  const auto found = frozen_.find({n, layer});
  return found == frozen_.end() ? nullptr : &found->second;
}

void Interventions::alter(LayerSpectrum& spectrum, int64_t sequence) const {
  if (!touches(spectrum.layer)) return;
  const int64_t layer = spectrum.layer, count = places(spectrum);
  const bool real = spectrum.arg.empty();
  spectrum.streamed = {};
  if (spectrum.sampled()) spectrum.full_count = int64_t(spectrum.log_abs.size());
  for (size_t n = 0; n < list_.size(); ++n) {
    const Intervention& one = list_[n];
    if (!one.in_layer(layer)) continue;
    const auto refuse = [&](const std::string& what) {
      fail_usage(fmt::format("intervention '{}': layer {} ({}) {}", one.text, layer, name_of(spectrum.family),
                             what));
    };
    for (const int64_t head : one.heads)
      if (count == 0 || head >= count)
        refuse(count == 0 ? "has no heads" : fmt::format("has heads 0 to {}", count - 1));
    const bool turns = (one.phase() && one.change != Change::arg_scale && one.number != 0) ||
                       (one.change == Change::lambda_set && one.number < 0);
    if (real && turns) refuse("has real and positive eigenvalues: their phase is always 0");
    const LayerSpectrum* source = one.change == Change::freeze ? frozen(n, layer) : nullptr;
    if (one.change == Change::freeze && source == nullptr) refuse("is not told what it is frozen to");
    if (source != nullptr) {
      const bool fits =
          source->kind == spectrum.kind && source->shape.size() == spectrum.shape.size() &&
          source->shape.back() == spectrum.shape.back() &&
          (spectrum.time_dependent() ? source->shape[1] == 1 || source->shape[1] == spectrum.shape[1]
                                     : source->shape == spectrum.shape);
      if (!fits) refuse("has another shape than what it is frozen to: other lengths or another model");
    }
    for (size_t at = 0; at < spectrum.log_abs.size(); ++at) {
      if (!one.heads.empty() && !one.in_head(place_of(spectrum, at))) continue;
      double arg = real ? 0 : spectrum.arg[at];
      if (source == nullptr) {
        change_eigenvalue(one, spectrum.log_abs[at], arg);
      } else {
        size_t from = at;
        if (spectrum.time_dependent()) {
          const int64_t width = spectrum.shape[2], steps = spectrum.shape[1], m = int64_t(at) % width;
          const int64_t t = int64_t(at) / width % steps, b = int64_t(at) / width / steps + sequence;
          from = size_t(
              ((source->shape[0] == 1 ? 0 : b) * source->shape[1] + (source->shape[1] == 1 ? 0 : t)) * width +
              m);
          if (from >= source->log_abs.size()) refuse("has more sequences than what it is frozen to");
        }
        spectrum.log_abs[at] = source->log_abs[from];
        arg = source->arg.empty() ? 0 : source->arg[from];
      }
      if (!real) spectrum.arg[at] = arg;
    }
  }
}

}  // namespace eigentrace
