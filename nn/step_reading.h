#pragma once
// What the eigenvalues of every layer are a function of, copied out of a training step's own pass. On a GPU
// the copies are nodes of the captured step; they cross the bus beside the steps that follow.
#include <map>
#include <memory>
#include <vector>

#include "nn/mixer.h"
#include "tensor/readback.h"

namespace eigentrace {

class StepReading {
 public:
  /// Of the first `sequences` of a batch, or all of fewer.
  StepReading(Device device, int64_t sequences);

  struct Layer {
    int layer = 0;
    const Mixer* mixer = nullptr;
    std::vector<Tensor> sources;  ///< Mixer::lambda_sources, on the host
  };
  /// Of the last step that was read, each sequence's first `steps` (0: all). Waits until that step has made
  /// them. From any thread, before the next step that is read.
  std::vector<Layer> wait(int64_t steps = 0) const;

  // For TrainStep, in this order.
  /// Chooses the memory of batches with this shape_key. False: a dry pass must say first how much there is.
  bool choose(const std::vector<int64_t>& key);
  /// Copies the sources inside the pass; in a dry run notes their sizes.
  void attach(Forward& forward);
  /// After the dry pass: asks for the memory. Error: out of memory, with the size asked for.
  void allocate();
  /// Where the chosen memory lies; captured work bakes it in.
  int64_t address() const;
  size_t bytes() const { return chosen_->bytes; }
  void before(Context& ctx) { readback_.hold(ctx); }
  void after(Context& ctx);

 private:
  struct Part {
    int layer = 0;
    const Mixer* mixer = nullptr;
    Shape shape;
    DType dtype = DType::f32;
    bool per_step = false;
    size_t offset = 0;
  };
  struct Block {
    std::vector<Part> parts;
    size_t bytes = 0;
    std::shared_ptr<Storage> memory;
  };
  void copy(Context& ctx, int layer, const Mixer& mixer, const Terms& terms, const Mixed& mixed);

  Device device_;
  int64_t sequences_;
  std::map<std::vector<int64_t>, Block> blocks_;
  Block* chosen_ = nullptr;
  size_t next_ = 0;  // part of the chosen block
  Readback readback_;
};

}  // namespace eigentrace
