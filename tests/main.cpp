#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include "tensor/blas.h"

int main(int argc, char** argv) {
  eigentrace::ensure_fast_blas(argc, argv);
  return doctest::Context(argc, argv).run();
}
