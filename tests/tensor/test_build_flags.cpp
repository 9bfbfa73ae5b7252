#include <doctest/doctest.h>

#include "tests/tensor/build_flags.h"

// With nvcc neither the standard nor OpenMP's flag reaches a .cu file by itself: kernels would be serial.
TEST_CASE("build: .cu files see C++20 and OpenMP") {
  CHECK(build_flags_of_cu_files().cplusplus >= 202002L);
  CHECK(build_flags_of_cu_files().openmp);
}
