#pragma once
// Softmax attention's backward pass in bf16 where the device has wgmma (tensor/wgmma.h). Equations:
// softmax_attention.cu.
//
// A warpgroup owns 64 keys and walks over tiles of 64 queries, as softmax_attention_pack.cuh has laid them
// down, with everything transposed, as the mma.sync kernel does: sᵀ = k qᵀ, dpᵀ = v dyᵀ, and pᵀ and dsᵀ are
// left operands of dv
// += pᵀ dy and dk += dsᵀ q. Exponentials run beside the products of dp, ds is made beside those of dv. One
// more warpgroup fetches tiles, draws dropout's masks in advance and makes dq = ds k, for which ds crosses
// shared memory; dq is summed from its parts by attention_sum_kernel.
//
// CIFAR (200, 1024, N 16, P 128), H200: a tile of 128 × 64 pairs keeps the tensor cores busy for 1200 clocks
// (dp, dv 512 each) and exponentials for 512; 14400 tiles are 75 µs. Takes 214 µs (mma.sync 318), tensor
// cores 36 % busy. IMDB (24, 4096, 16, 32), dropout: 1400 issue slots a scheduler and tile, 287 µs (337).
// MQAR (64, 512, 128, 128): 54 µs (82), dv waited for before ds, or registers would not suffice.
#include "tensor/kernels/softmax_attention_pack.cuh"

#ifdef EIGENTRACE_WITH_CUDA
namespace eigentrace::kernels {

/// The first warpgroup fetches and makes dq, `groups` more own keys. Where k and v stay in registers a block
/// works on one run of keys after the other, and the next one's k and v (`raw`) travel meanwhile.
template <int N, int P>
struct AttentionWgmmaBlock {
  using Pack = AttentionPack<N, P>;
  static constexpr int groups = attention_wgmma_groups(N, P), threads = 128 * (groups + 1),
                       rows = 64 * groups;
  static constexpr bool stays = N == 16;
  static constexpr int dq_columns = N < 32 ? N : 32;
  // what the launch gives all threads is shared out anew
  static constexpr int registers_of_dq = stays && P > 32 ? 40 : 56,
                       registers =
                           (65536 / threads / 8 * 8 * (groups + 1) - registers_of_dq) / groups / 8 * 8;
  static constexpr int stages = stays ? 4 : 3, stage_bytes = (Pack::bytes + 1023) / 1024 * 1024;
  using Ds = WgmmaTile<Pack::queries, rows>;
  using K = WgmmaTile<N, rows>;
  using V = WgmmaTile<P, rows>;
  static constexpr int ds = stages * stage_bytes, k = ds + 2 * Ds::bytes, v = k + K::bytes,
                       masks = v + (stays ? 4 * rows * (N + P) : V::bytes),
                       barriers = masks + stages * 512 * groups, bytes = barriers + 8 * (stages + 1) + 1024;
  /// Where k (width N) or v (P) lie in `raw`, in elements: no bank twice.
  template <int width>
  __device__ static int raw(int row, int column) {
    constexpr int pieces = width / 4 < 8 ? width / 4 : 8;
    return (width == N ? 0 : rows * N) + row * width + (column / 4 ^ row % pieces) * 4 + column % 4;
  }
};

template <int N, int P, bool drops>
__global__ void __launch_bounds__(AttentionWgmmaBlock<N, P>::threads, 1)
    attention_wgmma_backward_kernel(AttentionOperands<float> a, AttentionGradients<float> grad,
                                    AttentionAccess access, AttentionParts parts,
                                    const unsigned char* packs) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Block = AttentionWgmmaBlock<N, P>;
  using Pack = typename Block::Pack;
  using Dy = typename Pack::Dy;
  using Q = typename Pack::Q;
  using K = typename Block::K;
  using V = typename Block::V;
  using Ds = typename Block::Ds;
  constexpr int threads = Block::threads, rows = Block::rows, stages = Block::stages;
  constexpr int queries = Pack::queries, tiles = queries / 8;
  // named barriers: two each of ds's two places; of raw; of a warpgroup
  constexpr int full = 1, empty = 3, taken = 5, own_barrier = 6;
  unsigned char* const shared =
      dynamic_shared<unsigned char>() +
      (1024 - __cvta_generic_to_shared(dynamic_shared<unsigned char>()) % 1024) % 1024;
  const auto base = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  auto* const raw = reinterpret_cast<float*>(shared + Block::v);
  const int length = static_cast<int>(a.size.T), all_tiles = (length + queries - 1) / queries;
  const auto items = static_cast<unsigned>(a.size.B * a.size.H), heads = static_cast<unsigned>(a.size.H);
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const int warp = __shfl_sync(0xFFFFFFFFu, static_cast<int>(threadIdx.x) / 32, 0);
  const auto place = [&](int m) { return base + static_cast<uint32_t>(m % stages * Block::stage_bytes); };
  const auto arrival = [&](int m) {
    return base + static_cast<uint32_t>(Block::barriers + 8 * (m % stages));
  };
  const uint32_t raw_arrival = base + static_cast<uint32_t>(Block::barriers + 8 * stages);
  // dropout's decisions of each thread that owns keys, bit 4 c + e: s[4 c + e] is kept
  const auto masks_of = [&](int m) {
    return reinterpret_cast<uint32_t*>(shared + Block::masks) + m % stages * 128 * Block::groups;
  };
  const auto ds_of = [&](int m) { return base + static_cast<uint32_t>(Block::ds + m % 2 * Ds::bytes); };
  // A block's i-th run of keys: forth and back through all of them, which become shorter.
  struct Run {
    unsigned item;
    int turn, j0, count;  // tiles of queries from the one of key j0 on; 0: there is no such run
  };
  const auto run_of = [&](int i) {
    const unsigned n = gridDim.x,
                   index = static_cast<unsigned>(i) * n + (i % 2 ? n - 1 - blockIdx.x : blockIdx.x);
    if (index >= items * static_cast<unsigned>(parts.blocks)) return Run{0, 0, 0, 0};
    // up to 64 heads together, whose operands stay in the L2 cache
    const unsigned most = (items + (items + 63) / 64 - 1) / ((items + 63) / 64);
    const unsigned together = most * static_cast<unsigned>(parts.blocks);
    const unsigned begin = index / together * most, in = index % together;
    const unsigned members = items - begin < most ? items - begin : most;
    const int turn = static_cast<int>(in / members), j0 = (parts.first_block + turn) * rows;
    return Run{begin + in % members, turn, j0, all_tiles - j0 / queries};
  };
  const auto k_of = [&](const Run& run) {
    return AttentionRows(a.k, run.item / heads, run.item % heads, length, a.size.N, access.k);
  };
  const auto v_of = [&](const Run& run) {
    return AttentionRows(a.v, run.item / heads, run.item % heads, length, a.size.P, access.v);
  };

