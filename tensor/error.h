#pragma once
// Errors. Every message names the function, the argument, what was expected and found, and the fix.
#include <stdexcept>
#include <string>

namespace eigentrace {

/// What the library throws: bad shapes, bad files, bad values. The program ends with exit code 1.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A mistake in what the user asked for (a flag, a configuration key). The program ends with exit code 2.
struct UsageError : Error {
  using Error::Error;
};

[[noreturn]] void fail(const std::string& message);        ///< throws Error
[[noreturn]] void fail_usage(const std::string& message);  ///< throws UsageError

}  // namespace eigentrace
