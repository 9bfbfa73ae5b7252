// The matrices of an LRU layer (arXiv 2303.06349) from its parameters, in one pass each way:
//
//   log|λ| = −exp(nu_log),  arg λ = exp(theta_log),  gain = exp(gamma_log),
//   input [2N,D] = [gain∘B_re; gain∘B_im],  output [D,2N] = [C_re, −C_im]
//
// and backward dB = gain∘dinput, dgamma_log = Σ_d dinput∘input, dnu_log = log|λ| dlog|λ|, dtheta_log = arg
// darg.
#include "tensor/block_sum.h"
#include "tensor/dispatch.h"
#include "tensor/kernels.h"
#include "tensor/math.h"

namespace eigentrace::kernels {
namespace {

/// Element i of B [N,D] and of C [D,N]; the first N also make the [N] results.
template <class T>
struct Forward {
  int64_t states, width;
  const T *nu, *theta, *gamma, *b_re, *b_im, *c_re, *c_im;
  T *log_abs, *arg, *gain, *input, *output;
  ET_HD void operator()(int64_t i) const {
    const int64_t half = states * width, d = i / states, n = i % states;
    const T g = fast_exp(gamma[i / width]);
    input[i] = g * b_re[i], input[half + i] = g * b_im[i];
    output[d * 2 * states + n] = c_re[i], output[d * 2 * states + states + n] = -c_im[i];
    if (i < states) log_abs[i] = -fast_exp(nu[i]), arg[i] = fast_exp(theta[i]), gain[i] = fast_exp(gamma[i]);
  }
};

template <class T>
struct BackwardOf {
  int64_t states, width;
  const T *b_re, *b_im, *log_abs, *arg, *gain;
  const T *dlog_abs, *darg, *dinput, *doutput;
  T *dnu, *dtheta, *dgamma, *db_re, *db_im, *dc_re, *dc_im;
  /// Row n of B, element d; and as many elements of C. Returns its part of Σ_d dinput∘B.
  ET_HD double element(int64_t n, int64_t d) const {
    const int64_t i = n * width + d, half = states * width;
    const T re = dinput[i], im = dinput[half + i];
    db_re[i] = gain[n] * re, db_im[i] = gain[n] * im;
    const int64_t row = i / states * 2 * states, state = i % states;
    dc_re[i] = doutput[row + state], dc_im[i] = -doutput[row + states + state];
    return static_cast<double>(re) * static_cast<double>(b_re[i]) +
           static_cast<double>(im) * static_cast<double>(b_im[i]);
  }
  ET_HD void row(int64_t n, double sum) const {
    dgamma[n] = static_cast<T>(sum * static_cast<double>(gain[n]));
    dnu[n] = log_abs[n] * dlog_abs[n], dtheta[n] = arg[n] * darg[n];
  }
};

#ifdef EIGENTRACE_WITH_CUDA
template <class T>
__global__ void __launch_bounds__(128) lru_backward_kernel(BackwardOf<T> f) {
  double sum = 0;
  for (int64_t d = threadIdx.x; d < f.width; d += 128) sum += f.element(blockIdx.x, d);
  sum = block_sum(sum);
  if (threadIdx.x == 0) f.row(blockIdx.x, sum);
}
#endif

}  // namespace

void lru_maps(Context& ctx, const LruParameters& in, LruMaps& out) {
  dispatch_floating(ctx, "lru_maps", in.b_re.dtype(), [&]<class T>() {
    const int64_t states = in.b_re.dim(0), width = in.b_re.dim(1);
    for_each_index(ctx, states * width,
                   Forward<T>{states, width, in.nu_log.data<T>(), in.theta_log.data<T>(),
                              in.gamma_log.data<T>(), in.b_re.data<T>(), in.b_im.data<T>(), in.c_re.data<T>(),
                              in.c_im.data<T>(), out.log_abs.data<T>(), out.arg.data<T>(), out.gain.data<T>(),
                              out.input.data<T>(), out.output.data<T>()});
  });
}

void lru_maps_backward(Context& ctx, const LruParameters& in, const LruMaps& maps, const LruMaps& dmaps,
                       LruParameters& gradient) {
  dispatch_floating(ctx, "lru_maps_backward", in.b_re.dtype(), [&]<class T>() {
    const int64_t states = in.b_re.dim(0), width = in.b_re.dim(1);
    const BackwardOf<T> f{states,
                          width,
                          in.b_re.data<T>(),
                          in.b_im.data<T>(),
                          maps.log_abs.data<T>(),
                          maps.arg.data<T>(),
                          maps.gain.data<T>(),
                          dmaps.log_abs.data<T>(),
                          dmaps.arg.data<T>(),
                          dmaps.input.data<T>(),
                          dmaps.output.data<T>(),
                          gradient.nu_log.data<T>(),
                          gradient.theta_log.data<T>(),
                          gradient.gamma_log.data<T>(),
                          gradient.b_re.data<T>(),
                          gradient.b_im.data<T>(),
                          gradient.c_re.data<T>(),
                          gradient.c_im.data<T>()};
#ifdef EIGENTRACE_WITH_CUDA
    if (ctx.device().is_cuda()) {
      if (states > 0) launch(ctx, lru_backward_kernel<T>, static_cast<unsigned>(states), 128, 0, f);
      return;
    }
#endif
    parallel_rows(states, [&](int64_t n) {
      double sum = 0;
      for (int64_t d = 0; d < width; ++d) sum += f.element(n, d);
      f.row(n, sum);
    });
  });
}

}  // namespace eigentrace::kernels
