#pragma once
// The host's side of ssd_chunks.h: how a pass is cut, the memory it needs, and the small kernels around the
// three large ones.
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/kernels/row_scale.cuh"
#include "tensor/kernels/ssd_chunks.h"

namespace eigentrace::kernels {
namespace {

/// Factors of every chunk, a warp each.
__global__ void ssd_factors_kernel(SsdFactors f, PerStep<const float> log_a, PerStep<const float> w,
                                   int items, int steps, int H, int chunks) {
  const int lane = static_cast<int>(threadIdx.x) % 32,
            item = static_cast<int>((blockIdx.x * blockDim.x + threadIdx.x) / 32);
  if (item >= items) return;
  const int c = item % chunks, h = item / chunks % H, b = item / chunks / H;
  const int64_t t0 = int64_t{c} * ssd_chunk, at = int64_t{item} * ssd_chunk;
  const int n = steps - t0 < ssd_chunk ? static_cast<int>(steps - t0) : ssd_chunk;
  double own[2] = {};
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int i = 2 * lane + e;
    if (i >= n || !log_a.data) continue;
    const auto given = static_cast<double>(log_a.at(b, t0 + i, h));
    own[e] = given > -800 || given != given ? given : -800;
  }
  double before = own[0] + own[1];
#pragma unroll
  for (unsigned d = 1; d < 32; d *= 2) {
    const double other = __shfl_up_sync(0xFFFFFFFFu, before, d);
    if (lane >= static_cast<int>(d)) before += other;
  }
  const double total = __shfl_sync(0xFFFFFFFFu, before, 31);
  before = __shfl_up_sync(0xFFFFFFFFu, before, 1u);
  if (lane == 0) before = 0;
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int i = 2 * lane + e;
    before += own[e];
    const double binary = before * 1.4426950408889634;
    const auto high = static_cast<float>(binary);
    f.sum[at + i] = {high, static_cast<float>(binary - static_cast<double>(high))};
    f.weight[at + i] = i >= n ? 0.0f : w.data ? w.at(b, t0 + i, h) : 1.0f;
    f.fade[at + i] = expf(static_cast<float>(before)),
                f.to_end[at + i] = expf(static_cast<float>(total - before));
  }
  if (lane == 0) f.decay[item] = expf(static_cast<float>(total));
}

/// What chunks alone have given to the states becomes the states: x_k ← decay x_{k−1} + x_k over the chunks k
/// (in reverse: from the last). Eight warps take eight chunks each at a time, all loads ahead of the sums.
__global__ void __launch_bounds__(256) ssd_prefix_sums_kernel(SsdStates s) {
  auto* ends = dynamic_shared<float4>();  // [8, 32]
  auto* totals = reinterpret_cast<float*>(ends + 256);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * s.chunks, e = int64_t{blockIdx.y} * 128 + 4 * lane;
  const bool here = e < s.elements;
  const auto place = [&](int k) {
    return reinterpret_cast<float4*>(s.states + (first + (s.reverse ? s.chunks - 1 - k : k)) * s.elements +
                                     e);
  };
  const auto add = [](float4& sum, float factor, const float4& x) {
    sum.x = factor * sum.x + x.x, sum.y = factor * sum.y + x.y;
    sum.z = factor * sum.z + x.z, sum.w = factor * sum.w + x.w;
  };
  float4 carry{0, 0, 0, 0};
  for (int k0 = 1; k0 < s.chunks; k0 += 64) {
    float4 x[8];
    float decay[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int k = k0 + 8 * warp + i;
      const bool valid = here && k < s.chunks;
      x[i] = valid ? *place(k) : float4{0, 0, 0, 0};
      decay[i] = valid && s.decay ? s.decay[first + (s.reverse ? s.chunks - k : k - 1)] : 1.0f;
    }
    float total = 1;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i > 0) {
        const float4 own = x[i];
        x[i] = x[i - 1];
        add(x[i], decay[i], own);
      }
      decay[i] = total *= decay[i];
    }
    ends[32 * warp + lane] = x[7];
    if (lane == 0) totals[warp] = total;
    __syncthreads();
    float4 in = carry;
    for (int w = 0; w < 8; ++w) {
      if (w == warp) in = carry;
      add(carry, totals[w], ends[32 * w + lane]);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float4 sum = in;
      add(sum, decay[i], x[i]);
      if (here && k0 + 8 * warp + i < s.chunks) *place(k0 + 8 * warp + i) = sum;
    }
    __syncthreads();
  }
}