  if (threadIdx.x == 0) {
    for (int m = 0; m < stages; ++m) bulk_barrier_init(arrival(m), drops ? 129 : 1);
    bulk_barrier_init(raw_arrival, 128);
    fence_for_async();
  }
  __syncthreads();
  const auto stage = [&] {  // k and v of a block's one run: reads of each all under way together
    const auto copy = [&]<class Tile, int width>(unsigned char* to, const AttentionRows& x, int j0) {
      constexpr int pieces = rows * width / 4, each = (pieces + threads - 1) / threads;
      Vec<float, 4> f[each];
      const auto piece = [&](int u) { return u * threads + static_cast<int>(threadIdx.x); };
      with_vectors(x.vectors, [&]<bool all>() {
#pragma unroll
        for (int u = 0; u < each; ++u)
          if (const int e = piece(u); e < pieces)
            f[u] = attention_elements<4, all>(x, j0 + e / (width / 4), e % (width / 4) * 4);
      });
#pragma unroll
      for (int u = 0; u < each; ++u)
        if (const int e = piece(u); e < pieces)
          *reinterpret_cast<uint2*>(to + Tile::offset(e / (width / 4), e % (width / 4) * 4)) =
              make_uint2(pack_bf16(f[u].x[0], f[u].x[1]), pack_bf16(f[u].x[2], f[u].x[3]));
    };
    const Run run = run_of(0);
    copy.template operator()<K, N>(shared + Block::k, k_of(run), run.j0);
    copy.template operator()<V, P>(shared + Block::v, v_of(run), run.j0);
    fence_for_async();
    named_sync(taken, threads);
  };

