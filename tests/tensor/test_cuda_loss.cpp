// Losses on the GPU (or its emulation) against the CPU in float64.
//
// Bounds are on |x − exact| / ‖exact‖∞. The products' precision shows in the logits (of size √D), so in the
// loss, and in the gradients.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "tensor/error.h"
#include "tensor/kernels.h"
#include "tensor/kernels/head_blocks.h"
#include "tensor/rng.h"
#include "tests/cuda_testing.h"

using namespace eigentrace;
using namespace eigentrace::testing;

namespace {

constexpr Mode modes[] = {{"f64", DType::f64, Precision::fp32, 1e-12},
                          {"fp32", DType::f32, Precision::fp32, 1e-5},
                          {"tf32", DType::f32, Precision::tf32, 5e-3},
                          {"tf32x3", DType::f32, Precision::tf32x3, 1e-5},
                          {"bf16", DType::f32, Precision::bf16, 4e-2}};

/// `labels` of `rows` rows, in order, then three of padding.
struct SomeLabels {
  std::vector<int32_t> where, classes;
  std::vector<float> weights;
  double count;

  SomeLabels(Rng& rng, int64_t rows, int64_t labels, int64_t class_count)
      : count(static_cast<double>(labels)) {
    for (int64_t i = 0; i < labels; ++i) {
      where.push_back(static_cast<int32_t>(i * rows / labels)), weights.push_back(1);
      classes.push_back(static_cast<int32_t>(rng.below(static_cast<uint32_t>(class_count))));
    }
    for (int i = 0; i < 3; ++i) where.push_back(0), classes.push_back(0), weights.push_back(0);
  }
  int64_t size() const { return static_cast<int64_t>(where.size()); }
};

/// Labels and results on a device.
struct Side {
  Context& ctx;
  Tensor rows, labels, weights, count, value, correct, loss_sum, argmax;

  Side(Context& context, const SomeLabels& l, DType dtype)
      : ctx(context),
        rows(Tensor::from(l.where, {l.size()}, context.device())),
        labels(Tensor::from(l.classes, {l.size()}, context.device())),
        weights(Tensor::from(l.weights, {l.size()}, context.device())),
        count(Tensor::from(std::vector<double>{l.count}, {1}, context.device())),
        value(context.empty({}, dtype)),
        correct(context.empty({1}, DType::f64)),
        loss_sum(context.empty({1}, DType::f64)),
        argmax(context.empty({l.size()}, DType::i32)) {}
  kernels::LabelledRows labelled() const { return {rows, labels, weights, count}; }
  kernels::LossResults results() { return {value, correct, loss_sum, argmax}; }
};

double difference(const Tensor& found, const Tensor& exact) {
  synchronise(found.device());
  return relative_error(found.to_vector<double>(), exact.to_vector<double>());
}

void compare_results(const Mode& mode, Side& gpu, Side& cpu) {
  CHECK(difference(gpu.value, cpu.value) < mode.bound);
  CHECK(difference(gpu.loss_sum, cpu.loss_sum) < mode.bound);
  const bool exact = mode.precision == Precision::fp32 || mode.precision == Precision::tf32x3;
  if (!exact) return;  // rounded logits may change places
  CHECK(gpu.correct.item() == cpu.correct.item());
  CHECK(gpu.argmax.to_vector<int32_t>() == cpu.argmax.to_vector<int32_t>());
}

struct HeadSizes {
  int64_t rows, labels, V, D;
  bool bias, turned;
};

struct HeadRun {
  Side side;
  Tensor dx, dw, db;