constexpr int tails_threads = 256, tails_rows = 8;
/// Chunks that a block of ssd_tails_kernel takes.
inline int tails_group(int N) { return N < 64 ? 64 / N : 1; }

/// `width` floats of a row: 16 bytes, or one.
template <int width>
struct alignas(4 * width) TailsPart {
  float at[width];
};

/// dk_j += what the chunks after j's hold of Σ_i dη_i q_i, times elu's slope if there are keys to say so.
/// Blocks [B H, groups of chunks]; eight rows a thread are asked for at once, before the sums that they get.
template <int width>
__global__ void __launch_bounds__(tails_threads)
    ssd_tails_kernel(const float* tails, Heads<float> dk, Heads<float> k, int H, int N, int chunks,
                     int group) {
  using Part = TailsPart<width>;
  const int sequence = static_cast<int>(blockIdx.x), first = static_cast<int>(blockIdx.y) * group;
  const int last = first + group < chunks - 1 ? first + group : chunks - 1;
  const int tid = static_cast<int>(threadIdx.x), columns = N / width, n = tid % columns * width,
            part = tid / columns, parts = tails_threads / columns;
  float* later = dynamic_shared<float>();  // [parts, N]: of chunks after the group's
  float* sums = later + parts * N;         // [group, N]: after each chunk
  const int rows = part < parts ? (last - first) * ssd_chunk : 0;
  const int64_t t0 = int64_t{first} * ssd_chunk;
  float* to = dk.row(sequence / H, sequence % H, t0) + n;
  const float* key = k.data ? k.row(sequence / H, sequence % H, t0) + n : nullptr;
  Part x[tails_rows], slope[tails_rows];
  const auto read = [&](int i0) {
#pragma unroll
    for (int e = 0; e < tails_rows; ++e)
      if (const int i = i0 + e * parts; i < rows) {
        x[e] = *reinterpret_cast<const Part*>(to + i * dk.time);
        if (key) slope[e] = *reinterpret_cast<const Part*>(key + i * k.time);
      }
  };
  read(part);
  const float* own = tails + int64_t{sequence} * chunks * N;
  if (part < parts) {
    Part sum{};
#pragma unroll 4
    for (int c = last + 1 + part; c < chunks; c += parts) {
      const Part own_part = *reinterpret_cast<const Part*>(own + int64_t{c} * N + n);
#pragma unroll
      for (int w = 0; w < width; ++w) sum.at[w] += own_part.at[w];
    }
    *reinterpret_cast<Part*>(later + part * N + n) = sum;
  }
  __syncthreads();
  if (tid < N) {
    float sum = 0;
    for (int p = 0; p < parts; ++p) sum += later[p * N + tid];
#pragma unroll 4
    for (int c = last; c > first; --c) {
      sum += own[int64_t{c} * N + tid];
      sums[(c - 1 - first) * N + tid] = sum;
    }
  }
  __syncthreads();
  for (int i0 = part; i0 < rows; i0 += tails_rows * parts) {
    if (i0 > part) read(i0);
#pragma unroll
    for (int e = 0; e < tails_rows; ++e)
      if (const int i = i0 + e * parts; i < rows) {
        const Part sum = *reinterpret_cast<const Part*>(sums + i / ssd_chunk * N + n);
#pragma unroll
        for (int w = 0; w < width; ++w) x[e].at[w] += key ? fminf(slope[e].at[w], 1) * sum.at[w] : sum.at[w];
        *reinterpret_cast<Part*>(to + i * dk.time) = x[e];
      }
  }
}

