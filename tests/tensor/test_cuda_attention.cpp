// Softmax attention on the GPU (or its emulation): every precision against the CPU in double, within stated
// bounds.
#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "tensor/error.h"
#include "tensor/gemm_outer_wgmma.h"
#include "tensor/kernels.h"
#include "tensor/rng.h"
#include "tensor/worse.h"

using namespace eigentrace;

namespace {

struct Sizes {
  int64_t B, T, H, N, P;
  double dropout = 0;
  bool dense = false;      ///< else q, k, v and their gradients are parts of one projection
  int64_t odd_offset = 0;  ///< of that projection, in elements: no alignment
};
struct Wanted {
  bool q = true, k = true, v = true;
};
using Values = std::vector<double>;
struct Results {
  Values y, lse, dq, dk, dv;
  bool operator==(const Results&) const = default;
};

Values normal_values(int64_t n, uint64_t seed) {
  Rng rng(seed, 5);
  Values values(static_cast<size_t>(n));
  for (double& v : values) v = rng.normal();
  return values;
}

struct Parts {
  Tensor whole, q, k, v;
};
Parts parts_of(const Sizes& s, const Values& values, Device device, DType dtype) {
  const int64_t width = s.odd_offset + s.H * (2 * s.N + s.P);
  const Tensor whole = Tensor::from(values, {s.B, s.T, width}).clone(device, dtype);
  const auto part = [&](int64_t start, int64_t n) {
    const Tensor x = whole.slice(2, s.odd_offset + start, s.H * n).reshape({s.B, s.T, s.H, n});
    return s.dense ? Tensor::from(x.to_vector<double>(), x.shape()).clone(device, dtype) : x;
  };
  return {whole, part(0, s.N), part(s.H * s.N, s.N), part(2 * s.H * s.N, s.P)};
}

Values inputs_of(const Sizes& s) {
  return normal_values(s.B * s.T * (s.odd_offset + s.H * (2 * s.N + s.P)), 1);
}

Results run(Context& ctx, const Sizes& s, DType dtype, const Values& values, const Wanted& wanted = {}) {
  const Device device = ctx.device();
  ctx.set_step(11, 4);
  const double scale = 1 / std::sqrt(double(s.N));
  const Parts x = parts_of(s, values, device, dtype);
  const Parts dx = parts_of(s, Values(values.size(), 7.0), device, dtype);
  const Tensor dy = Tensor::from(normal_values(x.v.numel(), 2), x.v.shape()).clone(device, dtype);
  Tensor y = ctx.empty(x.v.shape(), dtype), lse = ctx.empty(x.q.shape().without(3), dtype);
  kernels::softmax_attention(ctx, x.q, x.k, x.v, scale, s.dropout, 9, y, lse);
  Tensor dq = wanted.q ? dx.q : Tensor(), dk = wanted.k ? dx.k : Tensor(), dv = wanted.v ? dx.v : Tensor();
  if (wanted.q || wanted.k || wanted.v)
    kernels::softmax_attention_backward(ctx, x.q, x.k, x.v, y, lse, dy, scale, s.dropout, 9, dq, dk, dv);
  const auto read = [](const Tensor& t) { return t.defined() ? t.to_vector<double>() : Values(); };
  return {read(y), read(lse), read(dq), read(dk), read(dv)};
}

/// Largest difference relative to the largest value, at least 1.
double difference(const Values& a, const Values& b) {
  double scale = 1, worst = 0;
  for (const double x : b) scale = std::max(scale, std::abs(x));
  if (a.size() != b.size()) return INFINITY;
  for (size_t i = 0; i < a.size(); ++i) {
    const double d = std::abs(a[i] - b[i]);
    worst = worse(worst, d);
  }
  return worst / scale;
}
double difference(const Results& a, const Results& b) {
  double worst = difference(a.y, b.y);
  worst = worse(worst, difference(a.lse, b.lse));
  worst = worse(worst, difference(a.dq, b.dq));
  worst = worse(worst, difference(a.dk, b.dk));
  return worse(worst, difference(a.dv, b.dv));
}

struct Mode {
  std::string name;
  DType dtype;
  Precision precision;
  double bound;  ///< of errors relative to the largest value of a result
};
/// Roundings of 2⁻²⁴ (float32), 2⁻¹¹ (TF32), 2⁻⁹ (bf16); a few of them meet in a result. tf32x3: tensor cores
/// cut their sums off instead of rounding them, half of 2⁻²³ each of the 3 T/8 times on average and always
/// the same way: 7e-6 for T = 300.
const Mode modes[] = {{"f64", DType::f64, Precision::fp32, 1e-12},
                      {"fp32", DType::f32, Precision::fp32, 4e-6},
                      {"tf32x3", DType::f32, Precision::tf32x3, 1e-5},
                      {"tf32", DType::f32, Precision::tf32, 3e-3},
                      {"bf16", DType::f32, Precision::bf16, 1.5e-2}};

Context poisoned(Device device) {
  Context ctx(device, device.is_cuda() ? size_t{256} << 20 : 0);
  ctx.poison = true;
  return ctx;
}

const Sizes sizes[] = {{2, 1, 2, 5, 5},
                       {1, 63, 2, 16, 32},
                       {1, 200, 1, 24, 24},
                       {1, 200, 2, 16, 128},
                       {1, 140, 1, 128, 128},
                       {2, 100, 2, 32, 32, 0.3},
                       {1, 300, 1, 16, 32, 0.1},
                       {1, 63, 1, 5, 16, 0.1},
                       {1, 150, 2, 16, 20, 0.1, false, 1},
                       {1, 130, 2, 64, 64, 0.0, true},
                       {1, 290, 1, 13, 100, 0.1},
                       {1, 129, 2, 100, 128, 0.2},
                       {1, 333, 1, 16, 128, 0.0, false, 1},
                       {1, 70, 1, 140, 200, 0.1}};

}  // namespace