  HeadRun(Context& ctx, const SomeLabels& l, const HeadSizes& s, DType dtype, const Tensor& x,
          const Tensor& w, const Tensor& b, bool gradients = true)
      : side(ctx, l, dtype) {
    if (gradients) {
      dx = ctx.empty({l.size(), s.D}, dtype);
      dw = s.turned ? ctx.empty({s.D, s.V}, dtype).transpose(0, 1) : ctx.empty({s.V, s.D}, dtype);
      if (s.bias) db = ctx.empty({s.V}, dtype);
    }
    const Tensor weight = w.clone(ctx.device(), dtype);
    kernels::vocabulary_head(ctx, x.clone(ctx.device(), dtype), s.turned ? weight.transpose(0, 1) : weight,
                             s.bias ? b.clone(ctx.device(), dtype) : Tensor(), side.labelled(),
                             side.results(), dx, dw, db);
  }
};

Tensor normal(Rng& rng, const Shape& shape) {
  std::vector<double> values(static_cast<size_t>(shape.numel()));
  for (double& v : values) v = static_cast<float>(rng.normal());
  return Tensor::from(values, shape);
}

void check_head(const Mode& mode, const HeadSizes& s) {
  CAPTURE(mode.name);
  CAPTURE(s.V);
  CAPTURE(s.D);
  CAPTURE(s.labels);
  Rng rng(3);
  const SomeLabels labels(rng, s.rows, s.labels, s.V);
  const Tensor x = normal(rng, {s.rows, s.D}), w = normal(rng, s.turned ? Shape{s.D, s.V} : Shape{s.V, s.D}),
               b = normal(rng, {s.V});
  Context host, device = gpu_context(mode.precision);
  HeadRun exact(host, labels, s, DType::f64, x, w, b), found(device, labels, s, mode.dtype, x, w, b),
      again(device, labels, s, mode.dtype, x, w, b), without(device, labels, s, mode.dtype, x, w, b, false);
  compare_results(mode, found.side, exact.side);
  compare_results(mode, without.side, exact.side);
  CHECK(difference(found.dx, exact.dx) < mode.bound);
  CHECK(difference(found.dw, exact.dw) < mode.bound);
  if (s.bias) CHECK(difference(found.db, exact.db) < mode.bound);
  CHECK(difference(again.dx, found.dx) == 0);
  CHECK(difference(again.dw, found.dw) == 0);
  CHECK(again.side.value.item() == found.side.value.item());
}

}  // namespace

TEST_CASE(
    "cuda losses: vocabulary_head in every precision, odd sizes, with and without bias, either layout") {
  if (!gpu_here()) return;
  for (const Mode& mode : modes) {
    check_head(mode, {1, 1, 1, 1, false, false});
    check_head(mode, {40, 21, 7, 3, true, false});
    check_head(mode, {100, 100, 300, 20, true, true});
    check_head(mode, {260, 150, 132, 36, false, false});
    check_head(mode, {30, 29, 2101, 9, true, false});
  }
}

TEST_CASE("cuda losses: vocabulary_head by blocks of rows gives what it gives at once") {
  if (!gpu_here()) return;
  const int64_t usual = kernels::head_block_bytes;
  kernels::head_block_bytes = 1;  // blocks of 128 rows
  for (const Mode& mode : {modes[0], modes[2]}) {
    check_head(mode, {400, 300, 70, 12, true, false});
    check_head(mode, {300, 253, 33, 5, false, true});
  }
  kernels::head_block_bytes = usual;
}

TEST_CASE("cuda losses: vocabulary_head at a study's size in TF32 is near float32's, the same bits twice") {
  if (!gpu_here() || cuda_is_emulated()) return;  // 9 GFLOP a product
  const HeadSizes s{32768, 4093, 8192, 128, true, false};
  Rng rng(7);
  const SomeLabels labels(rng, s.rows, s.labels, s.V);
  const Tensor x = normal(rng, {s.rows, s.D}), w = normal(rng, {s.V, s.D}), b = normal(rng, {s.V});
  Context exact = gpu_context(Precision::fp32), fast = gpu_context(Precision::tf32);
  HeadRun reference(exact, labels, s, DType::f32, x, w, b), found(fast, labels, s, DType::f32, x, w, b),
      again(fast, labels, s, DType::f32, x, w, b);
  CHECK(difference(found.side.value, reference.side.value) < 5e-3);
  CHECK(difference(found.dx, reference.dx) < 5e-3);
  CHECK(difference(found.dw, reference.dw) < 5e-3);
  CHECK(difference(found.db, reference.db) < 5e-3);
  CHECK(difference(again.db, found.db) == 0);
  CHECK(difference(again.dx, found.dx) == 0);
  CHECK(difference(again.dw, found.dw) == 0);
}

