#pragma once
// The published analysis' reading of a model, taken inside a true forward pass.
#include <functional>

#include "nn/model.h"
#include "spectral/published_reading.h"

namespace eigentrace {

/// From now on, passes with `forward` hand over each layer's published reading as they go. Transformer and
/// Mamba-2: the projections of layer l applied to the OUTPUT of block l, without LayerNorm and convolution.
/// LRU, S4 (channel 1 alone), S5 (exp(ΛΔ), unclipped): from the layer itself. Mamba-1: nothing is handed
/// over. Hooks that `forward` already has are called first. Call it last, and keep model and forward alive.
void watch_published(Forward& forward, const Model& model,
                     std::function<void(int layer, LayerSpectrum spectrum)> found);

}  // namespace eigentrace
