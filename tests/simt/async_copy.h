#pragma once
// cp.async: a thread's copies from global to shared memory. Each takes effect at once or, as a coin falls,
// not before its thread waits for its group, so that a missing commit or wait, and room taken too early,
// change results.
#include <cstddef>

namespace simt {

/// `bytes` from `from`, then zeros up to `room` (16 at most).
void copy_async(void* to, const void* from, size_t bytes, size_t room);
void copy_commit();
/// Until at most `pending` committed groups are under way.
void copy_wait(size_t pending);

}  // namespace simt