TEST_CASE(
    "cuda losses: vocabulary_head of 128 columns in TF32, any labels and classes in pieces, rows that do not "
    "count, a bad label, each gradient alone") {
  if (!gpu_here()) return;
  for (const HeadSizes& s : {HeadSizes{2000, 997, 1001, 128, true, true},
                             {1300, 301, 5003, 128, false, false},
                             {5000, 4100, 130, 128, true, false},
                             {3000, 2100, 1500, 128, false, false}}) {
    CAPTURE(s.V);
    Rng rng(3);
    SomeLabels labels(rng, s.rows, s.labels, s.V);
    for (size_t i = 0; i + 3 < labels.weights.size(); ++i)
      labels.weights[i] = i % 7 == 3 ? 0 : i % 5 ? 1 : 0.5f;
    const Tensor x = normal(rng, {s.rows, s.D}),
                 w = normal(rng, s.turned ? Shape{s.D, s.V} : Shape{s.V, s.D}), b = normal(rng, {s.V});
    Context host, device = gpu_context(Precision::tf32);
    HeadRun exact(host, labels, s, DType::f64, x, w, b), found(device, labels, s, DType::f32, x, w, b),
        again(device, labels, s, DType::f32, x, w, b);
    CHECK(difference(found.side.value, exact.side.value) < 1e-4);
    CHECK(difference(found.dx, exact.dx) < 5e-3);
    CHECK(difference(found.dw, exact.dw) < 5e-3);
    if (s.bias) CHECK(difference(found.db, exact.db) < 5e-3);
    CHECK(difference(again.dx, found.dx) == 0);
    CHECK(difference(again.dw, found.dw) == 0);
    const std::vector<int32_t> argmax = found.side.argmax.to_vector<int32_t>(),
                               best = exact.side.argmax.to_vector<int32_t>();
    int64_t moved = 0;
    for (size_t i = 0; i < argmax.size(); ++i) {
      moved += argmax[i] != best[i];
      CHECK((argmax[i] == -1) == (labels.weights[i] == 0));
    }
    CHECK(moved <= s.labels / 100);  // rounded logits may change places
    const auto zero_where = [&](const Tensor& dx, int64_t m) {
      for (const double v : dx.slice(0, m, 1).to_vector<double>()) CHECK(v == 0);
    };
    zero_where(found.dx, 3), zero_where(found.dx, labels.size() - 1);

    const Tensor rows = x.clone(device.device(), DType::f32), some = b.clone(device.device(), DType::f32),
                 kernel = w.clone(device.device(), DType::f32),
                 weight = s.turned ? kernel.transpose(0, 1) : kernel;
    const auto run = [&](Side& side, Tensor dx, Tensor dw, Tensor db) {
      kernels::vocabulary_head(device, rows, weight, s.bias ? some : Tensor(), side.labelled(),
                               side.results(), dx, dw, db);
      synchronise(device.device());
    };
    Side side(device, labels, DType::f32);
    const Tensor dx = device.empty({labels.size(), s.D}, DType::f32),
                 dw = device.empty({s.V, s.D}, DType::f32), db = device.empty({s.V}, DType::f32);
    run(side, dx, {}, {});
    CHECK(difference(dx, found.dx) == 0);
    run(side, {}, dw, {});
    CHECK(difference(dw, found.dw) == 0);
    if (s.bias) {
      run(side, {}, {}, db);
      CHECK(difference(db, found.db) == 0);
    }
    CHECK(side.value.item() == found.side.value.item());

    labels.classes[1] = static_cast<int32_t>(s.V);
    Side bad(device, labels, DType::f32);
    run(bad, dx, dw, {});
    CHECK(std::isnan(bad.value.item()));
    zero_where(dx, 1);
    CHECK(difference(dx.slice(0, 2, 5), found.dx.slice(0, 2, 5)) == 0);
    for (const double v : dw.to_vector<double>()) CHECK(std::isfinite(v));
  }
}

TEST_CASE("cuda losses: ties go to the first class, extreme logits stay finite, a bad label gives NaN") {
  if (!gpu_here()) return;
  for (const Precision precision : {Precision::fp32, Precision::tf32}) {
    Context ctx = gpu_context(precision);
    Rng rng(5);
    SomeLabels labels(rng, 4, 4, 200);
    labels.classes[0] = 0, labels.classes[1] = 150, labels.classes[2] = 3, labels.classes[3] = 199;
    std::vector<double> x(4, 1), w(200, 0);
    w[150] = w[170] = 3e4;  // the largest, twice
    x[2] = -1;              // there all others are the largest
    const Tensor weight = Tensor::from(w, {200, 1}).clone(ctx.device(), DType::f32),
                 rows = Tensor::from(x, {4, 1}).clone(ctx.device(), DType::f32);
    Side side(ctx, labels, DType::f32);
    Tensor dx = ctx.empty({labels.size(), 1}, DType::f32), dw = ctx.empty({200, 1}, DType::f32), none;
    kernels::vocabulary_head(ctx, rows, weight, none, side.labelled(), side.results(), dx, dw, none);
    synchronise(ctx.device());
    const std::vector<int32_t> argmax = side.argmax.to_vector<int32_t>();
    CHECK(argmax[0] == 150);
    CHECK(argmax[2] == 0);
    CHECK(argmax[4] == -1);
    CHECK(side.correct.item() == 1);
    for (const Tensor& gradient : {dx, dw})
      for (double v : gradient.to_vector<double>()) CHECK(std::isfinite(v));
    CHECK(std::isfinite(side.value.item()));

    labels.classes[1] = 200;
    Side bad(ctx, labels, DType::f32);
    kernels::vocabulary_head(ctx, rows, weight, none, bad.labelled(), bad.results(), dx, dw, none);
    synchronise(ctx.device());
    CHECK(std::isnan(bad.value.item()));

    Side logits(ctx, labels, DType::f32);
    Tensor z = ctx.empty({4, 200}, DType::f32), kept = ctx.empty({labels.size(), 2}, DType::f32);
    kernels::fill(ctx, z, 1);
    kernels::cross_entropy(ctx, z, logits.labelled(), logits.results(), kept);
    synchronise(ctx.device());
    CHECK(std::isnan(logits.value.item()));
  }
}

