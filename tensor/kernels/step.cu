// The end of a training step, on the device: what happened goes into a ring that the host reads now and then,
// and the next step's number and rates are put in place. With it a step reads nothing from the host, so that
// one captured graph serves every step.
#include "tensor/dispatch.h"
#include "tensor/kernels.h"

namespace eigentrace::kernels {
namespace {

struct EndStep {
  int64_t* state;  // (seed, step)
  const double *loss_sum, *correct, *norm, *table;
  const int64_t* first;
  double *rates, *ring;
  int64_t ring_rows, table_rows, width;

  ET_HD void operator()(int64_t) const {
    const int64_t step = state[1];
    double* row = ring + step % ring_rows * 4;
    const double loss = *loss_sum, n = *norm;
    // Failed is contagious: later steps must not move the weights that the failed one is replayed with.
    const bool before = ring[(step + ring_rows - 1) % ring_rows * 4 + 3] != 0;
    const bool failed = before || loss - loss != 0 || n - n != 0;  // x − x is NaN where x is not finite
    row[0] = loss, row[1] = *correct, row[2] = n, row[3] = failed ? 1.0 : 0.0;
    state[1] = step + 1;
    const int64_t at = step + 1 - *first;
    for (int64_t i = 0; i < width; ++i) {
      const bool inactive = at < 0 || at >= table_rows || (failed && i % 4 == 3);
      rates[i] = inactive ? 0.0 : table[at * width + i];
    }
  }
};

}  // namespace

void end_step(Context& ctx, const StepEnd& s) {
  if (s.ring.rank() != 2 || s.ring.dim(1) != 4 || s.table.rank() != 3 || s.table.dim(2) != 4 ||
      !(s.rates.shape() == s.table.shape().without(0)))
    fail("end_step: ring [R, 4], table [S, groups, 4] and rates [groups, 4] expected, found " +
         to_string(s.ring) + ", " + to_string(s.table) + ", " + to_string(s.rates));
  if (ctx.dry()) return;
  for_each_index(
      ctx, 1,
      EndStep{ctx.step_state().data<int64_t>(), s.loss_sum.data<double>(), s.correct.data<double>(),
              s.norm.data<double>(), s.table.data<double>(), s.first.data<int64_t>(), s.rates.data<double>(),
              s.ring.data<double>(), s.ring.dim(0), s.table.dim(0), s.rates.numel()});
}

}  // namespace eigentrace::kernels