  if (warp < 4) {
    if constexpr (Block::stays) fewer_registers<Block::registers_of_dq>();
    const auto copy = [&]<int width>(const AttentionRows& x, int j0) {
      constexpr int pieces = width / 4;
#pragma unroll 1
      for (int e = static_cast<int>(threadIdx.x); e < rows * pieces; e += 128) {
        const int row = e / pieces, column = e % pieces * 4;
        float* const to = raw + Block::template raw<width>(row, column);
        const int left = j0 + row < length ? x.columns - column : 0;
        const float* const from = x.data + (j0 + row) * x.stride + column;
        if (x.vectors)
          copy_async_16(to, left > 0 ? from : x.data, left > 0);
        else
          for (int c = 0; c < 4; ++c) copy_async_4(to + c, c < left ? from + c : x.data, c < left);
      }
    };
    const auto copy_raw = [&](const Run& run) {
      if constexpr (Block::stays)
        if (run.count > 0) {
          copy.template operator()<N>(k_of(run), run.j0);
          copy.template operator()<P>(v_of(run), run.j0);
          copies_arrive(raw_arrival);
        }
    };
    Run run = run_of(0);
    copy_raw(run);
    // Tiles of this and the following runs are asked for in advance, and their masks drawn: a thread has two
    // calls for each 16 queries, which decide for two lanes (attention_transpose).
    int ahead = 0, ahead_run = 0, left = 0;
    const unsigned char* from = packs;
    AttentionMask mask = drops ? AttentionMask(a.mask, 0, length) : AttentionMask();
    int64_t draws = 0;
    const int pair = static_cast<int>(threadIdx.x) % 16;
    static_assert(!drops || Block::groups == 2);
    const auto fetch = [&] {
      if (left == 0) {
        const Run next = run_of(ahead_run++);
        if (next.count == 0) return;
        left = next.count, from = packs + (int64_t{next.item} * all_tiles + next.j0 / queries) * Pack::bytes;
        if constexpr (drops) {
          mask.item = next.item;
          draws = mask.block(next.j0 + pair % 4 * 2,
                             next.j0 + static_cast<int>(threadIdx.x) / 16 * 16 + pair / 4 * 2);
        }
      }
      if (threadIdx.x == 0) bulk_copy(place(ahead), from, Pack::bytes, arrival(ahead));
      if constexpr (drops) {
        uint32_t bits[2] = {};
#pragma unroll
        for (int c = 0; c < queries / 16; ++c, draws += 32 * mask.blocks) {
          const int64_t block[2] = {draws, draws + 4};
          Philox4 w[2];
          mask.words(w, block);
          uint32_t kept[2][4];
          mask.halves(kept, w);
#pragma unroll
          for (int e = 0; e < 8; ++e)  // of words r + 2 · (key ≥ 8) of both, r: query ≥ 8
            bits[c / 2] |= kept[e % 2][e / 4 + e / 2 % 2 * 2] & 0x10001u << (c % 2 * 8 + e);
        }
        uint32_t* const to =
            masks_of(ahead) + static_cast<int>(threadIdx.x) / 16 * 32 + pair / 4 * 8 + pair % 4;
        to[0] = __byte_perm(bits[0], bits[1], 0x5410);
        to[4] = __byte_perm(bits[0], bits[1], 0x7632);
        bulk_arrive(arrival(ahead));
      }
      ++ahead, --left, from += Pack::bytes;
    };
    for (int m = 0; m < stages; ++m) fetch();
    if constexpr (!Block::stays) {
      stage();
      fewer_registers<Block::registers_of_dq>();
    }
    for (int i = 0, m = 0; run.count > 0; ++i) {
      if constexpr (Block::stays) {
        bulk_wait(raw_arrival, i % 2);
        if (i > 0) named_sync(own_barrier, 128);  // no warp multiplies by the last run's k any more
        for (int e = static_cast<int>(threadIdx.x); e < rows * N / 4; e += 128) {
          const int row = e / (N / 4), column = e % (N / 4) * 4;
          const float4 f = *reinterpret_cast<const float4*>(raw + Block::template raw<N>(row, column));
          *reinterpret_cast<uint2*>(shared + Block::k + K::offset(row, column)) =
              make_uint2(pack_bf16(f.x, f.y), pack_bf16(f.z, f.w));
        }
        fence_for_async();
        named_sync(own_barrier, 128);
        named_sync(taken, threads);  // all have read it
        copy_raw(run_of(i + 1));
      }
      float* const dq_part = parts.data + (int64_t{run.turn} * items + run.item) * length * N;
      for (int n = 0; n < run.count; ++n, ++m) {
        named_sync(full + m % 2, threads);  // ds is there; the tile before is done with
        const int first = run.j0 + queries * n + warp * 16 + g;
#pragma unroll 1
        for (int part = 0; part < N / Block::dq_columns; ++part) {
          float dq[Block::dq_columns / 2];
          wgmma_fence();
#pragma unroll
          for (int e = 0; e < rows / 16; ++e)
            wgmma_bf16<Block::dq_columns, 1, 1>(
                dq, wgmma_rows_of<Ds>(ds_of(m), e),
                wgmma_rows_of<K>(base + Block::k, e, part * Block::dq_columns), e > 0);
          wgmma_commit();
          if (part == 0 && m > 0) fetch();
          wgmma_wait<0>();
          wgmma_pin(dq);
          float* const to = dq_part + int64_t{first} * N + part * Block::dq_columns + 2 * t;
#pragma unroll
          for (int r = 0; r < 2; ++r)
            if (grad.wants_q && first + 8 * r < length)
#pragma unroll
              for (int c = 0; c < Block::dq_columns / 8; ++c)
                *reinterpret_cast<float2*>(to + 8 * r * N + 8 * c) =
                    make_float2(dq[4 * c + 2 * r], dq[4 * c + 2 * r + 1]);
        }
        named_arrive(empty + m % 2, threads);
      }
      run = run_of(i + 1);
    }
    return;
  }

