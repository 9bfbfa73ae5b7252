#include "nn/model.h"
#include "tensor/error.h"

namespace eigentrace {

std::unique_ptr<Model> make_model(const SsmConfig& config, uint64_t, DType, Device) {
  fail_usage("model.layer: this build has no " + layer_name(config) + "; expected transformer");
}

}  // namespace eigentrace
