#pragma once
// y = m f(x₀, …), a draw of dropout's mask for every element. A call of Philox decides for eight elements,
// two lanes' packs: of a thread's two packs it draws for one, its neighbour for the other, and they exchange
// halves. For .cu files only.
#include <array>

#include "tensor/dispatch.h"
#include "tensor/dropout_stream.h"
#include "tensor/launch.h"
#include "tensor/vec.h"

namespace eigentrace::kernels {
namespace {

constexpr int element_mask_threads = 256;

template <int inputs>
struct ElementMask {
  const float* x[inputs];
  float* y;
  int64_t n;  // a multiple of 4
  DropoutStream mask;
};

/// A warp takes 256 elements: lane l those from 4 l on, and from 128 + 4 l on.
template <int inputs, class F>
__global__ void __launch_bounds__(element_mask_threads) element_mask_kernel(ElementMask<inputs> o, F f) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int64_t first =
      (static_cast<int64_t>(blockIdx.x) * element_mask_threads + threadIdx.x - lane) * 8 + lane * 4;
  Vec<float, 4> x[2][inputs];
#pragma unroll
  for (int k = 0; k < 2; ++k)
#pragma unroll
    for (int i = 0; i < inputs; ++i)
      if (first + 128 * k < o.n) x[k][i] = load_vec<4>(o.x[i] + first + 128 * k);
  const bool odd = lane % 2 != 0;
  const Philox4 mine = o.mask.words((first + (odd ? 128 : 0)) >> 3);
  const uint32_t theirs[2] = {__shfl_xor_sync(0xFFFFFFFFu, odd ? mine.x[0] : mine.x[2], 1),
                              __shfl_xor_sync(0xFFFFFFFFu, odd ? mine.x[1] : mine.x[3], 1)};
  const uint32_t words[2][2] = {{odd ? theirs[0] : mine.x[0], odd ? theirs[1] : mine.x[1]},
                                {odd ? mine.x[2] : theirs[0], odd ? mine.x[3] : theirs[1]}};
  const float keep = static_cast<float>(o.mask.keep_scale);
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    if (first + 128 * k >= o.n) return;
    Vec<float, 4> y;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float m = o.mask.keeps(words[k][i / 2], i % 2) ? keep : 0.0f;
      if constexpr (inputs == 1)
        y.x[i] = m * f(x[k][0].x[i]);
      else
        y.x[i] = m * f(x[k][0].x[i], x[k][1].x[i]);
    }
    store_vec(o.y + first + 128 * k, y);
  }
}

/// False, and nothing done: a tensor is not dense, or not in whole packs of 16 bytes.
template <size_t inputs, class F>
bool map_element_mask(const Context& ctx, const F& f, const std::array<Tensor, inputs>& x, const Tensor& y,
                      const DropoutStream& mask) {
  const auto fits = [](const Tensor& t) {
    return t.contiguous() && t.numel() % 4 == 0 && aligned_for_vec(t.data<float>());
  };
  ElementMask<static_cast<int>(inputs)> o{{}, y.data<float>(), y.numel(), mask};
  if (!fits(y)) return false;
  for (size_t k = 0; k < inputs; ++k) {
    if (!fits(x[k])) return false;
    o.x[k] = x[k].template data<float>();
  }
  if (o.n > 0)
    launch(ctx, element_mask_kernel<static_cast<int>(inputs), F>, blocks_for(o.n, 8 * element_mask_threads),
           element_mask_threads, 0, o, f);
  return true;
}

}  // namespace
}  // namespace eigentrace::kernels
