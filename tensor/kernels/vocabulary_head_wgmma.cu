// The vocabulary head where the device has wgmma: compiled for architecture 90a where 90 is asked for.
#include "tensor/kernels/vocabulary_head_wgmma.h"

#ifdef EIGENTRACE_WITH_CUDA
#include <algorithm>

#include "tensor/gemm_outer_wgmma.h"
#include "tensor/gemm_tensor_cores.cuh"
#include "tensor/kernels/vocabulary_head_wgmma.cuh"

namespace eigentrace::kernels {
namespace {

struct HeadScratch {
  Tensor losses, x_records, w_records, parts, at_label, products;
};

/// Blocks of `groups` tiles and pieces of what they meet: a block for each of 132 processors, a function of
/// the shape alone.
struct HeadGrid {
  int64_t blocks, rows, stream_tiles, length, pieces;
  HeadGrid(int groups, int64_t own_rows, int64_t others)
      : blocks((own_rows + groups * head_tile - 1) / (groups * head_tile)),
        rows(blocks * groups * head_tile),
        stream_tiles((others + head_tile - 1) / head_tile) {
    constexpr int64_t processors = 132;
    const int64_t wanted = std::clamp<int64_t>(processors / blocks, 1, stream_tiles);
    length = (stream_tiles + wanted - 1) / wanted;
    pieces = (stream_tiles + length - 1) / length;
  }
};

template <HeadMode mode>
void pass(Context& ctx, const HeadGrid& grid, HeadPass p) {
  p.stream_tiles = static_cast<int>(grid.stream_tiles), p.length = static_cast<int>(grid.length);
  launch(ctx, head_wgmma_kernel<mode>,
         dim3(static_cast<unsigned>(grid.blocks), static_cast<unsigned>(grid.pieces)),
         HeadStages<mode>::threads, HeadStages<mode>::shared_bytes, p);
}

}  // namespace

bool takes_wgmma_head(const Context& ctx, const Tensor& x, const Tensor& weight,
                      const LabelledRows& labelled) {
  constexpr int64_t least = int64_t{1} << 19, most = int64_t{1} << 20;
  const int64_t M = labelled.labels.numel(), V = weight.dim(0);
  // bf16: x is float32 here, and this head, more exact, takes less time than products in bf16 with logits
  return (ctx.precision == Precision::tf32 || ctx.precision == Precision::bf16) && x.dtype() == DType::f32 &&
         weight.dim(1) == head_width && M > 0 && V > 0 && M <= most && V <= most && M * V >= least &&
         wgmma_exists(ctx);
}

void wgmma_head(Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias,
                const LabelledRows& labelled, LossResults results, Tensor& dx, Tensor& dweight,
                Tensor& dbias) {
  const int64_t M = labelled.labels.numel(), V = weight.dim(0);
  const HeadGrid statistics(HeadStages<HeadMode::statistics>::groups, M, V), of_x(2, M, V), of_w(2, V, M);
  const bool wants_weight = dweight.defined() || dbias.defined();
  const int64_t x_tiles = std::max(statistics.rows, of_x.rows) / head_tile, w_tiles = of_w.rows / head_tile;
  const int64_t products =
      std::max(dx.defined() ? of_x.pieces * M * head_width : 0,
               wants_weight ? of_w.pieces * V * (head_width + (dbias.defined() ? 1 : 0)) : 0);
  constexpr int64_t record = HeadRecord::bytes / 4;
  HeadScratch scratch{.losses = ctx.empty({M}, DType::f64),
                      .x_records = ctx.empty({x_tiles, record}, DType::f32),
                      .w_records = ctx.empty({w_tiles, record}, DType::f32),
                      .parts = ctx.empty({statistics.pieces, statistics.rows, 4}, DType::f32),
                      .at_label = ctx.empty({statistics.rows}, DType::f32),
                      .products = ctx.empty({products}, DType::f32)};
  if (ctx.dry()) return;
  const Rows<float> in = rows_of<float>(x, "vocabulary_head: x");
  const Matrix<const float> w = matrix_of<float>(weight, "vocabulary_head: weight");
  const DeviceLabels labels(labelled, in.rows, V);
  auto* const x_records = reinterpret_cast<unsigned char*>(scratch.x_records.data<float>());
  auto* const w_records = reinterpret_cast<unsigned char*>(scratch.w_records.data<float>());
  launch(ctx, head_pack_kernel, static_cast<unsigned>(x_tiles + w_tiles), head_pack_threads, 0,
         HeadPack{in, labels, x_records, static_cast<int>(x_tiles), w.data, w.transposed ? 1 : w.ld,
                  w.transposed ? w.ld : 1, bias.defined() ? bias.data<float>() : nullptr, static_cast<int>(V),
                  w_records});
  auto* const parts = reinterpret_cast<HeadPart*>(scratch.parts.data<float>());
  HeadPass across{.own = x_records,
                  .stream = w_records,
                  .stream_tiles = 0,
                  .length = 0,
                  .own_rows = static_cast<int>(M),
                  .products = scratch.products.data<float>(),
                  .sums = nullptr,
                  .parts = parts,
                  .at_label = scratch.at_label.data<float>(),
                  .biased = bias.defined()};
  pass<HeadMode::statistics>(ctx, statistics, across);
  const int rows = static_cast<int>(statistics.rows);
  launch(ctx, head_join_kernel, blocks_for(rows, head_join_threads), head_join_threads, 0, parts,
         static_cast<int>(statistics.pieces), rows, scratch.at_label.data<float>(), labels,
         results.argmax.data<int32_t>(), scratch.losses.data<double>(), x_records);
  float* const out = scratch.products.data<float>();
  if (dx.defined()) {
    pass<HeadMode::of_x>(ctx, of_x, across);
    sum_pieces(ctx, {out, nullptr, static_cast<int>(of_x.pieces), M, head_width,
                     Matrix<float>{dx.data<float>(), head_width}, nullptr, 0, false});
  }
  if (wants_weight) {
    float* const sums = dbias.defined() ? out + of_w.pieces * V * head_width : nullptr;
    std::swap(across.own, across.stream);
    across.own_rows = static_cast<int>(V), across.sums = sums;
    if (sums)
      pass<HeadMode::of_weight_and_bias>(ctx, of_w, across);
    else
      pass<HeadMode::of_weight>(ctx, of_w, across);
    const Matrix<float> dw = dweight.defined() ? matrix_of<float>(dweight, "vocabulary_head: dweight")
                                               : Matrix<float>{nullptr, head_width};
    sum_pieces(ctx, {out, sums, static_cast<int>(of_w.pieces), V, head_width, dw,
                     sums ? dbias.data<float>() : nullptr, sums ? dbias.stride(0) : 0, false});
  }
  sum_losses_cuda<float>(ctx, labels, scratch.losses.data<double>(), results);
}

}  // namespace eigentrace::kernels
#endif
