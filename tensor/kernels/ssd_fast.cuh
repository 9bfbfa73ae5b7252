#pragma once
// The recurrence of ssd.cu in float32 with N, P ≤ 128: which walks (ssd_walk.cuh) a pass consists of, how
// they are cut, and what puts their partial sums together.
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/kernels/row_scale.cuh"
#include "tensor/kernels/ssd_walk.h"

namespace eigentrace::kernels {
namespace {

/// Sums of the walks, [parts, B, T, H] each, and what they become.
struct FlowAssembly {
  const double *ends, *starts, *passed_on;  // null: dlog_a is not wanted
  const double* dw_sums;                    // null: dw is not wanted
  int slices, dw_parts, B, steps, H, chunks;
  PerStep<const float> log_a, w;
  PerStep<float> dlog_a, dw;
  double* flow;  // [B, T, H] instead of dlog_a, or null
};

/// dlog_a_t = Σ_{i ≥ t} (ends − starts) + what passes over the chunk + Σ_{j < t} passed on, sums within a
/// chunk. A block a sequence and head, a warp a chunk, two steps a lane.
__global__ void ssd_flow_assembly_kernel(FlowAssembly s) {
  auto* nets = dynamic_shared<double>();
  double *passed_on = nets + s.chunks, *over = passed_on + s.chunks, *decays = over + s.chunks;
  const int b = static_cast<int>(blockIdx.x) / s.H, h = static_cast<int>(blockIdx.x) % s.H;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int warps = static_cast<int>(blockDim.x) / 32;
  const int64_t part = int64_t{s.B} * s.steps * s.H;
  const auto index = [&](int t) { return (int64_t{b} * s.steps + t) * s.H + h; };
  const auto net_of = [&](int t) {
    const double *ends = s.ends + index(t), *starts = s.starts + index(t);
    const int i = t % ssd_chunk, left = s.steps - (t - i), rows = left < ssd_chunk ? left : ssd_chunk;
    double sum = 0;
    for (int k = 0; k < 2 * s.slices; ++k) sum += ends[k * part];
    for (int k = 0; k < s.slices; ++k)
      for (int r = i / 16; 16 * r < rows; ++r) sum -= starts[(4 * k + r) * part];
    return sum;
  };
  const auto passed_of = [&](int t) {
    double sum = 0;
    for (int k = 0; k < 2 * s.slices; ++k) sum += s.passed_on[k * part + index(t)];
    return s.w.data ? sum * static_cast<double>(s.w.at(b, t, h)) : sum;
  };
  if (s.dw_sums)
    for (int t = static_cast<int>(threadIdx.x); t < s.steps; t += static_cast<int>(blockDim.x)) {
      double sum = 0;
      for (int k = 0; k < s.dw_parts; ++k) sum += s.dw_sums[k * part + index(t)];
      s.dw.at(b, t, h) = static_cast<float>(sum);
    }
  if (!s.ends) return;
  for (int c = warp; c < s.chunks; c += warps) {
    double net = 0, passed = 0, decay = 0;
    for (int e = 0; e < 2; ++e) {
      const int t = c * ssd_chunk + 2 * lane + e;
      if (t < s.steps)
        net += net_of(t), passed += passed_of(t), decay += static_cast<double>(s.log_a.at(b, t, h));
    }
    for (int d = 16; d > 0; d /= 2) {
      net += __shfl_xor_sync(0xFFFFFFFFu, net, d);
      passed += __shfl_xor_sync(0xFFFFFFFFu, passed, d);
      decay += __shfl_xor_sync(0xFFFFFFFFu, decay, d);
    }
    if (lane == 0) nets[c] = net, passed_on[c] = passed, decays[c] = decay;
  }
  __syncthreads();
  // What flows over a chunk is what flows into it less what ends there; nothing survives a decay of e⁻⁴⁰.
  if (threadIdx.x == 0) {
    double in = 0;
    for (int c = 0; c < s.chunks; ++c) {
      over[c] = c + 1 == s.chunks || c == 0 || decays[c] < -40 ? 0 : in - nets[c];
      in = over[c] + passed_on[c];
    }
  }
  __syncthreads();
  for (int c = warp; c < s.chunks; c += warps) {
    double net[2] = {}, passed[2] = {};
    for (int e = 0; e < 2; ++e) {
      const int t = c * ssd_chunk + 2 * lane + e;
      if (t < s.steps) net[e] = net_of(t), passed[e] = passed_of(t);
    }
    double after = net[0] + net[1], before = passed[0] + passed[1];
    for (unsigned d = 1; d < 32; d *= 2) {
      const double x = __shfl_down_sync(0xFFFFFFFFu, after, d), y = __shfl_up_sync(0xFFFFFFFFu, before, d);
      if (lane + static_cast<int>(d) < 32) after += x;
      if (lane >= static_cast<int>(d)) before += y;
    }
    const double rest = __shfl_down_sync(0xFFFFFFFFu, after, 1u),
                 start = __shfl_up_sync(0xFFFFFFFFu, before, 1u);
    const double ends_after = lane == 31 ? 0 : rest, passed_before = lane == 0 ? 0 : start;
    for (int e = 0; e < 2; ++e) {
      const int t = c * ssd_chunk + 2 * lane + e;
      if (t >= s.steps) continue;
      const double value =
          over[c] + ends_after + net[1] + (e == 0 ? net[0] : 0) + passed_before + (e == 1 ? passed[0] : 0);
      if (s.flow)
        s.flow[index(t)] = value;
      else
        s.dlog_a.at(b, t, h) = static_cast<float>(value);
    }
  }
}

/// to[b, t, g, n] = Σ_{h of g} from[b, t, h, n], in order of h.
__global__ void ssd_sum_heads_kernel(const float* from, Heads<float> to, int64_t rows, int64_t steps,
                                     int groups, int per_group, int N) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= rows * groups * N) return;
  const int64_t n = at % N, g = at / N % groups, bt = at / N / groups;
  const float* x = from + (bt * groups + g) * per_group * N + n;
  float sum = 0;
  for (int h = 0; h < per_group; ++h) sum += x[int64_t{h} * N];
  to.row(bt / steps, g, bt % steps)[n] = sum;
}

