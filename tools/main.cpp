#include "tensor/blas.h"
#include "tools/commands.h"

int main(int argc, char** argv) {
  eigentrace::ensure_fast_blas(argc, argv);
  return eigentrace::run_program(argc, argv);
}