TEST_CASE("cuda losses: cross_entropy and log_softmax with their gradients, odd sizes and rows with gaps") {
  if (!gpu_here()) return;
  for (const Mode& mode : {modes[0], modes[1]})
    for (const int64_t V : {1, 10, 63, 100, 300, 1025}) {
      CAPTURE(mode.name);
      CAPTURE(V);
      Rng rng(11);
      const int64_t rows = 50;
      const SomeLabels labels(rng, rows, 31, V);
      const Tensor wide = normal(rng, {rows, V + 3}), one = Tensor::from(std::vector<double>{0.7}, {}),
                   dy = normal(rng, {rows, V});
      Context host, device = gpu_context(mode.precision);
      const auto run = [&](Context& ctx, DType dtype, Side& side) {
        const Device where = ctx.device();
        const Tensor z = wide.clone(where, dtype).slice(1, 1, V);
        Tensor kept = ctx.empty({labels.size(), 2}, dtype), y = ctx.empty({rows, V}, dtype);
        std::vector<Tensor> results;
        for (int i = 0; i < 2; ++i) results.push_back(ctx.empty({rows, V + 2}, dtype).slice(1, 0, V));
        kernels::cross_entropy(ctx, z, side.labelled(), side.results(), kept);
        kernels::cross_entropy_backward(ctx, one.clone(where, dtype), z, side.labelled(), kept, results[0]);
        kernels::log_softmax(ctx, z, y);
        kernels::log_softmax_backward(ctx, y, dy.clone(where, dtype), results[1]);
        results.push_back(y);
        return results;
      };
      Side exact(host, labels, DType::f64), found(device, labels, mode.dtype);
      const std::vector<Tensor> a = run(host, DType::f64, exact), b = run(device, mode.dtype, found);
      compare_results(mode, found, exact);
      for (size_t i = 0; i < a.size(); ++i)
        if (V > 1) CHECK(difference(b[i], a[i]) < mode.bound);
    }
}

TEST_CASE("cuda losses: labelled rows come back among zeros, however many labels are searched") {
  if (!gpu_here()) return;
  Context host, device = gpu_context();
  Rng rng(17);
  const Tensor c = Tensor::from(std::vector<double>{-1.5}, {1});
  for (const auto& [rows, labels] : {std::pair<int64_t, int64_t>{1, 1},
                                     {63, 60},
                                     {300, 7},
                                     {190, 189},
                                     {3000, 900},
                                     {70000, 66000}})  // 66000: a second round of the search
    for (const int64_t width : {4, 3}) {
      if (rows > 3000 && width == 4) continue;
      CAPTURE(rows);
      CAPTURE(width);
      const SomeLabels some(rng, rows, labels, 5);
      const Tensor x = normal(rng, {some.size(), width});
      Side cpu(host, some, DType::f64), gpu(device, some, DType::f32);
      Tensor exact = host.empty({rows, width}, DType::f64), found = device.empty({rows, width}, DType::f32);
      kernels::scatter_labelled(host, c, x, cpu.labelled(), exact);
      kernels::scatter_labelled(device, c.clone(device.device(), DType::f32),
                                x.clone(device.device(), DType::f32), gpu.labelled(), found);
      CHECK(difference(found, exact) < 1e-6);
    }
}

TEST_CASE("cuda losses: no labels at all") {
  if (!gpu_here()) return;
  for (const Precision precision : {Precision::fp32, Precision::tf32}) {
    Context ctx = gpu_context(precision);
    Rng rng(1);
    SomeLabels labels(rng, 2, 1, 5);
    labels.weights[0] = 0, labels.count = 0;
    Side side(ctx, labels, DType::f32);
    Tensor dx = ctx.empty({labels.size(), 3}, DType::f32), dw = ctx.empty({5, 3}, DType::f32), none;
    kernels::vocabulary_head(ctx, Tensor::zeros({2, 3}, DType::f32, ctx.device()),
                             Tensor::zeros({5, 3}, DType::f32, ctx.device()), none, side.labelled(),
                             side.results(), dx, dw, none);
    synchronise(ctx.device());
    CHECK(side.value.item() == 0);
    for (double v : dw.to_vector<double>()) CHECK(v == 0);
  }
}