/// to[h] = Σ_{b, e} sums[b, h, e]; a block a head.
__global__ void ssd_block_sums_kernel(const double* from, int batch, int heads, int each, PerStep<float> to) {
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

/// How a pass is cut: functions of its shape (and of how much shared memory a block may have).
struct WalkPlan {
  int slice, slices, stages;
  size_t shared;
};

inline size_t walk_shared(int inner, int slice, int stages) {
  const int inner_room = (inner + 15) / 16 * 16, x_ld = (inner_room + 31) / 32 * 32,
            z_ld = std::max(slice, 32);
  const int stage = std::max(ssd_chunk * x_ld, ssd_chunk * ssd_chunk) + ssd_chunk * (x_ld + z_ld);
  return sizeof(WalkShared) + sizeof(float) * static_cast<size_t>(inner_room * z_ld + stages * stage);
}

inline size_t shared_limit() {
  static const size_t limit = [] {
    int bytes = 0;
    ET_CUDA(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
    return static_cast<size_t>(bytes);
  }();
  return limit;
}

/// Slices of z's columns as wide as they can be with a block for every SM.
inline int walk_slice(int64_t blocks, int inner, int outer) {
  int slice = 16;
  while (slice < outer) slice *= 2;
  while (slice > 32 && blocks * ((outer + slice - 1) / slice) < 100) slice /= 2;
  return inner > 64 && slice > 64 ? 64 : slice;
}
inline WalkPlan walk_plan(int64_t blocks, int roles, int inner, int outer) {
  int slice = walk_slice(blocks, inner, outer);
  while (slice > 16 && walk_shared(inner, slice, 1) > shared_limit()) slice /= 2;
  const int slices = (outer + slice - 1) / slice;
  const bool alone = blocks * slices * roles <= 132 && walk_shared(inner, slice, 2) <= shared_limit();
  return {slice, slices, alone ? 2 : 1, walk_shared(inner, slice, alone ? 2 : 1)};
}

/// Chunks a segment: all, unless there are too few sequences.
inline int walk_segment(int64_t sequences, int64_t chunks) {
  if (sequences >= 48) return static_cast<int>(chunks);
  return static_cast<int>(std::min(chunks, std::max<int64_t>(2, (chunks * sequences + 511) / 512)));
}

/// What a fast pass needs besides its operands, asked of the context before it starts.
struct WalkRoom {
  Tensor states, decays, sums, dq, dk;  // dq, dk: of each head where heads share q and k
};

/// What is fused into a pass.
struct WalkExtras {
  StepFactor output;            // y_i is multiplied by it (an attention normaliser)
  bool wants_row_dots = false;  // the products dout_i·y_i before that factor, for the normaliser's gradient
  PerStep<const float> skip;    // y_i += skip v_i, [H]
  PerStep<float> dskip;
};
/// Σ over `parts` of [B, T, H] numbers each.
struct RowDots {
  const double* sums;
  int parts;
  int64_t part;
  ET_HD double at(int64_t row) const {
    double sum = 0;
    for (int k = 0; k < parts; ++k) sum += sums[k * part + row];
    return sum;
  }
};

/// One or two walks of the same widths.
inline void run_walks(const Context& ctx, Walk s, int roles, const WalkRoom& room) {
  const int64_t blocks = int64_t{s.B} * s.H * s.segments;
  const WalkPlan plan = walk_plan(blocks, roles, s.inner, s.outer);
  s.inner_room = (s.inner + 15) / 16 * 16, s.stages = plan.stages;
  s.aligned = s.inner % 4 == 0 && s.outer % 4 == 0;
  for (int r = 0; r < roles; ++r) {
    const WalkRole& role = s.roles[r];
    for (const Heads<float>* x : {&role.x, &role.y, &role.z, &role.out})
      s.aligned = s.aligned && rows_aligned(*x, 16);
    if (s.segments > 1) s.roles[r].states = room.states.data<float>() + r * blocks * s.inner * s.outer;
  }
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(plan.slices),
                  static_cast<unsigned>(roles));
  const auto walk = [&] {
    switch (ctx.precision) {
      case Precision::fp32:
        return launch_walk<Precision::fp32>(ctx, s, plan.slice, plan.shared, grid);
      case Precision::tf32:
        return launch_walk<Precision::tf32>(ctx, s, plan.slice, plan.shared, grid);
      case Precision::tf32x3:
        return launch_walk<Precision::tf32x3>(ctx, s, plan.slice, plan.shared, grid);
      case Precision::bf16:
        return launch_walk<Precision::bf16>(ctx, s, plan.slice, plan.shared, grid);
    }
  };
  if (s.segments > 1) {
    s.states_only = true, s.decays = room.decays.data<float>();
    walk();
    const int64_t sequences = int64_t{s.B} * s.H, elements = int64_t{s.inner} * s.outer;
    for (int r = 0; r < roles; ++r)
      launch(ctx, ssd_prefix_kernel<float>, blocks_for(sequences * elements, 256), 256, 0, s.roles[r].states,
             s.decays, sequences, s.segments, elements, s.roles[r].reverse);
    s.states_only = false;
  }
  walk();
}

inline Walk walk_of(const SsdOperands<float>& s, int inner, int outer) {
  Walk walk{};
  walk.log_a = s.log_a;
  walk.B = s.B, walk.steps = s.T_, walk.H = s.H, walk.inner = inner, walk.outer = outer,
  walk.chunks = s.chunks;
  walk.segment = walk_segment(int64_t{s.B} * s.H, s.chunks);
  walk.segments = (s.chunks + walk.segment - 1) / walk.segment;
  return walk;
}

inline bool ssd_is_fast(DType dtype, int64_t N, int64_t P) {
  return dtype == DType::f32 && N <= walk_most_width && P <= walk_most_width;
}

inline WalkRole walk_role(const Heads<float>& x, int x_heads, const Heads<float>& y, int y_heads,
                          const Heads<float>& z, int z_heads, const Heads<float>& out, int out_heads) {
  WalkRole role{};
  role.x = x, role.y = y, role.z = z, role.out = out;
  role.x_heads = x_heads, role.y_heads = y_heads, role.z_heads = z_heads, role.out_heads = out_heads;
  return role;
}

inline void ssd_fast(const Context& ctx, const SsdOperands<float>& s, const WalkRoom& room,
                     const WalkExtras& extras = {}) {
  Walk walk = walk_of(s, s.N, s.P);
  walk.roles[0] = walk_role(s.q, s.G, s.k, s.G, s.v, s.H, s.y, s.H);
  walk.roles[0].source.from = s.w;
  walk.roles[0].target = extras.output, walk.roles[0].skip = extras.skip;
  run_walks(ctx, walk, 1, room);
}

/// Elements of what a pass asks for.
struct WalkNeeds {
  int64_t states, decays, sums, shared_heads;
};
struct WalkWants {
  bool backward = false, dlog_a = false, dw = false, row_dots = false, dskip = false;
};
inline WalkNeeds walk_needs(int64_t B, int64_t T, int64_t G, int64_t H, int64_t N, int64_t P,
                            const WalkWants& wants) {
  const int64_t chunks = (T + ssd_chunk - 1) / ssd_chunk, sequences = B * H;
  const int64_t segment = walk_segment(sequences, chunks), segments = (chunks + segment - 1) / segment;
  const int64_t blocks = sequences * segments;
  const auto parts = [&](int64_t inner, int64_t outer) {
    return int64_t{walk_plan(blocks, 1, static_cast<int>(inner), static_cast<int>(outer)).slices};
  };
  const int64_t per_step = (wants.dlog_a     ? 8 * parts(P, N)
                            : wants.row_dots ? 2 * parts(P, N)
                                             : 0) +
                           (wants.dw ? 2 * parts(N, P) : 0);
  return {segments > 1 ? blocks * N * P * (wants.backward ? 2 : 1) : 0, segments > 1 ? blocks : 0,
          B * T * H * per_step + (wants.dskip ? blocks * parts(N, P) * (walk_threads / 32) : 0),
          wants.backward && G < H ? B * T * H * N : 0};
}

inline RowDots ssd_backward_fast(const Context& ctx, const SsdOperands<float>& s, const WalkRoom& room,
                                 const WalkExtras& extras = {}) {
  const bool flows = s.dlog_a.data, shared = s.G < s.H;
  const int64_t part = int64_t{s.B} * s.T_ * s.H;
  double* sums = room.sums.numel() ? room.sums.data<double>() : nullptr;
  FlowAssembly assembly{nullptr, nullptr,  nullptr, nullptr, 0,        0,    s.B,   s.T_,
                        s.H,     s.chunks, s.log_a, s.w,     s.dlog_a, s.dw, s.flow};
  Walk walk = walk_of(s, s.P, s.N);
  int roles = 0;
  RowDots row_dots{nullptr, 0, part};
  const auto buffer = [&](const Tensor& t) {
    return Heads<float>{t.data<float>(), int64_t{s.T_} * s.H * s.N, int64_t{s.H} * s.N, s.N};
  };
  if (flows) {
    const int slices = walk_plan(int64_t{s.B} * s.H * walk.segments, 2, s.P, s.N).slices;
    assembly.ends = sums, assembly.passed_on = sums + 2 * slices * part,
    assembly.starts = sums + 4 * slices * part;
    assembly.slices = slices, sums += 8 * slices * part;
  }
  if (s.dq.data || flows || extras.wants_row_dots) {
    WalkRole& role = walk.roles[roles++];
    role = walk_role(s.dy, s.H, s.v, s.H, s.k, s.G, shared && s.dq.data ? buffer(room.dq) : s.dq, s.H);
    role.source.from = s.w, role.target = extras.output;
    if (extras.wants_row_dots) {
      row_dots.sums = sums,
      row_dots.parts = 2 * walk_plan(int64_t{s.B} * s.H * walk.segments, 2, s.P, s.N).slices;
      role.dots = WalkDots::all, role.dotted = s.q, role.dotted_heads = s.G, role.sums = sums;
      sums += row_dots.parts * part;
    }
    if (flows) {
      role.dots = WalkDots::state_part, role.flow = true, role.dotted = s.q, role.dotted_heads = s.G;
      role.sums = const_cast<double*>(assembly.ends), role.starts = const_cast<double*>(assembly.starts);
    }
  }
  if (s.dk.data || flows) {
    WalkRole& role = walk.roles[roles++];
    role = walk_role(s.v, s.H, s.dy, s.H, s.q, s.G, shared && s.dk.data ? buffer(room.dk) : s.dk, s.H);
    role.target.from = s.w, role.source = extras.output, role.reverse = true;
    if (flows) {
      role.dots = WalkDots::state_part, role.dotted = s.k, role.dotted_heads = s.G;
      role.sums = const_cast<double*>(assembly.passed_on);
    }
  }
  if (roles > 0) run_walks(ctx, walk, roles, room);
  if (shared) {
    const int64_t rows = int64_t{s.B} * s.T_, elements = rows * s.G * s.N;
    const auto sum = [&](const Tensor& from, const Heads<float>& to) {
      if (to.data)
        launch(ctx, ssd_sum_heads_kernel, blocks_for(elements, 256), 256, 0, from.data<float>(), to, rows,
               int64_t{s.T_}, s.G, s.H / s.G, s.N);
    };
    sum(room.dq, s.dq), sum(room.dk, s.dk);
  }
  if (s.dv.data || s.dw.data || extras.dskip.data) {
    Walk values = walk_of(s, s.N, s.P);
    WalkRole& role = values.roles[0];
    role = walk_role(s.k, s.G, s.q, s.G, s.dy, s.H, s.dv, s.H);
    role.target.from = s.w, role.source = extras.output, role.skip = extras.skip, role.reverse = true;
    if (s.dw.data || extras.dskip.data) role.dotted = s.v, role.dotted_heads = s.H;
    const int64_t blocks = int64_t{s.B} * s.H * values.segments;
    const int slices = walk_plan(blocks, 1, s.N, s.P).slices;
    if (s.dw.data) {
      role.dots = WalkDots::all, role.sums = sums;
      assembly.dw_sums = sums;
      assembly.dw_parts = 2 * slices, sums += 2 * slices * part;
    }
    if (extras.dskip.data) role.skip_sums = sums;
    run_walks(ctx, values, 1, room);
    if (extras.dskip.data)
      launch(ctx, ssd_block_sums_kernel, static_cast<unsigned>(s.H), 256, 256 * sizeof(double), sums, s.B,
             s.H, values.segments * slices * (walk_threads / 32), extras.dskip);
  }
  if (flows || s.dw.data)
    launch(ctx, ssd_flow_assembly_kernel, static_cast<unsigned>(s.B * s.H), 256,
           4 * sizeof(double) * static_cast<size_t>(s.chunks), assembly);
  if (s.flow)
    launch(ctx, ssd_flow_per_head_kernel<float>, static_cast<unsigned>(s.H), 256, 256 * sizeof(double),
           s.flow, int64_t{s.B} * s.T_, s.H, s.dlog_a);
  return row_dots;
}

}  // namespace
}  // namespace eigentrace::kernels
#endif
