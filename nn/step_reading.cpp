#include "nn/step_reading.h"

#include <algorithm>
#include <cstring>

#include "tensor/error.h"
#include "tensor/kernels.h"

namespace eigentrace {
namespace {

constexpr size_t alignment = 256, most_blocks = 64;

}  // namespace

StepReading::StepReading(Device device, int64_t sequences)
    : device_(device), sequences_(sequences), readback_(device) {}

bool StepReading::choose(const std::vector<int64_t>& key) {
  if (blocks_.size() >= most_blocks && !blocks_.contains(key)) blocks_.clear();
  chosen_ = &blocks_[key];
  if (!chosen_->memory) *chosen_ = {};
  return chosen_->memory != nullptr;
}

void StepReading::attach(Forward& forward) {
  next_ = 0;
  forward.on_mixer = [this, &ctx = forward.ctx(), other = std::move(forward.on_mixer)](
                         int layer, const Mixer& mixer, const Terms& terms, const Mixed& mixed) {
    copy(ctx, layer, mixer, terms, mixed);
    return other ? other(layer, mixer, terms, mixed) : Var();
  };
}

void StepReading::copy(Context& ctx, int layer, const Mixer& mixer, const Terms& terms, const Mixed& mixed) {
  for (const LambdaSource& source : mixer.lambda_sources(terms, mixed)) {
    const Tensor from = source.per_step
                            ? source.values.slice(0, 0, std::min(sequences_, source.values.dim(0)))
                            : source.values;
    if (ctx.dry()) {
      if (chosen_->memory) continue;
      chosen_->parts.push_back({layer, &mixer, from.shape(), from.dtype(), source.per_step, chosen_->bytes});
      chosen_->bytes += (from.bytes() + alignment - 1) / alignment * alignment;
      continue;
    }
    const Part& part = chosen_->parts.at(next_++);
    Tensor to(chosen_->memory, part.dtype, part.shape,
              static_cast<int64_t>(part.offset / size_of(part.dtype)));
    kernels::copy(ctx, from, to);
  }
}

void StepReading::allocate() {
  if (chosen_->memory) return;
  chosen_->memory = std::make_shared<Storage>(device_, chosen_->bytes);
  readback_.reserve(chosen_->bytes);
}

int64_t StepReading::address() const { return reinterpret_cast<int64_t>(chosen_->memory->data()); }

void StepReading::after(Context& ctx) { readback_.fetch(ctx, chosen_->memory->data(), chosen_->bytes); }

std::vector<StepReading::Layer> StepReading::wait(int64_t steps) const {
  const std::byte* bytes = readback_.wait();
  std::vector<Layer> layers;
  for (const Part& part : chosen_->parts) {
    Tensor whole = Tensor::zeros(part.shape, part.dtype);
    std::memcpy(whole.raw(), bytes + part.offset, whole.bytes());
    const bool cut = part.per_step && steps > 0 && steps < whole.dim(1);
    if (layers.empty() || layers.back().layer != part.layer) layers.push_back({part.layer, part.mixer, {}});
    layers.back().sources.push_back(cut ? whole.slice(1, 0, steps) : whole);
  }
  return layers;
}

}  // namespace eigentrace