TEST_CASE("cuda attention: the CPU's values, gradients and masks in every precision") {
  if (cuda_device_count() == 0) return;
  Context cpu = poisoned({}), gpu = poisoned(parse_device("cuda"));
  for (const Mode& mode : modes) {
    SUBCASE(mode.name.c_str()) {
      for (const Sizes& s : sizes) {
        const Values values = inputs_of(s);
        const Results exact = run(cpu, s, DType::f64, values);
        CAPTURE(s.T);
        CAPTURE(s.N);
        CAPTURE(s.P);
        gpu.precision = mode.precision;
        const Results found = run(gpu, s, mode.dtype, values);
        CHECK(difference(found.y, exact.y) < mode.bound);
        CHECK(difference(found.lse, exact.lse) < mode.bound);
        CHECK(difference(found.dq, exact.dq) < mode.bound);
        CHECK(difference(found.dk, exact.dk) < mode.bound);
        CHECK(difference(found.dv, exact.dv) < mode.bound);
      }
    }
  }
}

TEST_CASE("cuda attention: two runs give the same bits, and gradients do not depend on which are wanted") {
  if (cuda_device_count() == 0) return;
  Context gpu = poisoned(parse_device("cuda"));
  const Sizes s{1, 150, 2, 16, 32, 0.1};
  const Values values = inputs_of(s);
  for (const Mode& mode : modes) {
    CAPTURE(mode.name);
    gpu.precision = mode.precision;
    const Results all = run(gpu, s, mode.dtype, values);
    CHECK(run(gpu, s, mode.dtype, values) == all);
    CHECK(run(gpu, s, mode.dtype, values, {true, false, false}).dq == all.dq);
    CHECK(run(gpu, s, mode.dtype, values, {false, true, false}).dk == all.dk);
    CHECK(run(gpu, s, mode.dtype, values, {false, false, true}).dv == all.dv);
  }
}

TEST_CASE("cuda attention: more sequences than are taken together or have a processor, wide batches") {
  if (cuda_device_count() == 0) return;
  Context cpu = poisoned({}), gpu = poisoned(parse_device("cuda"));
  for (const double dropout : {0.0, 0.1}) {
    const Sizes s{30, 130, 3, 6, 12, dropout};
    const Values values = inputs_of(s);
    const Results exact = run(cpu, s, DType::f64, values);
    for (const Mode& mode : {modes[3], modes[4]}) {
      CAPTURE(mode.name);
      gpu.precision = mode.precision;
      CHECK(difference(run(gpu, s, DType::f32, values), exact) < mode.bound);
    }
  }
}

