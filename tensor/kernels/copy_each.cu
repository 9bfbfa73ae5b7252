// to = from, pair after pair; on CUDA one launch, for what each pair alone would take is a launch's 2 to 3
// µs.
#include "tensor/kernels/copy_each.h"

#include "tensor/dispatch.h"
#include "tensor/kernels.h"
#ifdef EIGENTRACE_WITH_CUDA
#include <algorithm>

#include "tensor/launch.h"
#include "tensor/vec.h"
#endif

namespace eigentrace::kernels {
namespace {

#ifdef EIGENTRACE_WITH_CUDA
constexpr size_t most_pairs = 8;

template <class T>
struct Pairs {
  Rows<T> from[most_pairs], to[most_pairs];
};

/// Block (part of a pair's packs, pair).
template <int width, class T>
__global__ void __launch_bounds__(256) copy_each_kernel(const __grid_constant__ Pairs<T> pairs) {
  const Rows<T>&from = pairs.from[blockIdx.y], &to = pairs.to[blockIdx.y];
  const int64_t across = to.cols / width, at = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (at >= to.rows * across) return;
  const int64_t row = at / across, column = at % across * width;
  store_vec(to.data + row * to.stride + column, load_vec<width>(from.data + row * from.stride + column));
}

template <class T>
bool wide(const Rows<T>& x) {
  return x.cols % vec_width<T> == 0 && x.stride % vec_width<T> == 0 && aligned_for_vec(x.data);
}

template <class T>
void start(const Context& ctx, const std::vector<std::pair<Tensor, Tensor>>& pairs) {
  Pairs<T> all{};
  bool packs = true;
  int64_t most = 0;
  for (size_t i = 0; i < pairs.size(); ++i) {
    all.from[i] = rows_of<T>(pairs[i].first, "copy_each: from");
    all.to[i] = rows_of<T>(pairs[i].second, "copy_each: to");
    packs = packs && wide(all.from[i]) && wide(all.to[i]);
    most = std::max(most, pairs[i].first.numel());
  }
  if (most == 0) return;
  const int64_t width = packs ? vec_width<T> : 1;
  launch(ctx, packs ? copy_each_kernel<vec_width<T>, T> : copy_each_kernel<1, T>,
         dim3(blocks_for(most, 256 * width), static_cast<unsigned>(pairs.size())), 256, 0, all);
}
#endif

}  // namespace

void copy_each(Context& ctx, const std::vector<std::pair<Tensor, Tensor>>& pairs) {
#ifdef EIGENTRACE_WITH_CUDA
  bool together = ctx.device().is_cuda() && pairs.size() > 1 && pairs.size() <= most_pairs;
  for (const auto& [from, to] : pairs)
    together = together && from.shape() == to.shape() && from.dtype() == to.dtype() &&
               from.dtype() == pairs[0].first.dtype() && collapses_to_rows(from) && collapses_to_rows(to);
  if (together)
    return dispatch_stored(ctx, "copy_each", pairs[0].first.dtype(),
                           [&]<class T>() { start<T>(ctx, pairs); });
#endif
  for (const auto& [from, to] : pairs) {
    Tensor place = to;
    copy(ctx, from, place);
  }
}

}  // namespace eigentrace::kernels
