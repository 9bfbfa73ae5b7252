#pragma once
// The table of contents: every differentiable operation, by theme. Each is one free function in
// autograd/ops_*.h with its backward closure beside its forward call; each has a case in
// autograd/op_cases.cpp.
#include <array>

namespace eigentrace {

// X(name, "equation"), in the order of the headers
#define EIGENTRACE_OPS(X)                                                 \
  /* ops_shape.h: no arithmetic */                                        \
  X(reshape, "same elements, another shape")                              \
  X(transpose, "two axes exchanged")                                      \
  X(split, "views of ranges of the last axis")                            \
  X(concat, "parts side by side on the last axis")                        \
  /* ops_pointwise.h */                                                   \
  X(cast, "y = x in another type")                                        \
  X(unary, "y = f(x), f in a table")                                      \
  X(binary, "y = a ∘ b, broadcast, ∘ in + − × ÷")                         \
  X(scale, "y = c x")                                                     \
  X(dropout, "y = x m / (1 − p), m = [Philox(seed, step, op, i) ≥ p]")    \
  X(activation, "y = f(x) m / (1 − p), unary and dropout in one pass")    \
  X(glu, "y = a σ(b), [a, b] = x")                                        \
  X(gate, "y = r + a f(z) m / (1 − p), f = σ or SiLU")                    \
  X(sum, "y = Σ x over axes")                                             \
  /* ops_norm.h */                                                        \
  X(layer_norm, "y = (x − mean)/√(var + ε) w + b over the last axis")     \
  X(residual_layer_norm, "s = x + dropout(r), y = layer_norm(s)")         \
  X(rms_norm, "y = x/√(mean(x²) + ε) w over the last axis")               \
  X(batch_norm, "y = (x − mean)/√(var + ε) w + b, over all rows")         \
  /* ops_linear.h */                                                      \
  X(linear, "y = x Wᵀ + b")                                               \
  X(matmul, "C = A B, batched")                                           \
  /* ops_sequence.h */                                                    \
  X(embedding, "y = table[token] (+ positions) (+ bias)")                 \
  X(causal_conv1d, "y_t = silu(Σ_k w_k x_{t−K+1+k} + b), per channel")    \
  X(pool, "mean, max, sum, first or last over time")                      \
  X(reverse_time, "y_t = x_{T−1−t}")                                      \
  /* ops_attention.h */                                                   \
  X(softmax_attention, "y_i = Σ_{j≤i} softmax_j(s q_i·k_j) v_j")          \
  X(attended_rows, "softmax_attention's y at labelled rows")              \
  X(ssd, "S_i = a_i S_{i−1} + w_i k_i v_iᵀ, y_i = q_i S_i")               \
  X(attention_normaliser, "log η_i = log(q_i · Σ_{j≤i} k_j)")             \
  X(divide_by_eta, "y_i exp(−log η_i)")                                   \
  X(norm_scale, "s y_i exp(−f(n_i + o))")                                 \
  X(linear_attention, "Σ_{j≤i} (q_i·k_j) v_j / Σ_{j≤i} q_i·k_j")          \
  X(norm_attention, "s exp(−f(n_i + o)) Σ_{j≤i} (q_i·k_j) v_j")           \
  /* ops_scan.h */                                                        \
  X(complex_parts, "[re, im] on the last axis → a pair")                  \
  X(diagonal_scan, "h_i = λ h_{i−1} + x_i, complex")                      \
  X(s5_discretise, "log λ and B's factor, from Λ and Δ")                  \
  X(selective_scan, "h_i = exp(δ_i A) h_{i−1} + δ_i x_i B_i")             \
  X(selective_step, "Δ = softplus(x + b), log a = −exp(a_log) Δ")         \
  X(s4_kernel, "K = Re IFFT(Cauchy sums of Λ, P, B, C)")                  \
  X(fft_convolution, "y_t = Σ_{j≤t} K_j u_{t−j} + D u_t")                 \
  X(channel_skip, "z = y + d_c u, per channel")                           \
  X(channel_skip_activation, "z = y + d_c u, and dropout(f(z))")          \
  X(lru_maps, "λ, exp(γ) B and [Re C, −Im C] of an LRU")                  \
  /* ops_loss.h */                                                        \
  X(labelled_rows, "y_m = x at labelled row m")                           \
  X(cross_entropy, "Σ_m w_m (log Σ exp(z_m) − z_m[label_m]) / count")     \
  X(vocabulary_head, "cross_entropy(x Wᵀ + b) at the labelled rows only") \
  X(log_softmax, "y = x − log Σ exp(x) over the last axis")

enum class Op : unsigned char {
#define EIGENTRACE_OP(name, equation) name,
  EIGENTRACE_OPS(EIGENTRACE_OP)
#undef EIGENTRACE_OP
};

constexpr const char* name_of(Op op) {
  constexpr std::array names = {
#define EIGENTRACE_OP(name, equation) #name,
      EIGENTRACE_OPS(EIGENTRACE_OP)
#undef EIGENTRACE_OP
  };
  return names[static_cast<size_t>(op)];
}

constexpr const char* equation_of(Op op) {
  constexpr std::array equations = {
#define EIGENTRACE_OP(name, equation) equation,
      EIGENTRACE_OPS(EIGENTRACE_OP)
#undef EIGENTRACE_OP
  };
  return equations[static_cast<size_t>(op)];
}

constexpr int op_count = 0
#define EIGENTRACE_OP(name, equation) +1
    EIGENTRACE_OPS(EIGENTRACE_OP)
#undef EIGENTRACE_OP
    ;

}  // namespace eigentrace
