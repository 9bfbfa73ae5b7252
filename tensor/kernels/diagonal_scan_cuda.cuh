#pragma once
// The diagonal scan on CUDA: one read and one write of its operands.
//
// A block owns `width` states of one sequence: its 512 threads are `width` states × 512/width chunks of time.
// A thread keeps `steps` inputs in registers, computes the end of its chunk from zero, takes its true initial
// state from the ends of the chunks before (a serial recurrence with λ^steps over shared memory), and runs
// its steps once more from there. Tiles of 512/width·steps steps follow each other; what lies before a chunk
// is all that enters it, so results up to t do not see what comes after t.
//
// Bytes (float32): forward x and h, backward h, dh and dx, each once.
//   MQAR   B 64, T 512,  N 128: 33.5 MB an operand: 16 µs forward, 24 µs backward at 4.2 TB/s; 256 blocks
//   CIFAR  B 50, T 1024, N 64:  26.2 MB an operand: 12.5 µs forward, 19 µs backward; 200 blocks
// Operations: 8 multiply-adds a state and step forward, 12 backward: nothing.
#include "tensor/cplx.h"
#include "tensor/dispatch.h"

namespace eigentrace::kernels {
namespace {

constexpr int scan_threads = 512;
constexpr int64_t wanted_scan_blocks = 200;  // enough for 132 SMs with two blocks each

template <class S>
struct ScanArguments {  // S: what rows lie in memory as; states are of type T
  using T = Arithmetic<S>;
  const S* x;  // scanned: x, or dh against its time
  const S* h;  // of the forward scan, for Q; null: not wanted
  S* y;        // h or dx; null: not wanted
  int64_t x_stride, h_stride, y_stride;
  const T *log_abs, *arg;
  double sign;  // of the angle: −1 for conj(λ)
  double* q;    // [B, 2N], this sequence's Σ y conj(h of the next step of the scan)
  int64_t time, states;
  bool reverse;  // from the last step to the first
};

/// λ^power in double, rounded.
template <class S, class T = Arithmetic<S>>
__device__ cplx<T> power_of_lambda(const ScanArguments<S>& a, int64_t n, double power) {
  const double radius = exp(power * static_cast<double>(a.log_abs[n]));
  const double angle = a.sign * power * static_cast<double>(a.arg[n]);
  return {static_cast<T>(radius * cos(angle)), static_cast<T>(radius * sin(angle))};
}

/// a·b + c
template <class T>
__device__ __forceinline__ cplx<T> multiply_add(const cplx<T>& a, const cplx<T>& b, const cplx<T>& c) {
  return {a.re * b.re + (c.re - a.im * b.im), a.re * b.im + (a.im * b.re + c.im)};
}

template <class S, int width, int steps, bool backward>
__global__ void __launch_bounds__(scan_threads, sizeof(S) <= 4 ? 2 : 1)
    diagonal_scan_kernel(ScanArguments<S> a) {
  using T = Arithmetic<S>;
  constexpr int chunks = scan_threads / width;
  __shared__ cplx<T> ends[2][chunks][width], carry[2][width], powers[2][width];
  const int lane = static_cast<int>(threadIdx.x) % width, chunk = static_cast<int>(threadIdx.x) / width;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * width + lane, b = blockIdx.y;
  const bool live = n < a.states;
  // Offsets within the sequence are of 32 bits (checked at the launch): a register each instead of two.
  const int time = static_cast<int>(a.time), states = static_cast<int>(a.states);
  const S* const x_base = a.x + b * a.time * a.x_stride;
  const S* const h_base = a.h + b * a.time * a.h_stride;
  S* const y_base = a.y + b * a.time * a.y_stride;
  const int direction = a.reverse ? -1 : 1, origin = a.reverse ? time - 1 : 0;
  const int xs = direction * static_cast<int>(a.x_stride), hs = direction * static_cast<int>(a.h_stride);
  const int ys = direction * static_cast<int>(a.y_stride);

  if (chunk < 2 && live) powers[chunk][lane] = power_of_lambda(a, n, chunk == 0 ? 1.0 : double(steps));
  if (chunk == 2) carry[0][lane] = {0, 0};
  __syncthreads();
  cplx<T> sum{0, 0}, lambda{0, 0}, jump{0, 0};
  if (live) lambda = powers[0][lane], jump = powers[1][lane];
  int parity = 0;
  for (int tile = 0; tile < time; tile += chunks * steps, parity ^= 1) {
    const int first = tile + chunk * steps;
    const int count = live ? time - first : 0;  // may be more than `steps`, or less than none
    cplx<T> x[steps], before[backward ? steps : 1];
    {
      int at = (origin + direction * first) * static_cast<int>(a.x_stride) + static_cast<int>(n);
#pragma unroll
      for (int i = 0; i < steps; ++i, at += xs) {
        x[i] = {0, 0};
        if (i < count) x[i] = {x_base[at], x_base[at + states]};
      }
    }
    if constexpr (backward) {
      int at = (origin + direction * (first + 1)) * static_cast<int>(a.h_stride) + static_cast<int>(n);
#pragma unroll
      for (int i = 0; i < steps; ++i, at += hs) {
        before[i] = {0, 0};
        if (a.h && i + 1 < count) before[i] = {h_base[at], h_base[at + states]};
      }
    }
    cplx<T> end{0, 0};
#pragma unroll
    for (int i = 0; i < steps; ++i) end = multiply_add(lambda, end, x[i]);
    ends[parity][chunk][lane] = end;
    __syncthreads();
    cplx<T> state = carry[parity][lane];
#pragma unroll 4
    for (int c = 0; c < chunk; ++c) state = multiply_add(jump, state, ends[parity][c][lane]);
    int to = (origin + direction * first) * static_cast<int>(a.y_stride) + static_cast<int>(n);
#pragma unroll
    for (int i = 0; i < steps; ++i, to += ys) {
      state = multiply_add(lambda, state, x[i]);
      if (i < count && a.y) y_base[to] = state.re, y_base[to + states] = state.im;
      if constexpr (backward) sum = sum + state * conj(before[i]);
    }
    if (chunk == chunks - 1) carry[parity ^ 1][lane] = state;
  }
  if constexpr (backward) {
    if (!a.q) return;
    __syncthreads();
    ends[0][chunk][lane] = sum;
    __syncthreads();
    if (chunk >= 2 || !live) return;
    double total = 0;
    for (int c = 0; c < chunks; ++c)
      total += static_cast<double>(chunk == 0 ? ends[0][c][lane].re : ends[0][c][lane].im);
    a.q[b * 2 * a.states + chunk * a.states + n] = total;
  }
}

template <class S, bool backward>
void launch_scan(const Context& ctx, int64_t batch, const ScanArguments<S>& a) {
  constexpr int steps = 8;
  const auto blocks = [&](int64_t width) { return (a.states + width - 1) / width; };
  const auto start = [&](auto kernel, int64_t width) {
    launch(ctx, kernel, dim3(static_cast<unsigned>(blocks(width)), static_cast<unsigned>(batch)),
           scan_threads, 0, a);
  };
  if (batch * a.states == 0 || a.time == 0) return;
  if ((a.time + 1) * std::max({a.x_stride, a.h_stride, a.y_stride}) >= int64_t{1} << 31)
    fail("diagonal_scan: x: a sequence of less than 2^31 numbers expected; shorten it");
  if (batch * blocks(32) >= wanted_scan_blocks)
    start(diagonal_scan_kernel<S, 32, steps, backward>, 32);
  else if (batch * blocks(16) >= wanted_scan_blocks)
    start(diagonal_scan_kernel<S, 16, steps, backward>, 16);
  else
    start(diagonal_scan_kernel<S, 8, steps, backward>, 8);
}

/// dlog_abs = Re(conj(Q) λ), darg = −Im(conj(Q) λ), Q summed over the batch in its order by eight threads a
/// state, then over these.
template <class T>
__global__ void __launch_bounds__(256)
    lambda_gradient_kernel(const double* q, int64_t batch, int64_t states, const T* log_abs, const T* arg,
                           T* dlog_abs, T* darg) {
  __shared__ cplx<double> part[8][32];
  const int lane = static_cast<int>(threadIdx.x) % 32, slice = static_cast<int>(threadIdx.x) / 32;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * 32 + lane;
  cplx<double> sum{0, 0};
  if (n < states)
    for (int64_t b = slice; b < batch; b += 8) {
      sum.re += q[b * 2 * states + n];
      sum.im += q[b * 2 * states + states + n];
    }
  part[slice][lane] = sum;
  __syncthreads();
  if (slice != 0 || n >= states) return;
  for (int s = 1; s < 8; ++s) sum = sum + part[s][lane];
  const double radius = exp(static_cast<double>(log_abs[n])), angle = static_cast<double>(arg[n]);
  const cplx<double> product = conj(sum) * cplx<double>{radius * cos(angle), radius * sin(angle)};
  if (dlog_abs) dlog_abs[n] = static_cast<T>(product.re);
  if (darg) darg[n] = static_cast<T>(-product.im);
}

void diagonal_scan_cuda(Context& ctx, const Tensor& x, const Tensor& log_abs, const Tensor& arg, bool reverse,
                        Tensor& h) {
  dispatch_stored(ctx, "diagonal_scan", x.dtype(), [&]<class S>() {
    using T = Arithmetic<S>;
    const Rows<S> from = rows_of<S>(x, "diagonal_scan: x"), to = rows_of<S>(h, "diagonal_scan: h");
    launch_scan<S, false>(ctx, x.dim(0),
                          {from.data, nullptr, to.data, from.stride, 0, to.stride, log_abs.data<T>(),
                           arg.data<T>(), 1.0, nullptr, x.dim(1), x.dim(2) / 2, reverse});
  });
}

void diagonal_scan_backward_cuda(Context& ctx, const Tensor& h, const Tensor& log_abs, const Tensor& arg,
                                 bool reverse, const Tensor& dh, Tensor& dx, Tensor& dlog_abs, Tensor& darg) {
  const int64_t batch = h.dim(0), states = h.dim(2) / 2;
  const bool wanted = dlog_abs.defined() || darg.defined();
  const Tensor q = ctx.empty({batch, 2 * states}, DType::f64);
  dispatch_stored(ctx, "diagonal_scan_backward", h.dtype(), [&]<class S>() {
    using T = Arithmetic<S>;
    const Rows<S> from = rows_of<S>(dh, "diagonal_scan_backward: dh");
    const Rows<S> past = rows_of<S>(h, "diagonal_scan_backward: h");
    Rows<S> to{};
    if (dx.defined()) to = rows_of<S>(dx, "diagonal_scan_backward: dx");
    const T *la = log_abs.data<T>(), *th = arg.data<T>();
    launch_scan<S, true>(
        ctx, batch,
        {from.data, wanted ? past.data : nullptr, to.data, from.stride, past.stride, to.stride, la, th, -1.0,
         wanted ? q.data<double>() : nullptr, h.dim(1), states, !reverse});
    if (wanted && states > 0)
      launch(ctx, lambda_gradient_kernel<T>, blocks_for(states, 32), 256, 0, q.data<double>(), batch, states,
             la, th, dlog_abs.defined() ? dlog_abs.data<T>() : nullptr,
             darg.defined() ? darg.data<T>() : nullptr);
  });
}

}  // namespace
}  // namespace eigentrace::kernels
