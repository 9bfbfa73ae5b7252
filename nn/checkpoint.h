#pragma once
// Weights and training state in one safetensors file: parameters and buffers under their published names, so
// that other programs can read them; moments and sums of the optimiser beside them; the rest in the metadata:
//
//   format       eigentrace-checkpoint/1
//   config       the resolved configuration (YAML)
//   made_by      the program's version, commit and compiler
//   symbols      JSON: what the task calls its tokens, if they have names
//   state        JSON: step, optimiser's steps, plateau, the trainer's numbers (training only)
//
// Random numbers need no state: masks and order are functions of (seed, step).
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "nn/config/config.h"
#include "nn/model.h"
#include "nn/optimiser.h"
#include "nn/schedule.h"

namespace eigentrace {

/// Where training stands, besides tensors.
struct TrainState {
  int64_t step = 0;  ///< steps done
  Plateau plateau;
  std::map<std::string, double> numbers;  ///< what else the trainer wants back, kept exactly
};

/// What a file says about itself, besides its configuration.
struct CheckpointNotes {
  std::vector<std::string> symbols = {};  ///< Task::symbols, so that other data are not taken for its own
  std::string made_by = {};               ///< program, version and commit
};

/// Writes the weights (and buffers) whole or not at all. Errors: the system's own.
void save_weights(const std::string& path, const Model& model, const RunConfig& config,
                  const CheckpointNotes& notes = {});
/// Weights, optimiser and state: going on from it gives the bits of an uninterrupted run.
void save_checkpoint(const std::string& path, const Model& model, const Optimiser& optimiser,
                     const RunConfig& config, const TrainState& state, const CheckpointNotes& notes = {});

/// Reads weights and buffers into the model, converting between f32 and f64. Errors: a damaged file; tensors
/// that are missing, that the model does not have, or of another shape, by name.
void load_weights(const std::string& path, Model& model);
/// Also the optimiser and its step count. Error: a file of weights alone.
TrainState load_checkpoint(const std::string& path, Model& model, Optimiser& optimiser);

/// The configuration a file was made with. Error: it has none.
RunConfig checkpoint_config(const std::string& path);

/// The symbols a file was saved with; empty: none.
std::vector<std::string> checkpoint_symbols(const std::string& path);

/// What a file is, its checksum compared. Error: a damaged file; another format.
struct CheckpointAbout {
  std::string made_by;  ///< empty: an older file, or another program's
  std::optional<RunConfig> config;
  std::optional<TrainState> state;   ///< of a checkpoint of training
  bool checksum = false;             ///< false: the file has none (other programs' files)
  int64_t tensors = 0, weights = 0;  ///< tensors, and numbers in those that are not the optimiser's
  uint64_t bytes = 0;
  std::string dtype;                    ///< of the first tensor, "F32"
  std::vector<std::string> not_finite;  ///< tensors with NaN or infinity
};
CheckpointAbout describe_checkpoint(const std::string& path);

/// A model and the configuration it was trained with, from weights or a checkpoint.
struct LoadedModel {
  RunConfig config;
  std::unique_ptr<Model> model;
  int64_t step = 0;
};
/// Error: the file has no configuration.
LoadedModel load_model(const std::string& path, DType dtype, Device device = {});

}  // namespace eigentrace