  if constexpr (!Block::stays) stage();
  more_registers<Block::registers>();
  const int group = warp / 4 - 1, own = warp * 16 - 64;
  const float keep = drops ? static_cast<float>(a.mask.keep_scale) : 1.0f;
  uint32_t k_left[Block::stays ? N / 16 : 1][4], v_left[Block::stays ? P / 16 : 1][4];
  float dk[N / 2], dv[P / 2], s[queries / 2], d[queries / 2];
  uint32_t p_left[queries / 16][4], ds_left[queries / 16][4];
  int m = 0;
  for (int i = 0;; ++i) {
    const Run run = run_of(i);
    if (run.count == 0) break;
    const int first = run.j0 + own;
    if constexpr (Block::stays) {
      const auto fragments = [&]<int width>(uint32_t(&left)[width / 16][4]) {
        constexpr int pieces = width / 4 < 8 ? width / 4 : 8;
        const float* const row = raw + (width == N ? 0 : rows * N) + (own + g) * width + 2 * (t % 2);
#pragma unroll
        for (int c = 0; c < width / 16; ++c)
#pragma unroll
          for (int e = 0; e < 4; ++e) {  // as Block::raw has it
            const int piece = 4 * c + e / 2 * 2, in = (piece % pieces + t / 2) ^ g % pieces;
            const float2 f = *reinterpret_cast<const float2*>(row + e % 2 * 8 * width +
                                                              (piece / pieces * pieces + in) * 4);
            left[c][e] = pack_bf16(f.x, f.y);
          }
      };
      bulk_wait(raw_arrival, i % 2);
      fragments.template operator()<N>(k_left), fragments.template operator()<P>(v_left);
      named_arrive(taken, threads);
    }
#pragma unroll 1
    for (int n = 0; n < group && n < run.count; ++n, ++m) {  // queries before these keys
      if (m >= 2) named_sync(empty + m % 2, threads);
#pragma unroll
      for (int e = 0; e < queries / 16; ++e)
        stmatrix_x4(ds_of(m) + static_cast<uint32_t>(Ds::offset(own + lane % 16, 16 * e + lane / 16 * 8)),
                    {0, 0, 0, 0});
      fence_for_async();
      named_arrive(full + m % 2, threads);
    }
#pragma unroll 1
    for (int n = group; n < run.count; ++n, ++m) {
      const uint32_t dy_now = place(m), q_now = dy_now + Pack::q;
      const auto* stats =
          reinterpret_cast<const float*>(shared + m % stages * Block::stage_bytes + Pack::stats) + 2 * t;
      bulk_wait(arrival(m), m / stages % 2);
      if constexpr (Block::stays) wgmma_pin(k_left), wgmma_pin(v_left);
      wgmma_fence();
#pragma unroll
      for (int e = 0; e < N / 16; ++e)
        if constexpr (Block::stays)
          wgmma_bf16<queries, 0>(s, k_left[e], wgmma_columns_of<Q>(q_now, e), e > 0);
        else
          wgmma_bf16<queries, 0, 0>(s, wgmma_columns_of<K>(base + Block::k, e, 64 * group),
                                    wgmma_columns_of<Q>(q_now, e), e > 0);
      wgmma_commit();
      if constexpr (!Block::stays) {  // frees the registers of the tile before while products of s run
        wgmma_wait<1>();
        wgmma_pin(p_left), wgmma_pin(dv), wgmma_pin(dk);
      }
#pragma unroll
      for (int e = 0; e < P / 16; ++e)
        if constexpr (Block::stays)
          wgmma_bf16<queries, 0>(d, v_left[e], wgmma_columns_of<Dy>(dy_now, e), e > 0);
        else
          wgmma_bf16<queries, 0, 0>(d, wgmma_columns_of<V>(base + Block::v, e, 64 * group),
                                    wgmma_columns_of<Dy>(dy_now, e), e > 0);
      wgmma_commit();
      const uint32_t dropped = drops ? ~masks_of(m)[threadIdx.x - 128] : 0;
      wgmma_wait<1>();
      wgmma_pin(s);
#pragma unroll
      for (int c = 0; c < tiles; ++c) {
        const float2 start = *reinterpret_cast<const float2*>(stats + 8 * c);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float& p = s[4 * c + e];
          p = attention_exp2(p + (e % 2 ? start.y : start.x));
          if constexpr (drops)  // what is dropped: with its sign
            p = __uint_as_float(__float_as_uint(p) ^ (dropped << (31 - 4 * c - e) & 0x80000000u));
        }
      }
      if (n == group) {
#pragma unroll
        for (int i = 0; i < queries / 2; ++i)
          if (warp % 4 * 16 + g + i / 2 % 2 * 8 > i / 4 * 8 + 2 * t + i % 2) s[i] = 0;
      }
#pragma unroll
      for (int e = 0; e < queries / 16; ++e)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          p_left[e][i] = drops ? pack_kept_bf16(s[8 * e + 2 * i], s[8 * e + 2 * i + 1])
                               : pack_bf16(s[8 * e + 2 * i], s[8 * e + 2 * i + 1]);
      wgmma_pin(p_left);
      wgmma_fence();
#pragma unroll
      for (int e = 0; e < queries / 16; ++e)
        wgmma_bf16<P, 1>(dv, p_left[e], wgmma_rows_of<Dy>(dy_now, e), e > 0 || n > group);
      wgmma_commit();
      wgmma_wait<Block::stays ? 1 : 0>();  // or registers would not suffice
      wgmma_pin(d);
#pragma unroll
      for (int c = 0; c < tiles; ++c) {
        const float2 less = *reinterpret_cast<const float2*>(stats + queries + 8 * c);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const uint32_t pair = p_left[c / 2][c % 2 * 2 + e / 2];
          const float p =
              Block::stays || drops ? s[4 * c + e] : __uint_as_float(e % 2 ? pair & 0xFFFF0000u : pair << 16);
          const float delta = e % 2 ? less.y : less.x;
          float& ds = d[4 * c + e];
          ds = drops ? fmaf(fmaxf(p, 0.0f), ds, fabsf(p) * delta) : p * (ds + delta);
        }
      }
#pragma unroll
      for (int e = 0; e < queries / 16; ++e)
#pragma unroll
        for (int i = 0; i < 4; ++i) ds_left[e][i] = pack_bf16(d[8 * e + 2 * i], d[8 * e + 2 * i + 1]);
      if constexpr (Block::stays) {
        wgmma_pin(ds_left);
        wgmma_fence();
#pragma unroll
        for (int e = 0; e < queries / 16; ++e)
          wgmma_bf16<N, 1>(dk, ds_left[e], wgmma_rows_of<Q>(q_now, e), e > 0 || n > group);
        wgmma_commit();
      }
      if (m >= 2) named_sync(empty + m % 2, threads);
#pragma unroll
      for (int e = 0; e < queries / 16; ++e)
        stmatrix_x4(ds_of(m) + static_cast<uint32_t>(Ds::offset(own + lane % 16, 16 * e + lane / 16 * 8)),
                    ds_left[e]);
      fence_for_async();
      if constexpr (!Block::stays) {  // no registers are left for it
        named_sync(own_barrier + 1 + group, 128);
        wgmma_fence();
#pragma unroll
        for (int e = 0; e < queries / 16; ++e)
          wgmma_bf16<N, 0, 1>(dk, wgmma_columns_of<Ds>(ds_of(m), e, 64 * group), wgmma_rows_of<Q>(q_now, e),
                              e > 0 || n > group);
        wgmma_commit();
      }
      named_arrive(full + m % 2, threads);
    }
    wgmma_wait<0>();
    wgmma_pin(dk), wgmma_pin(dv);
    const AttentionRows to_k(grad.dk, run.item / heads, run.item % heads, length, a.size.N, access.dk),
        to_v(grad.dv, run.item / heads, run.item % heads, length, a.size.P, access.dv);
    const float scale = 0.693147181f * keep;  // q has been scaled
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int j = first + g + 8 * r;
      if (grad.wants_k) to_k.store(j, reinterpret_cast<const float(&)[N / 8][4]>(dk), 2 * r, scale);
      if (grad.wants_v) to_v.store(j, reinterpret_cast<const float(&)[P / 8][4]>(dv), 2 * r, keep);
    }
  }
  if (m >= 2) named_sync(empty + m % 2, threads);
  if (m >= 1) named_sync(empty + (m + 1) % 2, threads);
#endif
}

}  // namespace eigentrace::kernels
#endif
