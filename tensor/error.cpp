#include "tensor/error.h"

namespace eigentrace {

// Thrown from a .cpp so that .cu files need neither fmt nor the exception machinery inlined.
void fail(const std::string& message) { throw Error(message); }
void fail_usage(const std::string& message) { throw UsageError(message); }

}  // namespace eigentrace
