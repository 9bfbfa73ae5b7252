// Linear attention with dropout in its own kernels against linear attention and dropout one after the other:
// bit by bit, in every precision, over several chunks, rows of whole packs and odd ones.
#include <doctest/doctest.h>

#include <vector>

#include "tensor/error.h"
#include "tensor/kernels.h"
#include "tensor/kernels/dropped_attention.h"
#include "tensor/rng.h"

using namespace eigentrace;

namespace {

Tensor uniform(const Shape& shape, uint64_t seed, double low) {
  Rng rng(seed);
  std::vector<double> values(static_cast<size_t>(shape.numel()));
  for (double& x : values) x = rng.uniform(low, 2);
  return Tensor::from(values, shape).clone(parse_device("cuda"), DType::f32);
}

/// y, log η and the gradients; apart: dropout as a kernel of its own.
std::vector<std::vector<double>> results(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                                         const Tensor& dy, const kernels::Dropout& drop, bool apart) {
  Tensor y = ctx.empty(v.shape(), DType::f32), log_eta = ctx.empty(v.shape().without(3), DType::f32);
  Tensor dq = ctx.empty(q.shape(), DType::f32), dk = ctx.empty(q.shape(), DType::f32),
         dv = ctx.empty(v.shape(), DType::f32);
  const Tensor kept = kernels::linear_attention_kept(ctx, q, v);
  if (apart) {
    Tensor whole = ctx.empty(v.shape(), DType::f32), dwhole = ctx.empty(v.shape(), DType::f32);
    kernels::linear_attention(ctx, q, k, v, whole, log_eta, kept);
    kernels::dropout(ctx, whole, drop.p, drop.op, false, y);
    kernels::dropout(ctx, dy, drop.p, drop.op, false, dwhole);
    kernels::linear_attention_backward(ctx, q, k, v, log_eta, dwhole, dq, dk, dv, kept);
  } else {
    kernels::linear_attention_dropped(ctx, q, k, v, drop, y, log_eta, kept);
    kernels::linear_attention_dropped_backward(ctx, q, k, v, log_eta, drop, false, dy, dq, dk, dv, kept);
  }
  synchronise(ctx.device());
  std::vector<std::vector<double>> all;
  for (const Tensor& t : {y, log_eta, dq, dk, dv}) all.push_back(t.to_vector<double>());
  return all;
}

}  // namespace

TEST_CASE("cuda dropped attention: the bits of linear attention followed by dropout") {
  if (cuda_device_count() == 0) {
    MESSAGE("no GPU here: this case needs one");
    return;
  }
  const int64_t sizes[][5] = {
      {2, 130, 3, 16, 128}, {1, 65, 2, 4, 24}, {2, 70, 1, 16, 36}, {1, 100, 2, 5, 7}, {1, 1, 1, 1, 1}};
  for (const auto& size : sizes)
    for (const Precision precision : {Precision::fp32, Precision::tf32, Precision::tf32x3, Precision::bf16}) {
      const int64_t B = size[0], T = size[1], H = size[2], N = size[3], P = size[4];
      if (precision != Precision::tf32 && P == 128) continue;
      CAPTURE(T);
      CAPTURE(P);
      CAPTURE(static_cast<int>(precision));
      Context ctx(parse_device("cuda"), size_t{64} << 20);
      ctx.poison = true, ctx.precision = precision;
      ctx.set_step(9, 4);
      const Tensor q = uniform({B, T, H, N}, 1, 0.1), k = uniform({B, T, H, N}, 2, 0.1),
                   v = uniform({B, T, H, P}, 3, -2), dy = uniform({B, T, H, P}, 4, -2);
      const kernels::Dropout drop{0.3, 5, false};
      const auto one = results(ctx, q, k, v, dy, drop, false), two = results(ctx, q, k, v, dy, drop, true);
      CHECK(one == two);
      if (B * T * P > 100) CHECK(one[0] != results(ctx, q, k, v, dy, {0.3, 6, false}, false)[0]);
    }
}

TEST_CASE("cuda dropped attention: widths that its kernels do not drop at are refused") {
  if (cuda_device_count() == 0) {
    MESSAGE("no GPU here: this case needs one");
    return;
  }
  Context ctx(parse_device("cuda"), size_t{64} << 20);
  const Tensor q = uniform({1, 3, 1, 17}, 1, 0.1), v = uniform({1, 3, 1, 8}, 2, -2);
  Tensor y = ctx.empty(v.shape(), DType::f32), log_eta = ctx.empty({1, 3, 1}, DType::f32);
  CHECK(!kernels::attention_drops(q, v));
  CHECK_THROWS_AS(kernels::linear_attention_dropped(ctx, q, q, v, {0.3, 5, false}, y, log_eta, {}), Error);
}
