#pragma once
// y = f(x₀, x₁, …) element by element, operands of any strides, on both devices. For kernels/*.cu only.
//
// On CUDA a thread owns packs of 16 bytes along the last axis: two packs, a pack a row, so that every access
// is whole and no index is divided where the leading axes are one (a dense operand is cut into rows of 1024).
// A broadcast operand has step 0 along an axis. Where widths or addresses are no multiple of 16 bytes, packs
// are single elements, still neighbours in a warp. bf16 operands are eight to a pack and computed in float32.
#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#include "tensor/dispatch.h"
#include "tensor/vec.h"

namespace eigentrace {

#ifdef EIGENTRACE_WITH_CUDA
/// Operand o's element (row, column) lies at Σ coordinate·stride over the leading axes + column·step.
template <int operands>
struct ElementPlan {
  int64_t rows = 1, columns = 1, limit = 1;  ///< limit: row·columns + column stays below it
  int leading = 0;
  int64_t size[Shape::max_rank] = {};
  int64_t stride[operands][Shape::max_rank] = {};
  int64_t step[operands] = {};
  unsigned column_tiles = 1;

  /// Offsets of all operands' first column in a row.
  ET_HD void offsets(int64_t row, int64_t (&at)[operands]) const {
    for (int o = 0; o < operands; ++o) at[o] = 0;
    for (int axis = leading - 1; axis > 0; --axis) {
      const int64_t next =
          rows <= INT32_MAX
              ? static_cast<int64_t>(static_cast<uint32_t>(row) / static_cast<uint32_t>(size[axis]))
              : row / size[axis];
      const int64_t here = row - next * size[axis];
      for (int o = 0; o < operands; ++o) at[o] += here * stride[o][axis];
      row = next;
    }
    for (int o = 0; o < operands; ++o) at[o] += row * stride[o][0];
  }
};

template <int operands>
struct Addresses {
  void* of[operands];
};

template <class To, class From, int width>
__device__ __forceinline__ Vec<To, width> convert(const Vec<From, width>& x) {
  if constexpr (std::is_same_v<To, From>) {
    return x;
  } else {
    Vec<To, width> y;
#pragma unroll
    for (int i = 0; i < width; ++i) y.x[i] = To(x.x[i]);
    return y;
  }
}

/// A pack of several elements steps by 1 or 0; `valid` < width of them exist where a dense operand ends.
template <class T, int width>
__device__ __forceinline__ Vec<T, width> load_stepped(const T* from, int64_t step, int valid) {
  if (width > 1 && step == 1 && valid == width) return load_vec<width>(from);
  Vec<T, width> pack;
#pragma unroll
  for (int i = 0; i < width; ++i) pack.x[i] = from[i < valid ? i * step : 0];
  return pack;
}
template <class T, int width>
__device__ __forceinline__ void store_valid(T* to, const Vec<T, width>& pack, int valid) {
  if (valid == width) return store_vec(to, pack);
#pragma unroll
  for (int i = 0; i < width; ++i)
    if (i < valid) to[i] = pack.x[i];
}

template <int width, class F, class T, int inputs, int outputs, size_t... k>
__device__ __forceinline__ void apply_to_pack(const F& f, [[maybe_unused]] int64_t element,
                                              const Vec<T, width> (&x)[inputs], Vec<T, width> (&y)[outputs],
                                              std::index_sequence<k...>) {
  if constexpr (requires { f.pack(element, x, y); }) {
    f.pack(element, x, y);
  } else {
#pragma unroll
    for (int i = 0; i < width; ++i) y[0].x[i] = f(x[k].x[i]...);
  }
}

template <int width, int packs, int inputs, int outputs, class In, class Out, class F>
__global__ void __launch_bounds__(256)
    elements_kernel(const __grid_constant__ ElementPlan<inputs + outputs> plan,
                    Addresses<inputs + outputs> address, F f) {
  using T = Arithmetic<In>;
  constexpr int operands = inputs + outputs;
  const int64_t column =
      (static_cast<int64_t>(blockIdx.x % plan.column_tiles) * blockDim.x + threadIdx.x) * width;
  const int64_t first =
      static_cast<int64_t>(blockIdx.x / plan.column_tiles) * (blockDim.y * packs) + threadIdx.y;
  const std::make_index_sequence<inputs> each;
  int64_t at[packs][operands];
  Vec<In, width> x[packs][inputs > 0 ? inputs : 1];
  int valid[packs];
#pragma unroll
  for (int k = 0; k < packs; ++k) {
    const int64_t row = first + k * blockDim.y, left = plan.limit - (row * plan.columns + column);
    valid[k] = row < plan.rows && column < plan.columns && left > 0
                   ? static_cast<int>(left < width ? left : width)
                   : 0;
    if (valid[k] == 0) continue;
    plan.offsets(row, at[k]);
#pragma unroll
    for (int o = 0; o < operands; ++o) at[k][o] += column * plan.step[o];
#pragma unroll
    for (int o = 0; o < inputs; ++o)
      x[k][o] =
          load_stepped<In, width>(static_cast<const In*>(address.of[o]) + at[k][o], plan.step[o], valid[k]);
  }
#pragma unroll
  for (int k = 0; k < packs; ++k) {
    if (valid[k] == 0) continue;
    Vec<T, width> operand[inputs > 0 ? inputs : 1], y[outputs];
#pragma unroll
    for (int o = 0; o < inputs; ++o) operand[o] = convert<T>(x[k][o]);
    apply_to_pack(f, (first + k * blockDim.y) * plan.columns + column, operand, y, each);
#pragma unroll
    for (int o = 0; o < outputs; ++o)
      store_valid(static_cast<Out*>(address.of[inputs + o]) + at[k][inputs + o], convert<Out>(y[o]),
                  valid[k]);
  }
}

/// Axes that all operands step through alike are one.
template <int operands>
ElementPlan<operands> element_plan(const Shape& shape, const std::array<Shape, operands>& strides) {
  ElementPlan<operands> plan;
  int64_t size[Shape::max_rank + 1] = {}, stride[operands][Shape::max_rank + 1] = {};
  int rank = 0;
  for (int axis = 0; axis < shape.rank(); ++axis) {
    if (shape[axis] == 1) continue;
    bool merge = rank > 0;
    for (size_t o = 0; o < operands && merge; ++o)
      merge = stride[o][rank - 1] == strides[o][axis] * shape[axis];
    if (merge)
      size[rank - 1] *= shape[axis];
    else
      size[rank++] = shape[axis];
    for (size_t o = 0; o < operands; ++o) stride[o][rank - 1] = strides[o][axis];
  }
  plan.limit = shape.numel();
  bool simple = rank == 1;  // dense, or one value for all
  for (int o = 0; o < operands; ++o) simple = simple && (stride[o][0] == 1 || stride[o][0] == 0);
  if (simple && plan.limit > 1024) {
    plan.columns = 1024, plan.rows = (plan.limit + 1023) / 1024, plan.leading = 1;
    plan.size[0] = plan.rows;
    for (int o = 0; o < operands; ++o) plan.stride[o][0] = 1024 * stride[o][0], plan.step[o] = stride[o][0];
    return plan;
  }
  plan.columns = rank == 0 ? 1 : size[rank - 1];
  plan.rows = plan.columns == 0 ? 0 : plan.limit / plan.columns;
  plan.leading = std::max(rank - 1, 0);
  std::copy(size, size + plan.leading, plan.size);
  for (int o = 0; o < operands; ++o) {
    std::copy(stride[o], stride[o] + plan.leading, plan.stride[o]);
    plan.step[o] = rank == 0 ? 1 : stride[o][rank - 1];
  }
  return plan;
}

template <int inputs, int outputs, class In, class Out, class F>
void launch_elements(const Context& ctx, ElementPlan<inputs + outputs> plan,
                     const Addresses<inputs + outputs>& address, const F& f) {
  constexpr int width = std::max(vec_width<In>, vec_width<Out>);
  constexpr bool single = sizeof(In) <= 4;
  if (plan.limit == 0) return;
  bool wide = plan.columns % width == 0;
  for (int o = 0; o < inputs + outputs && wide; ++o) {
    wide = plan.step[o] == 1 || (plan.step[o] == 0 && o < inputs);
    if (plan.step[o] != 1) continue;
    const size_t bytes = width * (o < inputs ? sizeof(In) : sizeof(Out));
    wide = wide && reinterpret_cast<uintptr_t>(address.of[o]) % bytes == 0;
    for (int axis = 0; axis < plan.leading; ++axis) wide = wide && plan.stride[o][axis] % width == 0;
  }
  const auto start = [&]<int w, int packs>() {
    const int64_t across = (plan.columns + w - 1) / w, tiles = (across + 255) / 256;
    const int64_t x = tiles == 1 ? across : (across + tiles * 32 - 1) / (tiles * 32) * 32, y = 256 / x;
    plan.column_tiles = static_cast<unsigned>(tiles);
    const int64_t blocks = tiles * ((plan.rows + y * packs - 1) / (y * packs));
    launch(ctx, elements_kernel<w, packs, inputs, outputs, In, Out, F>, static_cast<unsigned>(blocks),
           dim3(static_cast<unsigned>(x), static_cast<unsigned>(y)), 0, plan, address, f);
  };
  if constexpr (single)  // float64 is there to be right: fewer kernels to compile
    if (wide) return start.template operator()<width, 2>();
  start.template operator()<1, single ? 2 : 1>();
}

/// outputs = f(inputs) on CUDA, all of one shape (expand them first). f(x₀, …) returns the one output, or
/// f.pack(element, x, y) makes a pack of them; `element`: the first one's row-major number.
template <class In, class Out = In, size_t inputs, size_t outputs, class F>
void map_elements_cuda(const Context& ctx, const F& f, const std::array<Tensor, inputs>& x,
                       const std::array<Tensor, outputs>& y) {
  constexpr int n = static_cast<int>(inputs + outputs);
  std::array<Shape, n> strides;
  Addresses<n> address;
  size_t o = 0;
  const auto take = [&](const Tensor& tensor, void* data) {
    strides[o] = tensor.strides();
    address.of[o++] = data;
  };
  for (const Tensor& tensor : x) take(tensor, tensor.template data<In>());
  for (const Tensor& tensor : y) take(tensor, tensor.template data<Out>());
  launch_elements<static_cast<int>(inputs), static_cast<int>(outputs), In, Out>(
      ctx, element_plan<n>(y[0].shape(), strides), address, f);
}
#endif

/// The CPU's form of f for for_each_offset: the last operand that differs is the output.
template <class T, class F, size_t inputs>
struct ElementsAtOffsets {
  F f;
  const T* x[inputs > 0 ? inputs : 1];
  T* y;
  ET_HD void operator()(int64_t a, int64_t b, int64_t c, int64_t d) const {
    if constexpr (inputs == 0)
      y[a] = f();
    else if constexpr (inputs == 1)
      y[b] = f(x[0][a]);
    else if constexpr (inputs == 2)
      y[c] = f(x[0][a], x[1][b]);
    else
      y[d] = f(x[0][a], x[1][b], x[2][c]);
  }
};

template <class T, class F, size_t inputs>
void map_elements_cpu(const Context& ctx, const F& f, const std::array<Tensor, inputs>& x, const Tensor& y) {
  static_assert(inputs <= 3);
  if constexpr (!std::is_same_v<T, BFloat16>) {
    ElementsAtOffsets<T, F, inputs> at{f, {}, y.data<T>()};
    const Tensor* operands[4] = {&y, &y, &y, &y};
    size_t o = 0;
    for (const Tensor& tensor : x) {
      at.x[o] = tensor.template data<T>();
      operands[o++] = &tensor;
    }
    for_each_offset(ctx, strided_index(*operands[0], *operands[1], *operands[2], *operands[3]), at);
  }
}

/// y = f(x…) for up to three inputs of y's shape (expand them first).
template <class T, class F, size_t inputs>
void map_elements(const Context& ctx, const F& f, const std::array<Tensor, inputs>& x, const Tensor& y) {
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda()) return map_elements_cuda<T>(ctx, f, x, std::array{y});
#endif
  map_elements_cpu<T>(ctx, f, x, y);
}

}  // namespace eigentrace