TEST_CASE("cuda attention: later inputs do not change a bit of earlier outputs") {
  if (cuda_device_count() == 0) return;
  Context gpu = poisoned(parse_device("cuda"));
  const Sizes s{1, 200, 1, 16, 32, 0.1};
  const Values values = inputs_of(s);
  for (const Mode& mode : modes)
    for (const int64_t t : {0, 37, 130}) {
      CAPTURE(mode.name);
      CAPTURE(t);
      gpu.precision = mode.precision;
      const int64_t width = s.H * (2 * s.N + s.P);
      Values changed = values;
      for (size_t i = static_cast<size_t>((t + 1) * width); i < changed.size(); ++i)
        changed[i] = 3 - changed[i];
      const Wanted none{false, false, false};
      const Results a = run(gpu, s, mode.dtype, values, none), b = run(gpu, s, mode.dtype, changed, none);
      const auto head = [&](const Values& x, int64_t row) {
        return Values(x.begin(), x.begin() + (t + 1) * row);
      };
      CHECK(head(a.y, s.P) == head(b.y, s.P));
      CHECK(head(a.lse, 1) == head(b.lse, 1));
      CHECK(a.y != b.y);
    }
}

TEST_CASE("cuda attention: attention_precision overrides precision") {
  if (cuda_device_count() == 0) return;
  Context gpu = poisoned(parse_device("cuda"));
  const Sizes s{1, 63, 1, 16, 32};
  const Values values = inputs_of(s);
  gpu.precision = Precision::fp32;
  const Results fp32 = run(gpu, s, DType::f32, values);
  gpu.precision = Precision::tf32, gpu.attention_precision = Precision::fp32;
  CHECK(run(gpu, s, DType::f32, values) == fp32);
  gpu.attention_precision = Precision::bf16;
  const Results bf16 = run(gpu, s, DType::f32, values);
  CHECK(difference(bf16, fp32) > 1e-4);
  CHECK(difference(bf16, fp32) < 1.5e-2);
}

namespace {

constexpr int64_t padding = 5;
/// Rows b T + t of each sequence that `picks` says, and padding.
struct Picked {
  Tensor rows, labels, weights, count;
  kernels::LabelledRows get() const { return {rows, labels, weights, count}; }
};
Picked rows_at(int64_t B, int64_t T, bool (*picks)(int64_t b, int64_t t), Device device) {
  std::vector<int32_t> rows;
  for (int64_t r = 0; r < B * T; ++r)
    if (picks(r / T, r % T)) rows.push_back(static_cast<int32_t>(r));
  std::vector<float> weights(rows.size(), 1.0f);
  rows.insert(rows.end(), padding, 0), weights.resize(rows.size());
  const auto M = static_cast<int64_t>(rows.size());
  return {Tensor::from(rows, {M}, device), Tensor::from(std::vector<int32_t>(rows.size()), {M}, device),
          Tensor::from(weights, {M}, device), Tensor::from(std::vector<double>{1}, {1}, device)};
}

/// All queries in both passes, y gathered and dy scattered; all forwards; these alone where that exists.
enum class Queries { all, all_forwards, rows_alone };

/// y, lse: at those rows.
Results run_rows(Context& ctx, const Sizes& s, DType dtype, const Values& values, const Picked& picked,
                 Queries queries, const Wanted& wanted = {}) {
  const Device device = ctx.device();
  ctx.set_step(11, 4);
  const double scale = 1 / std::sqrt(double(s.N));
  const Parts x = parts_of(s, values, device, dtype);
  const Parts dx = parts_of(s, Values(values.size(), 7.0), device, dtype);
  const Shape some{1, picked.rows.numel(), s.H, s.P};
  const Tensor dy = Tensor::from(normal_values(some.numel(), 2), some).clone(device, dtype);
  const bool fast =
      ctx.precision == Precision::bf16 && s.dropout == 0 && s.P > 64 && s.N > 16 && wgmma_exists(ctx);
  CHECK(kernels::attends_rows_alone(ctx, x.q, x.v, scale, s.dropout, some[1]) == fast);
  Tensor y, lse;
  if (!fast || queries != Queries::rows_alone) {
    y = ctx.empty(x.v.shape(), dtype), lse = ctx.empty(x.q.shape().without(3), dtype);
    kernels::softmax_attention(ctx, x.q, x.k, x.v, scale, s.dropout, 9, y, lse);
  }
  Tensor dq = wanted.q ? dx.q : Tensor(), dk = wanted.k ? dx.k : Tensor(), dv = wanted.v ? dx.v : Tensor();
  Tensor rows = ctx.empty(some, dtype);
  const kernels::AttendedRows kept =
      kernels::attended_rows(ctx, x.q, x.k, x.v, scale, s.dropout, y, lse, picked.get(), rows);
  CHECK(kept.spans.defined() == fast);
  if (queries == Queries::all) {
    Tensor all = ctx.empty(y.shape(), dtype), as_rows = all.reshape({s.B * s.T, s.H * s.P});
    kernels::scatter_labelled(ctx, {}, dy.reshape({some[1], s.H * s.P}), picked.get(), as_rows);
    kernels::softmax_attention_backward(ctx, x.q, x.k, x.v, y, lse, all, scale, s.dropout, 9, dq, dk, dv);
  } else {
    kernels::attended_rows_backward(ctx, x.q, x.k, x.v, kept, dy, picked.get(), scale, s.dropout, 9, dq, dk,
                                    dv);
  }
  const auto read = [](const Tensor& t) { return t.defined() ? t.to_vector<double>() : Values(); };
  Values row_lse = read(kept.lse);
  const auto count = static_cast<size_t>((some[1] - padding) * s.H);
  if (!fast) {
    const std::vector<int32_t> at = picked.rows.to_vector<int32_t>();
    const Values all = std::exchange(row_lse, Values(count));
    for (size_t i = 0, H = static_cast<size_t>(s.H); i < count; ++i)
      row_lse[i] = all[static_cast<size_t>(at[i / H]) * H + i % H];
  }
  row_lse.resize(count);
  return {read(rows), row_lse, read(dq), read(dk), read(dv)};
}

/// More than a tile of the first keys' queries alone; none; all; every third; the last one.
bool uneven(int64_t b, int64_t t) {
  return b == 0 ? t < 70 : b == 1 ? false : b == 2 ? true : b == 3 ? t % 3 == 2 : t == 149;
}
bool everywhere(int64_t, int64_t) { return true; }
bool nowhere(int64_t, int64_t) { return false; }

}  // namespace

