#include "nn/module.h"

#include <fmt/format.h>

#include <cmath>
#include <string_view>

#include "tensor/error.h"

namespace eigentrace {

// --- initialisers -----------------------------------------------------------------------------------------

Initialiser init_constant(double value) {
  return [value](Rng&, std::vector<double>& x) { x.assign(x.size(), value); };
}

Initialiser init_uniform(double bound) { return init_uniform(-bound, bound); }

Initialiser init_uniform(double low, double high) {
  return [low, high](Rng& rng, std::vector<double>& x) {
    for (double& e : x) e = rng.uniform(low, high);
  };
}

Initialiser init_normal(double deviation) {
  return [deviation](Rng& rng, std::vector<double>& x) {
    for (double& e : x) e = deviation * rng.normal();
  };
}

Initialiser init_lecun_normal(int64_t fan_in) {
  const double sigma = std::sqrt(1.0 / static_cast<double>(fan_in)) / 0.87962566103423978;
  return [sigma](Rng& rng, std::vector<double>& x) {
    for (double& e : x) {
      double z = rng.normal();
      while (std::abs(z) > 2) z = rng.normal();
      e = sigma * z;
    }
  };
}

Initialiser init_values(std::vector<double> given) {
  return [given = std::move(given)](Rng&, std::vector<double>& x) {
    if (given.size() != x.size())
      fail(fmt::format("init_values: expected {} initial values, found {}", x.size(), given.size()));
    x = given;
  };
}

// --- ParameterList ----------------------------------------------------------------------------------------

namespace {

/// FNV-1a, 64 bits.
uint64_t hash(std::string_view text) {
  uint64_t h = 0xcbf29ce484222325u;
  for (char c : text) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return h;
}

}  // namespace

Rng ParameterList::rng(const std::string& name) const { return Rng(seed_, hash(name)); }

Parameter* ParameterList::add(const std::string& name, const Shape& shape, const Initialiser& initialise,
                              bool is_complex) {
  if (find(name)) fail(fmt::format("ParameterList::add: two parameters are named '{}'", name));
  std::vector<double> initial(static_cast<size_t>(shape.numel()));
  Rng stream = rng(name);
  initialise(stream, initial);
  Parameter parameter;
  parameter.name = name;
  parameter.value = Tensor::zeros(shape, dtype_, device_);
  parameter.gradient = Tensor::zeros(shape, dtype_, device_);
  parameter.value.assign(initial);
  parameter.is_complex = is_complex;
  parameter.index = static_cast<int>(parameters_.size());
  return &parameters_.emplace_back(std::move(parameter));
}

Buffer* ParameterList::add_buffer(const std::string& name, const Shape& shape, double value) {
  if (find_buffer(name)) fail(fmt::format("ParameterList::add_buffer: two buffers are named '{}'", name));
  Buffer buffer{name, Tensor::zeros(shape, dtype_, device_)};
  buffer.value.assign(std::vector<double>(static_cast<size_t>(shape.numel()), value));
  return &buffers_.emplace_back(std::move(buffer));
}

Parameter* ParameterList::find(const std::string& name) {
  for (Parameter& p : parameters_)
    if (p.name == name) return &p;
  return nullptr;
}

Buffer* ParameterList::find_buffer(const std::string& name) {
  for (Buffer& b : buffers_)
    if (b.name == name) return &b;
  return nullptr;
}

int64_t ParameterList::count() const {
  int64_t n = 0;
  for (const Parameter& p : parameters_) n += p.value.numel();
  return n;
}

// --- Forward ----------------------------------------------------------------------------------------------

Forward::Forward(Tape& pass_tape, const ParameterList& list) : tape(pass_tape) {
  // All of them, used or not: a parameter that nothing reaches must get a gradient of zero.
  for (const Parameter& p : list.parameters()) leaves_.push_back(tape.leaf(p.value, p.gradient));
}

}  // namespace eigentrace
