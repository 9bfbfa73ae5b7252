// Softmax attention's kernels for devices with wgmma: compiled for architecture 90a where 90 is asked for.
#include "tensor/kernels/softmax_attention_picks.cuh"
#include "tensor/kernels/softmax_attention_wgmma.cuh"

#ifdef EIGENTRACE_WITH_CUDA
namespace eigentrace::kernels {
namespace {

template <class Body>
void with_wgmma_sizes(const AttentionPlan& plan, Body&& body) {
  if (plan.P == 32) return body.template operator()<16, 32>();
  if (plan.N == 16) return body.template operator()<16, 128>();
  body.template operator()<128, 128>();
}

template <int N, int P, bool picked>
void pack(const Context& ctx, const AttentionOperands<float>& a, const AttentionGradients<float>& g,
          const AttentionPicks& picks, int64_t items, int64_t tiles, void* packs) {
  const bool y_in_fours = reinterpret_cast<uintptr_t>(a.y.data) % 16 == 0 &&
                          (a.y.batch % 4 | a.y.time % 4 | a.y.head % 4 | a.size.P % 4) == 0;
  launch(ctx, attention_pack_kernel<N, P, picked>,
         static_cast<unsigned>(tiles * items * AttentionPackBlock<N, P>::blocks), attention_pack_threads, 0,
         a, g, access_of(a, g), y_in_fours, static_cast<unsigned char*>(packs), static_cast<int>(tiles),
         picks);
}

}  // namespace

void attention_pack(const Context& ctx, const AttentionPlan& plan, const AttentionOperands<float>& a,
                    const AttentionGradients<float>& g, void* packs) {
  const int64_t tiles = (a.size.T + attention_wgmma_queries - 1) / attention_wgmma_queries;
  with_wgmma_sizes(
      plan, [&]<int N, int P>() { pack<N, P, false>(ctx, a, g, {}, a.size.B * a.size.H, tiles, packs); });
}
void attention_pack_picks(const Context& ctx, const AttentionOperands<float>& a,
                          const AttentionGradients<float>& g, const AttentionPicks& picks, void* packs) {
  pack<128, 128, true>(ctx, a, g, picks, a.size.H, picks.capacity, packs);
}

void attention_wgmma_backward(const Context& ctx, const AttentionPlan& plan,
                              const AttentionOperands<float>& a, const AttentionGradients<float>& g,
                              const AttentionParts& parts, const void* packs) {
  int processors = 0;
  ET_CUDA(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, ctx.device().index));
  const int64_t runs = a.size.B * a.size.H * parts.blocks;
  with_wgmma_sizes(plan, [&]<int N, int P>() {
    using Block = AttentionWgmmaBlock<N, P>;
    const int64_t blocks = Block::stays ? std::min<int64_t>(runs, processors) : runs;
    launch(
        ctx,
        a.drops ? attention_wgmma_backward_kernel<N, P, true> : attention_wgmma_backward_kernel<N, P, false>,
        static_cast<unsigned>(blocks), Block::threads, Block::bytes, a, g, access_of(a, g), parts,
        static_cast<const unsigned char*>(packs));
  });
}
void attention_wgmma_backward_picks(const Context& ctx, const AttentionOperands<float>& a,
                                    const AttentionGradients<float>& g, const AttentionParts& parts,
                                    const AttentionPicks& picks, const void* packs) {
  using Block = AttentionPicksBlock<128, 128>;
  launch(ctx, attention_picks_backward_kernel<128, 128>,
         static_cast<unsigned>(a.size.B * a.size.H * parts.blocks), Block::threads, Block::bytes, a, g,
         access_of(a, g), parts, static_cast<const unsigned char*>(packs), picks);
}

}  // namespace eigentrace::kernels
#endif
