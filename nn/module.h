#pragma once
// Parameters, and what a pass through a model is given besides its input.
#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "autograd/tape.h"
#include "tensor/rng.h"

namespace eigentrace {

/// A trained tensor: memory of its own, outside the step's.
struct Parameter {
  std::string name;         ///< the published one, e.g. "layers.0.attention.Wqkv.weight"
  Tensor value;             ///< contiguous
  Tensor gradient;          ///< same shape and type; every backward pass overwrites it
  bool is_complex = false;  ///< the last axis is (re, im)
  int index = 0;            ///< place in its ParameterList
};

/// A tensor that is kept but not trained (running statistics).
struct Buffer {
  std::string name;
  Tensor value;
};

/// Fills a parameter's values, in row-major order, from a stream of its own.
using Initialiser = std::function<void(Rng& rng, std::vector<double>& values)>;
Initialiser init_constant(double value);
Initialiser init_uniform(double bound);             ///< U(−bound, bound)
Initialiser init_uniform(double low, double high);  ///< U(low, high)
Initialiser init_normal(double deviation);          ///< N(0, deviation²)
/// Normal of mean 0 and deviation σ = √(1/fan_in)/0.87963 cut at ±2σ: its deviation is √(1/fan_in).
Initialiser init_lecun_normal(int64_t fan_in);
Initialiser init_values(std::vector<double> given);

/// Parameters and buffers of a model, in the order in which it made them. Addresses stay valid.
class ParameterList {
 public:
  ParameterList(uint64_t seed, DType dtype, Device device) : seed_(seed), dtype_(dtype), device_(device) {}
  ParameterList(ParameterList&&) = default;

  /// Makes a parameter. Its values are drawn in double on the host from Rng(seed, hash of the name): they
  /// depend neither on the order of construction nor on device or type. Error: the name is taken.
  Parameter* add(const std::string& name, const Shape& shape, const Initialiser& initialise,
                 bool is_complex = false);
  Buffer* add_buffer(const std::string& name, const Shape& shape, double value);
  /// The stream parameter `name` draws from.
  Rng rng(const std::string& name) const;

  std::deque<Parameter>& parameters() { return parameters_; }
  const std::deque<Parameter>& parameters() const { return parameters_; }
  std::deque<Buffer>& buffers() { return buffers_; }
  const std::deque<Buffer>& buffers() const { return buffers_; }
  Parameter* find(const std::string& name);  ///< null if there is none
  Buffer* find_buffer(const std::string& name);
  int64_t count() const;  ///< number of trained numbers
  uint64_t seed() const { return seed_; }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }

 private:
  uint64_t seed_;
  DType dtype_;
  Device device_;
  std::deque<Parameter> parameters_;
  std::deque<Buffer> buffers_;
};

class Mixer;
struct Terms;
struct Mixed;
struct Labels;

/// Settings of one pass. A pass makes one leaf per parameter, however often the parameter is used.
struct Forward {
  Forward(Tape& pass_tape, const ParameterList& list);

  Tape& tape;
  bool dropout = false;           ///< draw dropout masks
  bool encoder_dropout = true;    ///< after the encoder too (the published reading draws none there)
  bool batch_statistics = false;  ///< BatchNorm: the batch's own statistics, running ones updated
  /// Sees every mixer right after its recurrence, inside the true pass. A defined result replaces mixed.y.
  std::function<Var(int layer, const Mixer& mixer, const Terms& terms, const Mixed& mixed)> on_mixer;
  /// Sees what goes into a mixer and what comes out of it, projections included (both [B,T,D]).
  std::function<void(int layer, const Var& input, const Var& output)> on_mixer_output;
  /// Sees the output of every block, residual, gate and post-norm included.
  std::function<void(int layer, const Var& output)> on_block;

  /// Rows that the loss reads. Set by Model::loss, for models that leave all others out behind the recurrence
  /// of their last mixer, number `last`: from there on features are [1,M,D]. Null: every row.
  const Labels* only = nullptr;
  int last = -1;
  /// The rows that count behind the recurrence of mixer `layer`. Null: all of them.
  const Labels* wanted(int layer) const { return layer == last ? only : nullptr; }
  /// x, a value behind the recurrence of mixer `layer`, or its labelled rows.
  Var wanted_rows(int layer, const Var& x) const;

  Context& ctx() const { return tape.ctx(); }
  /// The parameter on this tape; undefined for null (an absent bias).
  Var operator()(const Parameter* parameter) const {
    return parameter ? leaves_[static_cast<size_t>(parameter->index)] : Var();
  }
  /// The rate to use: 0 where dropout is off.
  double rate(double p) const { return dropout ? p : 0.0; }

 private:
  std::vector<Var> leaves_;
};

/// y = x Wᵀ + b under the names `name`.weight [out, in], `name`.bias [out].
struct Linear {
  Parameter* weight = nullptr;
  Parameter* bias = nullptr;  ///< null: none
  Linear() = default;
  /// Weight and bias U(±1/√in).
  Linear(ParameterList& list, const std::string& name, int64_t in, int64_t out, bool with_bias = true);
  Var operator()(const Forward& forward, const Var& x) const;
};

/// y = x K + b under the names `name`.kernel [in, out] (LeCun normal), `name`.bias [out] (0).
struct DenseLayer {
  Parameter* kernel = nullptr;
  Parameter* bias = nullptr;
  DenseLayer() = default;
  DenseLayer(ParameterList& list, const std::string& name, int64_t in, int64_t out);
  Var operator()(const Forward& forward, const Var& x) const;
};

/// Causal depthwise convolution and SiLU under `name`.weight [C,1,K], `name`.bias [C], both U(±1/√K).
struct ShortConvolution {
  Parameter* weight = nullptr;  ///< null: identity
  Parameter* bias = nullptr;
  ShortConvolution() = default;
  ShortConvolution(ParameterList& list, const std::string& name, int64_t channels, int64_t taps);
  Var operator()(const Forward& forward, const Var& x) const;
};

/// LayerNorm under `name`.weight (1) and `name`.bias (0), or other last names.
struct LayerNorm {
  Parameter* weight = nullptr;
  Parameter* bias = nullptr;
  double epsilon = 1e-5;
  LayerNorm() = default;
  LayerNorm(ParameterList& list, const std::string& name, int64_t width, double eps = 1e-5,
            const char* weight_name = "weight");
  Var operator()(const Forward& forward, const Var& x) const;
};

}  // namespace eigentrace
