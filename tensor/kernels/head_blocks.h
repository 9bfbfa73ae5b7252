#pragma once
#include <cstdint>

namespace eigentrace::kernels {

/// Bytes of logits that the vocabulary head keeps at a time on CUDA: rows go through it in blocks that fit
/// (of at least 128 rows). The memory of a step and the order of sums depend on it: not to be changed during
/// a run.
inline int64_t head_block_bytes = int64_t{256} << 20;

}  // namespace eigentrace::kernels
