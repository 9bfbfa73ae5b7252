// The step size and decay of Mamba-2 (arXiv 2405.21060), a few numbers a position, in one launch each way
// instead of one for each of the seven functions they are made of. z = x + bias:
//   Δ = softplus(z),   log a = −exp(a_log) Δ
//   g = dΔ − exp(a_log) dlog a,   dx = g σ(z),   dbias = Σ_rows dx,   da_log = Σ_rows dlog a · log a
#include <algorithm>
#include <vector>

#include "tensor/dispatch.h"
#include "tensor/kernels.h"
#include "tensor/math.h"
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/column_sums.h"
#endif

namespace eigentrace::kernels {
namespace {

constexpr int64_t rows_of_block = 512;  // of one partial sum

template <class T>
struct Step {
  Rows<T> x;
  const T *bias, *a_log;
  T *delta, *log_a;  // dense
  ET_HD void operator()(int64_t row, int64_t h) const {
    const T step = softplus(x.data[row * x.stride + h] + bias[h]);
    delta[row * x.cols + h] = step;
    log_a[row * x.cols + h] = -fast_exp(a_log[h]) * step;
  }
};

template <class T>
struct StepBackward {
  Rows<T> x, ddelta, dlog_a, dx;  // gradients without data: none came, or not wanted
  const T *bias, *a_log;

  struct Sums {
    T bias = 0, a_log = 0;
  };
  /// dx of one element, and its parts of the sums.
  ET_HD void add(int64_t row, int64_t h, Sums& sums) const {
    const T z = x.data[row * x.stride + h] + bias[h], rate = -fast_exp(a_log[h]);
    const T da = dlog_a.data ? dlog_a.data[row * dlog_a.stride + h] : T(0);
    const T dd = ddelta.data ? ddelta.data[row * ddelta.stride + h] : T(0);
    const T d = (dd + rate * da) * sigmoid(z);
    if (dx.data) dx.data[row * dx.stride + h] = d;
    sums.bias += d, sums.a_log += da * rate * softplus(z);
  }
};

#ifdef EIGENTRACE_WITH_CUDA
/// Block: a chunk of rows for blockDim.x columns, threads of a column `depth` rows apart; partial [chunks, 2,
/// H].
template <class T>
__global__ void __launch_bounds__(256) step_backward_kernel(StepBackward<T> s, T* partial) {
  using Sums = typename StepBackward<T>::Sums;
  Sums* shared = dynamic_shared<Sums>();
  const int64_t h = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t begin = blockIdx.y * rows_of_block,
                end = begin + rows_of_block < s.x.rows ? begin + rows_of_block : s.x.rows;
  Sums sums;
  if (h < s.x.cols)
    for (int64_t row = begin + threadIdx.y; row < end; row += blockDim.y) s.add(row, h, sums);
  const unsigned at = threadIdx.y * blockDim.x + threadIdx.x;
  shared[at] = sums;
  for (unsigned half = blockDim.y / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.y >= half) continue;
    const Sums other = shared[at + half * blockDim.x];
    sums.bias += other.bias, sums.a_log += other.a_log;
    shared[at] = sums;
  }
  if (threadIdx.y > 0 || h >= s.x.cols) return;
  partial[(2 * blockIdx.y) * s.x.cols + h] = sums.bias;
  partial[(2 * blockIdx.y + 1) * s.x.cols + h] = sums.a_log;
}
#endif

template <class T>
void backward_cpu(const StepBackward<T>& s, int64_t blocks, T* dbias, T* da_log) {
  const int64_t H = s.x.cols;
  std::vector<double> partial(static_cast<size_t>(2 * blocks * H));
  parallel_rows(blocks, [&](int64_t block) {
    const int64_t end = std::min((block + 1) * rows_of_block, s.x.rows);
    for (int64_t h = 0; h < H; ++h) {
      typename StepBackward<T>::Sums sums;
      for (int64_t row = block * rows_of_block; row < end; ++row) s.add(row, h, sums);
      partial[static_cast<size_t>(2 * block * H + h)] = static_cast<double>(sums.bias);
      partial[static_cast<size_t>((2 * block + 1) * H + h)] = static_cast<double>(sums.a_log);
    }
  });
  for (int64_t h = 0; h < H; ++h) {
    double bias = 0, a_log = 0;
    for (int64_t block = 0; block < blocks; ++block) {
      bias += partial[static_cast<size_t>(2 * block * H + h)];
      a_log += partial[static_cast<size_t>((2 * block + 1) * H + h)];
    }
    if (dbias) dbias[h] = static_cast<T>(bias);
    if (da_log) da_log[h] = static_cast<T>(a_log);
  }
}

}  // namespace

void selective_step(Context& ctx, const Tensor& x, const Tensor& bias, const Tensor& a_log, Tensor& delta,
                    Tensor& log_a) {
  dispatch_floating(ctx, "selective_step", x.dtype(), [&]<class T>() {
    const Rows<T> rows = rows_of<T>(x, "selective_step: x");
    for_each_in_rows(ctx, rows.rows, rows.cols,
                     Step<T>{rows, bias.data<T>(), a_log.data<T>(), delta.data<T>(), log_a.data<T>()});
  });
}

void selective_step_backward(Context& ctx, const Tensor& x, const Tensor& bias, const Tensor& a_log,
                             const Tensor& ddelta, const Tensor& dlog_a, Tensor& dx, Tensor& dbias,
                             Tensor& da_log) {
  const int64_t H = x.dim(-1), rows = H > 0 ? x.numel() / H : 0;
  const int64_t blocks = std::max<int64_t>(1, (rows + rows_of_block - 1) / rows_of_block);
  Tensor partial;
  if (ctx.device().is_cuda()) partial = ctx.empty({blocks, 2, H}, x.dtype());
  dispatch_floating(ctx, "selective_step_backward", x.dtype(), [&]<class T>() {
    const auto optional = [](const Tensor& t, const char* what) {
      return t.defined() ? rows_of<T>(t, what) : Rows<T>{};
    };
    const StepBackward<T> s{rows_of<T>(x, "selective_step_backward: x"),
                            optional(ddelta, "selective_step_backward: ddelta"),
                            optional(dlog_a, "selective_step_backward: dlog_a"),
                            optional(dx, "selective_step_backward: dx"),
                            bias.data<T>(),
                            a_log.data<T>()};
    T *to_bias = dbias.defined() ? dbias.data<T>() : nullptr,
      *to_a_log = da_log.defined() ? da_log.data<T>() : nullptr;
#ifdef EIGENTRACE_WITH_CUDA
    if (ctx.device().is_cuda()) {
      if (H == 0) return;
      const auto across = static_cast<unsigned>(std::min<int64_t>(32, power_of_two_at_least(H)));
      launch(ctx, step_backward_kernel<T>, dim3(blocks_for(H, across), static_cast<unsigned>(blocks)),
             dim3(across, 256 / across), 256 * sizeof(typename StepBackward<T>::Sums), s, partial.data<T>());
      return sum_rows(ctx, partial.data<T>(), 1, blocks, 2 * H, SplitSink<T>{to_bias, to_a_log, H});
    }
#endif
    require_cpu(ctx, "selective_step_backward");
    backward_cpu(s, blocks, to_bias, to_a_log);
  });
}

}  // namespace eigentrace::kernels
