#pragma once
// A model: input → features → last linear layer. The loss goes through the vocabulary head, so that logits of
// a whole batch exist only when somebody asks for the output.
#include <memory>
#include <vector>

#include "autograd/ops_loss.h"
#include "autograd/ops_sequence.h"
#include "nn/config/model_config.h"
#include "nn/mixer.h"

namespace eigentrace {

/// A batch on the device: tokens or floats.
struct ModelInput {
  Tokens tokens;      ///< ids undefined: floats
  Tensor values;      ///< [B,T,F] in the model's type
  Tensor lengths;     ///< i32 [B] or undefined: masked mean pooling (S4, S5, LRU on padded batches)
  Tensor valid_time;  ///< i32 [1] or undefined: steps beyond are a bucket's rounding
};

/// The last linear layer; weight undefined: the features are the output.
struct OutputLayer {
  Var weight;  ///< [V, D], possibly a transposed view
  Var bias;    ///< [V] or undefined
};

class Model {
 public:
  virtual ~Model() = default;
  Model(const Model&) = delete;

  /// All but the last linear layer: [B,T,D] for an output per position, [B,D] for one per sequence.
  virtual Var features(Forward& forward, const ModelInput& input) const = 0;
  virtual OutputLayer output_layer(const Forward& forward) const = 0;
  /// One per layer, in order.
  virtual std::vector<const Mixer*> mixers() const = 0;
  /// True iff there is one output per position.
  virtual bool per_position() const = 0;
  /// True iff `features` may be asked for labelled rows alone (Forward::only).
  virtual bool leaves_rows_out() const { return false; }
  /// True iff the published model ends in log-softmax (its loss is the same).
  virtual bool log_softmax_output() const { return false; }

  /// What the published model returns: logits or log-softmax, [B,T,V] or [B,C].
  Var output(Forward& forward, const ModelInput& input) const;
  /// Cross-entropy at the labelled rows. `labels.count` decides what it is divided by.
  Loss loss(Forward& forward, const ModelInput& input, const Labels& labels) const;

  ParameterList& parameters() { return parameters_; }
  const ParameterList& parameters() const { return parameters_; }
  const ModelConfig& config() const { return config_; }

 protected:
  Model(ModelConfig config, ParameterList parameters)
      : config_(std::move(config)), parameters_(std::move(parameters)) {}
  ModelConfig config_;
  ParameterList parameters_;
};

/// The model a configuration describes, initialised from `seed`. Errors (usage): impossible sizes.
std::unique_ptr<Model> make_model(const ModelConfig& config, uint64_t seed, DType dtype, Device device = {});
/// One per family (models/<family>.cpp); make_model dispatches to them.
std::unique_ptr<Model> make_model(const TransformerConfig& config, uint64_t seed, DType dtype, Device device);
std::unique_ptr<Model> make_model(const MambaConfig& config, uint64_t seed, DType dtype, Device device);
std::unique_ptr<Model> make_model(const SsmConfig& config, uint64_t seed, DType dtype, Device device);
std::unique_ptr<Model> make_model(const MadModelConfig& config, uint64_t seed, DType dtype, Device device);

}  // namespace eigentrace
