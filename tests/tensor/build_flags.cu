#include "tests/tensor/build_flags.h"

BuildFlags build_flags_of_cu_files() {
#ifdef _OPENMP
  return {__cplusplus, true};
#else
  return {__cplusplus, false};
#endif
}