/// to[h] = Σ_{b, e} from[b, h, e]; a block a head.
__global__ void ssd_head_sums_kernel(const double* from, int batch, int heads, int each, PerStep<float> to) {
  double* sums = dynamic_shared<double>();
  const int h = static_cast<int>(blockIdx.x), i = static_cast<int>(threadIdx.x);
  double sum = 0;
  for (int e = i; e < batch * each; e += static_cast<int>(blockDim.x))
    sum += from[(int64_t{e / each} * heads + h) * each + e % each];
  sums[i] = sum;
  for (int d = static_cast<int>(blockDim.x) / 2; d > 0; d /= 2) {
    __syncthreads();
    if (i < d) sums[i] += sums[i + d];
  }
  if (i == 0) to.at(0, 0, h) = static_cast<float>(sums[0]);
}

/// Bytes of shared memory that a block may ask for.
inline size_t shared_limit() {
  static const size_t limit = [] {
    int bytes = 0;
    ET_CUDA(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
    return static_cast<size_t>(bytes);
  }();
  return limit;
}

/// What states, factors and partial sums of a pass take; widths are rounded up to those of the tiles.
struct SsdRoom {
  int64_t items, states, factors, elements;
  int chunks, Np, Pp;

  SsdRoom(const Tensor& q, const Tensor& v, bool has_factors, bool linear) {
    const bool grouped = q.dim(2) < v.dim(2);
    Np = q.dim(3) <= 16 && !grouped ? 16 : q.dim(3) <= 64 ? 64 : 128;
    Pp = Np == 128                                 ? 128
         : v.dim(3) <= 32 && (Np == 16 || grouped) ? 32
         : Np == 64 && !grouped && v.dim(3) <= 64  ? 64
                                                   : 128;
    chunks = static_cast<int>((v.dim(1) + ssd_chunk - 1) / ssd_chunk);
    items = v.dim(0) * v.dim(2) * chunks;
    elements = int64_t{Np} * Pp + (linear ? Np : 0);
    states = chunks > 1 ? items * elements : 0;
    factors = has_factors ? items * (5 * ssd_chunk + 1) : 0;
  }
};

inline bool ssd_is_fast(DType dtype, int64_t N, int64_t P) {
  return dtype == DType::f32 && N <= ssd_most_width && P <= ssd_most_width &&
         ssd_least_shared(N) <= shared_limit();
}

/// body.operator()<precision>() of the context's.
template <class Body>
void with_precision(const Context& ctx, const Body& body) {
  switch (ctx.precision) {
    case Precision::fp32:
      return body.template operator()<Precision::fp32>();
    case Precision::tf32:
      return body.template operator()<Precision::tf32>();
    case Precision::tf32x3:
      return body.template operator()<Precision::tf32x3>();
    case Precision::bf16:
      return body.template operator()<Precision::bf16>();
  }
}

/// States of all chunks to `states`; in reverse, of the gradient.
inline void run_states(const Context& ctx, const SsdPass& pass, float* states, bool reverse) {
  SsdStates s{};
  s.x = reverse ? pass.q : pass.k, s.y = reverse ? pass.dy : pass.v;
  s.x_heads = pass.G, s.B = pass.B, s.steps = pass.steps, s.H = pass.H, s.N = pass.N, s.P = pass.P;
  s.Np = pass.Np, s.Pp = pass.Pp, s.chunks = pass.chunks, s.reverse = reverse, s.aligned = pass.aligned;
  s.sums = pass.linear && !reverse;
  s.elements = reverse ? int64_t{s.Np} * s.Pp : pass.elements;
  if (pass.decays || pass.weighs) {
    s.scale = reverse ? pass.f.fade : pass.f.weight, s.scale_2 = reverse ? nullptr : pass.f.to_end;
    if (pass.decays) s.decay = pass.f.decay;
  }
  if (reverse) s.row = pass.row, s.mask = pass.mask;
  s.states = states;
  const int64_t sequences = int64_t{s.B} * s.H;
  s.slice = s.Np == 128 ? 64 : s.Pp == 128 && sequences >= 96 ? 128 : 32;
  const int64_t blocks = sequences * (s.Pp / s.slice);
  s.whole = blocks >= 64 || s.chunks == 2;
  const size_t stage = sizeof(float) * static_cast<size_t>(ssd_chunk * (std::max(s.Np, 32) + s.slice));
  s.stages = s.whole && blocks <= 132 && 3 * stage + 512 <= shared_limit() ? 3 : 2;
  with_precision(ctx, [&]<Precision precision>() { launch_states<precision>(ctx, s); });
  if (!s.whole && s.chunks > 2)
    launch(ctx, ssd_prefix_sums_kernel, dim3(static_cast<unsigned>(sequences), blocks_for(s.elements, 128)),
           256, 256 * sizeof(float4) + 8 * sizeof(float), s);
}

/// Operands, and in the backward pass (dy defined) gradients, some of them undefined.
struct SsdTensors {
  Tensor q, k, v, log_a, w, y, dy, dq, dk, dv, dlog_a, dw;
};
/// What is fused into a pass.
struct SsdExtras {
  bool linear = false;  // divided by η
  bool of_elu = false;  // dq and dk are of what q and k are elu + 1 of
  StepFactor row;       // r_i; of linear attention in the backward pass alone
  Tensor log_eta;       // written in linear attention's forward pass
  Tensor delta;         // [B, T, H], written in the backward pass
  Tensor skip, dskip;   // [H]
  Dropout drop;         // of y, where y_can_drop
};
/// True iff the kernels of this file can drop elements of y and of dy as they are written and read.
inline bool y_can_drop(const Tensor& q, const Tensor& v) { return SsdRoom(q, v, false, true).Np == 16; }

/// Memory that the forward pass leaves for the backward pass.
inline Tensor fast_kept(Context& ctx, const Tensor& q, const Tensor& v, bool has_factors, bool linear) {
  const SsdRoom room(q, v, has_factors, linear);
  return ctx.empty({room.states + room.factors}, DType::f32);
}

/// The fast pass; in a dry run its memory alone is asked for.
inline void run_fast(Context& ctx, const SsdTensors& x, const SsdExtras& extras, const Tensor& kept) {
  const bool backward = x.dy.defined(), has_factors = x.log_a.defined() || x.w.defined();
  const SsdRoom room(x.q, x.v, has_factors, extras.linear);
  const Tensor held = kept.defined() ? kept : fast_kept(ctx, x.q, x.v, has_factors, extras.linear);
  const bool before = x.dq.defined() || x.dlog_a.defined() || extras.delta.defined() || extras.linear,
             after = x.dk.defined() || x.dv.defined() || x.dw.defined() || x.dlog_a.defined();
  const bool per_head = x.dlog_a.defined() && x.dlog_a.rank() == 1, dskip = extras.dskip.defined();
  const Tensor later = ctx.empty({backward && after && room.chunks > 1 ? room.items * room.Np * room.Pp : 0},
                                 DType::f32),
               tails = ctx.empty({backward && extras.linear ? room.items * x.q.dim(3) : 0}, DType::f32),
               sums = ctx.empty({(per_head ? room.items : 0) + (dskip ? room.items : 0)}, DType::f64);
  if (ctx.dry()) return;
  const auto heads = [](const Tensor& t, const char* what) {
    return t.defined() ? heads_of<float>(t, what) : Heads<float>{};
  };
  SsdPass s{};
  s.q = heads(x.q, "ssd: q"), s.k = heads(x.k, "ssd: k"), s.v = heads(x.v, "ssd: v");
  s.y = heads(x.y, "ssd: y"), s.dy = heads(x.dy, "ssd_backward: dy");
  s.dq = heads(x.dq, "ssd_backward: dq"), s.dk = heads(x.dk, "ssd_backward: dk");
  s.dv = heads(x.dv, "ssd_backward: dv");
  s.B = static_cast<int>(x.v.dim(0)), s.steps = static_cast<int>(x.v.dim(1));
  s.G = static_cast<int>(x.q.dim(2)), s.H = static_cast<int>(x.v.dim(2));
  s.N = static_cast<int>(x.q.dim(3)), s.P = static_cast<int>(x.v.dim(3));
  s.Np = room.Np, s.Pp = room.Pp, s.chunks = room.chunks, s.elements = room.elements;
  s.slice = s.Np == 128 ? 64 : s.Pp;
  s.shared = shared_limit();
  s.decays = x.log_a.defined(), s.weighs = x.w.defined(), s.linear = extras.linear;
  s.of_elu = extras.of_elu;
  s.aligned = s.N % 4 == 0 && s.P % 4 == 0 && rows_aligned(s.q, 16) && rows_aligned(s.k, 16) &&
              rows_aligned(s.v, 16) && rows_aligned(s.dy, 16);
  s.even = s.N % 2 == 0 && s.P % 2 == 0 && rows_aligned(s.y, 8) && rows_aligned(s.dq, 8) &&
           rows_aligned(s.dk, 8) && rows_aligned(s.dv, 8);
  if (extras.drop.p > 0)
    s.mask = {dropout_stream(ctx, extras.drop.p, extras.drop.op), true, x.v.dim(2), x.v.dim(3)};
  s.row = extras.row, s.skip = PerStep<const float>(extras.skip);
  s.dw = PerStep<float>(x.dw), s.dlog_a = PerStep<float>(x.dlog_a),
  s.log_eta = PerStep<float>(extras.log_eta);
  auto* states = held.data<float>();
  if (has_factors) {
    float* at = states + room.states;
    s.f.sum = reinterpret_cast<float2*>(at), at += 2 * ssd_chunk * room.items;
    s.f.weight = at, at += ssd_chunk * room.items;
    s.f.fade = at, at += ssd_chunk * room.items;
    s.f.to_end = at, at += ssd_chunk * room.items;
    s.f.decay = at;
  }
  if (has_factors && !(backward && kept.defined()))
    launch(ctx, ssd_factors_kernel, blocks_for(room.items, 4), 128, 0, s.f, PerStep<const float>(x.log_a),
           PerStep<const float>(x.w), static_cast<int>(room.items), s.steps, s.H, s.chunks);
  if (!backward) {
    run_states(ctx, s, states, false);
    s.states = states;
    return with_precision(ctx, [&]<Precision precision>() { launch_outputs<precision>(ctx, s); });
  }
  if (before) {
    if (!kept.defined()) run_states(ctx, s, states, false);
    s.states = states;
  }
  if (after) {
    run_states(ctx, s, later.data<float>(), true);
    s.later = later.data<float>();
  }
  s.tails = tails.data<float>();
  if (extras.delta.defined()) s.delta = extras.delta.data<float>();
  s.flow = per_head ? sums.data<double>() : nullptr;
  s.dskip = dskip ? sums.data<double>() + (per_head ? room.items : 0) : nullptr;
  with_precision(ctx, [&]<Precision precision>() { launch_gradients<precision>(ctx, s); });
  if (s.linear && s.dk.data && s.chunks > 1) {
    const bool whole = s.N % 4 == 0 && rows_aligned(s.dk, 16) && rows_aligned(s.k, 16);
    const int group = tails_group(s.N), parts = tails_threads / (whole ? s.N / 4 : s.N);
    launch(ctx, whole ? ssd_tails_kernel<4> : ssd_tails_kernel<1>,
           dim3(static_cast<unsigned>(s.B * s.H), blocks_for(s.chunks - 1, group)), tails_threads,
           sizeof(float) * static_cast<size_t>((parts + group) * s.N), s.tails, s.dk,
           s.of_elu ? s.k : Heads<float>{}, s.H, s.N, s.chunks, group);
  }
  const auto per_head_sums = [&](const double* from, const Tensor& to) {
    launch(ctx, ssd_head_sums_kernel, static_cast<unsigned>(s.H), 256, 256 * sizeof(double), from, s.B, s.H,
           s.chunks, PerStep<float>(to));
  };
  if (per_head) per_head_sums(s.flow, x.dlog_a);
  if (dskip) per_head_sums(s.dskip, extras.dskip);
}

}  // namespace
}  // namespace eigentrace::kernels
#endif
