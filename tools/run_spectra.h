#pragma once
// The spectra of a run on disk: which weights, which batch, where the results go.
#include <string>

#include "nn/config/config.h"
#include "tools/device_batch.h"
#include "tools/run_folder.h"
#include "tools/spectrum.h"

namespace eigentrace {

struct RunSpectraOptions {
  Device device;
  int64_t batch = 0;  ///< sequences; 0: the configuration's, or the study's for its reading
  SpectrumRequest request;
  bool quiet = false;  ///< no progress on long eigenproblems
};

/// Reads the spectra of the weights in `weights` (a checkpoint) on the first sequences of the unshuffled test
/// split. The pass runs in the type spectral.dtype asks for. `stage` is only written down.
SpectrumRecord weights_spectra(const std::string& weights, const std::string& stage,
                               const RunSpectraOptions& options);

/// The batch that a configuration's spectra are read on, onto the device.
void load_spectrum_batch(DeviceBatch& data, const RunConfig& config, const Task& task, int64_t examples);
/// What spectral.reading asks for.
void ask_for(Reading reading, SpectrumRequest& request);

/// weights_spectra of a run's stage ("initial": its first weights, "trained": its checkpoint), in the reading
/// of its configuration unless options.request asks for another, written to the folder.
SpectrumRecord run_spectra(const RunFolder& folder, const std::string& stage,
                           const RunSpectraOptions& options);

}  // namespace eigentrace
