#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include "tensor/blas.h"
#include "tools/commands.h"

int main(int argc, char** argv) {
  eigentrace::ensure_fast_blas(argc, argv);
  // Given a subcommand it is the program itself: what tests of sweeps start as their children.
  if (argc > 1 && argv[1][0] != '-') return eigentrace::run_program(argc, argv);
  return doctest::Context(argc, argv).run();
}
