#include <cstdio>

#include "autograd/ops_pointwise.h"

int main() {
  using namespace eigentrace;
  Context ctx;
  Tape tape(ctx);
  const Var x = tape.leaf(Tensor::from(std::vector<double>{1.0, 2.0}, {2}));
  tape.backward(unary(Unary::exp, x));
  std::printf("d exp(2)/d2 = %.6f\n", tape.gradient_of(x).to_vector<double>()[1]);
}