TEST_CASE("cuda attention rows: y has the bits of all queries', gradients are those of dy among zeros") {
  if (cuda_device_count() == 0) return;
  Context gpu = poisoned(parse_device("cuda"));
  struct Case {
    Sizes sizes;
    bool (*picks)(int64_t, int64_t);
  };
  const Case cases[] = {{{5, 150, 1, 50, 100}, uneven},      {{3, 63, 2, 128, 128, 0.0, true}, uneven},
                        {{1, 1, 1, 128, 128}, everywhere},   {{2, 130, 1, 128, 128, 0.0, false, 1}, nowhere},
                        {{1, 300, 1, 128, 128}, everywhere}, {{5, 150, 1, 30, 70, 0.1}, uneven}};
  for (const Case& c : cases)
    for (const Mode& mode : {modes[0], modes[4]}) {
      CAPTURE(mode.name);
      CAPTURE(c.sizes.T);
      CAPTURE(c.sizes.N);
      const bool first = c.sizes.N == 50;
      if (mode.dtype == DType::f64 && !first) continue;
      gpu.precision = mode.precision;
      const Picked rows = rows_at(c.sizes.B, c.sizes.T, c.picks, gpu.device());
      const Values values = inputs_of(c.sizes);
      const auto run = [&](Queries queries, const Wanted& wanted = {}) {
        return run_rows(gpu, c.sizes, mode.dtype, values, rows, queries, wanted);
      };
      const Results all = run(Queries::all), some = run(Queries::rows_alone);
      CHECK(some.y == all.y);
      CHECK(some.lse == all.lse);
      CHECK(difference(some, all) < 2e-6);  // the same roundings to bf16, sums of other tiles
      CHECK(run(Queries::all_forwards) == some);
      if (!first) continue;
      CHECK(run(Queries::rows_alone) == some);
      CHECK(run(Queries::rows_alone, {true, false, false}).dq == some.dq);
      CHECK(run(Queries::rows_alone, {false, true, true}).dv == some.dv);
    }
}
