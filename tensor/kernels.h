#pragma once
// Every kernel of the house, once, by theme. Bodies: kernels/<file>.cu.
//
// Conventions. Outputs are allocated by the caller and overwritten (accumulate is the exception its name
// tells). Floating operands of one call share one dtype (f32 or f64; on CUDA bf16, where parameters, their
// gradients, statistics, decays and numbers per head stay f32). "rows": all axes but the last collapse
// to rows a fixed stride apart and the last axis is dense; operands are rows unless their line says dense
// (contiguous) or strided. The gradient of x is dx. Nothing allocates except step memory through ctx.empty.
// Shape letters: tensor/shape.h.
#include <vector>

#include "tensor/context.h"

namespace eigentrace::kernels {

// --- memory (kernels/memory.cu)
// ------------------------------------------------------------------------------
void fill(Context& ctx, Tensor& y, double value);           ///< y = value, strided
void copy(Context& ctx, const Tensor& x, Tensor& y);        ///< y = x, strided
void accumulate(Context& ctx, const Tensor& x, Tensor& y);  ///< y += x, strided
void cast(Context& ctx, const Tensor& x, Tensor& y);        ///< y = x, f32 to bf16 or back, strided

// --- pointwise (kernels/unary.cu)
// ----------------------------------------------------------------------------
/// The pointwise functions and, in unary.cu, their derivatives in one table.
enum class Unary : unsigned char {
  neg,
  exp,
  relu,
  sigmoid,
  silu,
  gelu,
  gelu_tanh,
  softplus,
  elu,
  elu_plus_one
};
const char* name_of(Unary f);
void unary(Context& ctx, Unary f, const Tensor& x, Tensor& y);  ///< y = f(x)
/// dx = dy · f′(x)
void unary_backward(Context& ctx, Unary f, const Tensor& x, const Tensor& dy, Tensor& dx);

/// Dropout as a part of another kernel; p = 0: none.
struct Dropout {
  double p = 0;
  uint32_t op = 0;  ///< of the random stream
  bool shared_over_time = false;
};
/// y = dropout(f(x)), and dx of it.
void activation(Context& ctx, Unary f, const Tensor& x, const Dropout& drop, Tensor& y);
void activation_backward(Context& ctx, Unary f, const Tensor& x, const Dropout& drop, const Tensor& dy,
                         Tensor& dx);

enum class Binary : unsigned char { add, sub, mul, div };
const char* name_of(Binary f);

// --- binary.cu, glu.cu, dropout.cu, reduce.cu
void binary(Context& ctx, Binary f, const Tensor& a, const Tensor& b, Tensor& y);  ///< y = a ∘ b, strided
/// db = −dy a / b², strided
void div_backward_b(Context& ctx, const Tensor& dy, const Tensor& a, const Tensor& b, Tensor& db);
void scale(Context& ctx, const Tensor& x, double factor, Tensor& y);  ///< y = factor · x, strided
void glu(Context& ctx, const Tensor& x, Tensor& y);                   ///< y = a σ(b), [a, b] = x
void glu_backward(Context& ctx, const Tensor& x, const Tensor& dy, Tensor& dx);
/// y = x · mask(op) / (1 − p), strided; the backward pass is the same map of dy. See tensor/dropout_stream.h.
void dropout(Context& ctx, const Tensor& x, double p, uint32_t op, bool shared_over_time, Tensor& y);
/// y = residual + dropout(a f(z)), strided; f sigmoid or silu, residual may be undefined. gate.cu
struct Gate {
  Unary f = Unary::sigmoid;
  Tensor a, z, residual = {};
  Dropout drop = {};
};
void gate(Context& ctx, const Gate& g, Tensor& y);
/// da, dz: undefined if not wanted.
void gate_backward(Context& ctx, const Gate& g, const Tensor& dy, Tensor& da, Tensor& dz);
/// y = Σ x over one axis (dropped or of size 1 in y), fixed order. y dense.
void sum(Context& ctx, const Tensor& x, int axis, Tensor& y);

// --- normalisations over the last axis (kernels/layer_norm.cu)
/// y = (x − mean) rstd weight + bias, rows. Residual form (branch defined): sum = x + dropout(branch) first,
/// then y of sum. mean undefined: RMSNorm. bias may be undefined. mean, rstd [rows], weight, bias [D].
struct NormForward {
  Tensor x, branch = {}, weight, bias = {};
  double epsilon = 0, p = 0;
  uint32_t random_op = 0;
  Tensor sum = {}, y = {}, mean = {}, rstd = {};  ///< written
};
void layer_norm(Context& ctx, const NormForward& n);
/// x is what was normalised (`sum` in the residual form). dsum, if defined, is added to dx (and may be dx).
/// Written: those of dx, dbranch = mask dx / (1 − p), dweight, dbias that are defined (dbranch needs dx).
struct NormBackward {
  Tensor x, weight, mean = {}, rstd, dy, dsum = {};
  double p = 0;
  uint32_t random_op = 0;
  Tensor dx = {}, dbranch = {}, dweight = {}, dbias = {};
};
void layer_norm_backward(Context& ctx, const NormBackward& n);

// --- normalisation of columns over all rows (kernels/batch_norm.cu)
/// y = (x − mean) rstd weight + bias. training: mean and biased variance of x's rows, and, if running_mean
/// and running_var are defined, running ← momentum running + (1 − momentum) batch; else mean and variance are
/// the running ones. All but x and y are [D]; mean (training) and rstd are written.
struct BatchNorm {
  Tensor x, weight, bias, running_mean = {}, running_var = {};
  double epsilon = 0, momentum = 0;
  bool training = true;
  Tensor y = {}, mean = {}, rstd = {};
};
void batch_norm(Context& ctx, const BatchNorm& n);
/// dx may be undefined (not wanted); dweight and dbias are written always, dx of a training pass needs them.
/// dsum, if defined, is added to dx (and may be dx).
void batch_norm_backward(Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& mean,
                         const Tensor& rstd, bool training, const Tensor& dy, Tensor& dx, Tensor& dweight,
                         Tensor& dbias, const Tensor& dsum = {});

// --- along a sequence (kernels/embedding.cu, causal_conv1d.cu, pool.cu, reverse_time.cu)
/// y[b,t] = x[b,T−1−t]; x, y [B,T,D] strided with a dense last axis
void reverse_time(Context& ctx, const Tensor& x, Tensor& y);
/// y[b,t] = table[ids[b,t]] + positions[t] + bias; positions and bias may be undefined.
void embedding(Context& ctx, const Tensor& ids, const Tensor& table, const Tensor& positions,
               const Tensor& bias, Tensor& y);
/// dtable[v] = Σ of the rows of dy with ids = v, in the order of `order`; zero rows for absent tokens.
void embedding_backward(Context& ctx, const Tensor& ids, const Tensor& order, const Tensor& dy,
                        Tensor& dtable);
/// y_t = act(Σ_k w_k x_{t−K+1+k} + b) per channel, act = SiLU or nothing. x [B,T,C] strided with a dense last
/// axis, weight [C,1,K], bias [C].
void causal_conv1d(Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias, bool silu,
                   Tensor& y);
/// Each of dx, dweight, dbias may be undefined: not wanted.
void causal_conv1d_backward(Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias,
                            bool silu, const Tensor& dy, Tensor& dx, Tensor& dweight, Tensor& dbias);
enum class Pool : unsigned char { mean, max, sum, first, last };
/// x [B,T,D] → y [B,D] over the first n_b = min(lengths[b], valid_time, T) steps (n_b = 0: y = 0). max writes
/// the step of the first maximum to argmax, i32 [B,D] (−1 where there is none); else argmax is undefined.
void pool(Context& ctx, Pool how, const Tensor& x, const Tensor& lengths, const Tensor& valid_time, Tensor& y,
          Tensor& argmax);
void pool_backward(Context& ctx, Pool how, const Tensor& lengths, const Tensor& valid_time,
                   const Tensor& argmax, const Tensor& dy, Tensor& dx);

// --- matrix products (kernels/matmul.cu, linear.cu)
// -------------------------------------------------------------
void matmul(Context& ctx, const Tensor& a, const Tensor& b,
            Tensor& c);  ///< C = A B, batched, last axes may be transposed
/// y = x Wᵀ + b; weight may be a transposed view, bias undefined
void linear(Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias, Tensor& y);
void linear_backward_input(Context& ctx, const Tensor& dy, const Tensor& weight, Tensor& dx);  ///< dx = dy W
/// dW = dyᵀ x; db = Σ_rows dy, unless undefined
void linear_backward_weight(Context& ctx, const Tensor& dy, const Tensor& x, Tensor& dweight, Tensor& dbias);
void linear_backward_bias(Context& ctx, const Tensor& dy, Tensor& dbias);  ///< db = Σ_rows dy
/// Memory for rows that products read or write: on CUDA their stride is a multiple of 16 bytes, so that they
/// stay aligned whatever their length.
Tensor empty_rows(Context& ctx, const Shape& shape, DType dtype);

// --- losses (kernels/cross_entropy.cu, vocabulary_head.cu, log_softmax.cu)
// --------------------------------------
/// The labelled rows of a loss (autograd/ops_loss.h): rows, labels i32 [M], weights f32 [M], count f64 [1].
struct LabelledRows {
  const Tensor &rows, &labels, &weights, &count;
};
/// What a loss reports: value [] in the element type, correct and loss_sum f64 [1], argmax i32 [M].
struct LossResults {
  Tensor &value, &correct, &loss_sum, &argmax;
};
/// value = Σ_m w_m (lse_m − z_m[label_m]) / count; kept [M, 2]: max and Σ exp(z − max)
void cross_entropy(Context& ctx, const Tensor& logits, const LabelledRows& labelled, LossResults results,
                   Tensor& kept);
/// dz_m = dloss w_m (softmax(z_m) − onehot(label_m)) / count; rows without label: zero
void cross_entropy_backward(Context& ctx, const Tensor& dloss, const Tensor& logits,
                            const LabelledRows& labelled, const Tensor& kept, Tensor& dlogits);
/// cross_entropy of x Wᵀ + b by blocks of labelled rows, and with it the gradients for dloss = 1 of those
/// that are defined: dx_labelled [M, D] (one row a label), dweight [V, D], dbias [V].
void vocabulary_head(Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias,
                     const LabelledRows& labelled, LossResults results, Tensor& dx_labelled, Tensor& dweight,
                     Tensor& dbias);
/// y[rows_m] = c x_m where weight_m ≠ 0, all other rows zero; c one element
void scatter_labelled(Context& ctx, const Tensor& c, const Tensor& x, const LabelledRows& labelled,
                      Tensor& y);
void scale_by(Context& ctx, const Tensor& c, const Tensor& x,
              Tensor& y);                                    ///< y = c x, c one element, x dense
void log_softmax(Context& ctx, const Tensor& x, Tensor& y);  ///< y = x − log Σ exp(x)
void log_softmax_backward(Context& ctx, const Tensor& y, const Tensor& dy,
                          Tensor& dx);  ///< dx = dy − e^y Σ dy
// --- optimiser (kernels/optimiser.cu) ---------------------------------------------------------------------
/// What the update of one parameter reads and writes: dense, of one shape and type.
struct AdamTensors {
  Tensor value, gradient, m, v;
  int group = 0;
  bool is_complex = false;  ///< pairs (re, im) on the last axis: v is the mean of |g|², the same for both
};
struct AdamGroup {
  double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, weight_decay = 0;
  /// `gradient` is a sum over several steps: clipping scales it in place, an update sets it to zero.
  bool accumulates = false;
};
/// norm (f64 [1]) = ‖all gradients‖₂: sums of squares of fixed blocks in double, then the blocks in order.
void global_norm(Context& ctx, const std::vector<Tensor>& gradients, Tensor& norm);
/// For every group g with rates[g] = (lr, 1−β1ᵗ, 1−β2ᵗ, active ≠ 0), f64 [groups, 4]:
///   g ← g·min(1, clip/(norm + 1e-6)) (clip 0: g), m ← β1 m + (1−β1) g, v ← β2 v + (1−β2) g²,
///   p ← p − lr (wd p + (m/(1−β1ᵗ)) / (√(v/(1−β2ᵗ)) + ε)).
/// Nothing at all is changed if norm (f64 [1]) is not finite. published_complex: m takes the unconjugated
/// gradient re − i·im, as the study's trainer does.
void adamw(Context& ctx, const std::vector<AdamTensors>& tensors, const std::vector<AdamGroup>& groups,
           const Tensor& rates, const Tensor& norm, double clip, bool published_complex);

// --- the end of a step (kernels/step.cu)
/// All on the device; f64 but for `first` (i64 [1]).
struct StepEnd {
  Tensor loss_sum, correct, norm;  ///< [1]
  Tensor table;                    ///< [S, groups, 4]: rates of steps first … first + S − 1
  Tensor first;
  Tensor rates;  ///< [groups, 4], written: the next step's
  Tensor ring;   ///< [R, 4], row step % R written: loss_sum, correct, norm, failed
};
/// Writes the ring's row and the next step's rates, then counts the step of `step_state` up. failed ≠ 0 from
/// the first step on whose loss or norm is not finite; from there on the rates are inactive: nothing moves
/// any more.
void end_step(Context& ctx, const StepEnd& end);

// --- attention (kernels/softmax_attention.cu, softmax_attention_rows.cu, ssd.cu, attention_normaliser.cu,
// norm_scale.cu): [B, T, H, N] operands with any strides and a dense last axis; gradients that are undefined
// are not computed
/// y_i = Σ_{j≤i} p_ij v_j, p_ij = exp(scale q_i·k_j − lse_i), dropout on p; op: of the random stream. lse
/// dense
void softmax_attention(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, double scale,
                       double dropout, uint32_t op, Tensor& y, Tensor& lse);
void softmax_attention_backward(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                                const Tensor& y, const Tensor& lse, const Tensor& dy, double scale,
                                double dropout, uint32_t op, Tensor& dq, Tensor& dk, Tensor& dv);
/// Whether attended_rows wants no y and lse of other queries.
bool attends_rows_alone(const Context& ctx, const Tensor& q, const Tensor& v, double scale, double dropout,
                        int64_t labels);
/// What attended_rows keeps for its backward pass.
struct AttendedRows {
  Tensor y, lse;  ///< of all queries, or, if there are spans, of the labelled ones: rows, [M, H]
  Tensor spans;   ///< how the labelled rows lie in the sequences
};
/// rows [1, M, H, P] = softmax attention's y at labelled rows b T + t, zero where the weight is 0 (only at
/// the end); to the bits of y and lse of all queries, which may be undefined if attends_rows_alone.
AttendedRows attended_rows(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, double scale,
                           double dropout, const Tensor& y, const Tensor& lse, const LabelledRows& labelled,
                           Tensor& rows);
/// softmax_attention_backward for dy [1, M, H, P] of these rows and none of the others.
void attended_rows_backward(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                            const AttendedRows& kept, const Tensor& dy, const LabelledRows& labelled,
                            double scale, double dropout, uint32_t op, Tensor& dq, Tensor& dk, Tensor& dv);
/// S_i = exp(log_a_i) S_{i−1} + w_i k_i v_iᵀ, y_i = q_i S_i; log_a [B, T, H], [H] or undefined, w likewise
/// [B, T, H]; kept: of ssd_kept, or undefined (then the backward pass computes it again)
void ssd(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_a,
         const Tensor& w, Tensor& y, const Tensor& kept = {});
void ssd_backward(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_a,
                  const Tensor& w, const Tensor& dy, Tensor& dq, Tensor& dk, Tensor& dv, Tensor& dlog_a,
                  Tensor& dw, const Tensor& kept = {});
/// Step memory for what a forward pass may leave for the backward pass of ssd, ssd_skip and norm_attention
/// (CUDA: the state before every chunk of 64 steps, and the decays); undefined where a device keeps nothing.
Tensor ssd_kept(Context& ctx, const Tensor& q, const Tensor& v, const Tensor& log_a, const Tensor& w);
/// True where what follows exists: float32 on CUDA, N and P up to 128. Elsewhere the same is said with ssd,
/// a normaliser, or a product and a sum.
bool attention_is_fused(const Context& ctx, DType dtype, int64_t N, int64_t P);
/// y_i = q_i S_i + skip v_i, skip [H]
void ssd_skip(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_a,
              const Tensor& w, const Tensor& skip, Tensor& y, const Tensor& kept = {});
void ssd_skip_backward(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_a,
                       const Tensor& w, const Tensor& skip, const Tensor& dy, Tensor& dq, Tensor& dk,
                       Tensor& dv, Tensor& dlog_a, Tensor& dw, Tensor& dskip, const Tensor& kept = {});
/// out_i = q_i Σ_{j≤i} k_jᵀ v_j / η_i, η_i = q_i·Σ_{j≤i} k_j; log_eta dense; kept as with ssd
void linear_attention(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, Tensor& out,
                      Tensor& log_eta, const Tensor& kept = {});
void linear_attention_backward(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                               const Tensor& log_eta, const Tensor& dout, Tensor& dq, Tensor& dk, Tensor& dv,
                               const Tensor& kept = {});
Tensor linear_attention_kept(Context& ctx, const Tensor& q, const Tensor& v);
/// log_eta_i = log(q_i · Σ_{j≤i} k_j), running sums in the element type; q, k [B, T, H, N], log_eta [B, T, H]
/// dense
void attention_normaliser(Context& ctx, const Tensor& q, const Tensor& k, Tensor& log_eta);
void attention_normaliser_backward(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& log_eta,
                                   const Tensor& dlog_eta, Tensor& dq, Tensor& dk);
void divide_by_eta(Context& ctx, const Tensor& y, const Tensor& log_eta, Tensor& out);  ///< y_i exp(−log η_i)
/// dy = dout exp(−log η), dlog_eta_i = −dout_i·out_i
void divide_by_eta_backward(Context& ctx, const Tensor& out, const Tensor& log_eta, const Tensor& dout,
                            Tensor& dy, Tensor& dlog_eta);
/// The four normalisers of norm attention, f in exp(−f(x)).
enum class NormFunction : unsigned char { exp, elu, softplus, sigmoid };
/// log_eta = f(n + offset), at most the largest finite number; out = scale exp(−log_eta) y. offset [H] or
/// undefined, log_eta dense
void norm_scale(Context& ctx, const Tensor& y, NormFunction f, const Tensor& n, const Tensor& offset,
                double scale, Tensor& out, Tensor& log_eta);
void norm_scale_backward(Context& ctx, const Tensor& y, NormFunction f, const Tensor& n, const Tensor& offset,
                         double scale, const Tensor& dout, Tensor& dy, Tensor& dn, Tensor& doffset);
/// norm_scale of ssd without decay, in one op (attention_is_fused): out_i = scale exp(−f(n_i + offset)) q_i
/// Σ_{j≤i} k_jᵀ v_j
void norm_attention(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, NormFunction f,
                    const Tensor& n, const Tensor& offset, double scale, Tensor& out, Tensor& log_eta,
                    const Tensor& kept = {});
void norm_attention_backward(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, NormFunction f,
                             const Tensor& n, const Tensor& offset, double scale, const Tensor& log_eta,
                             const Tensor& dout, Tensor& dq, Tensor& dk, Tensor& dv, Tensor& dn,
                             Tensor& doffset, const Tensor& kept = {});

// --- scans and long convolutions (kernels/{diagonal_scan,selective_scan,s4_kernel,fft_convolution,…}.cu)
// Complex rows are [re, im]: 2N numbers. Outputs of backward kernels may be undefined (not wanted) unless
// said otherwise.
/// h_i = λ h_{i−1} + x_i, λ = exp(log_abs + i arg); backwards in time if reverse. x, h [B,T,2N]; λ [N] dense.
void diagonal_scan(Context& ctx, const Tensor& x, const Tensor& log_abs, const Tensor& arg, bool reverse,
                   Tensor& h);
void diagonal_scan_backward(Context& ctx, const Tensor& h, const Tensor& log_abs, const Tensor& arg,
                            bool reverse, const Tensor& dh, Tensor& dx, Tensor& dlog_abs, Tensor& darg);

/// Continuous to discrete: w = log λ and the input's factor f of S5, Re Λ clipped to ≤ −1e−4 if clip. All [N]
/// dense; gradients all defined.
struct Discretisation {
  bool bilinear, clip;
};
void s5_discretise(Context& ctx, Discretisation how, const Tensor& lambda_re, const Tensor& lambda_im,
                   const Tensor& log_step, Tensor& log_abs, Tensor& arg, Tensor& f_re, Tensor& f_im);
/// dy: gradients of log_abs, arg, f_re, f_im; dx: of lambda_re, lambda_im, log_step.
void s5_discretise_backward(Context& ctx, Discretisation how, const Tensor& lambda_re,
                            const Tensor& lambda_im, const Tensor& log_step, const Tensor (&dy)[4],
                            Tensor (&dx)[3]);

/// Operands of the selective scan, or their gradients.
struct SelectiveScan {
  Tensor x, delta;  ///< [B,T,E]
  Tensor a_log;     ///< [E,S] dense
  Tensor b, c;      ///< [B,T,S]
  Tensor d;         ///< [E] dense
};
/// Shape of the states kept for the backward pass.
Shape selective_scan_boundary(const Tensor& x, const Tensor& b);
void selective_scan(Context& ctx, const SelectiveScan& in, Tensor& y,
                    Tensor& boundary);  ///< boundary may be undefined
void selective_scan_backward(Context& ctx, const SelectiveScan& in, const Tensor& boundary, const Tensor& dy,
                             SelectiveScan& gradient);

/// Mamba-2: Δ = softplus(x + bias), log_a = −exp(a_log) Δ; x rows [..., H], bias, a_log [H], Δ and log_a
/// dense (selective_step.cu)
void selective_step(Context& ctx, const Tensor& x, const Tensor& bias, const Tensor& a_log, Tensor& delta,
                    Tensor& log_a);
/// ddelta, dlog_a: undefined if none came. dx, dbias, da_log: undefined if not wanted.
void selective_step_backward(Context& ctx, const Tensor& x, const Tensor& bias, const Tensor& a_log,
                             const Tensor& ddelta, const Tensor& dlog_a, Tensor& dx, Tensor& dbias,
                             Tensor& da_log);

/// Parameters of S4 as stored, or their gradients: [N,D], [N,D,2] and [1,D], dense.
struct S4Parameters {
  Tensor lambda_re, lambda_im, p, b, c, log_step;
};
/// Step memory for what the forward pass can leave for the backward one; undefined: nothing on this device.
Tensor s4_kernel_kept(Context& ctx, const S4Parameters& in, int64_t length);
/// k [D,L] dense; kept: of s4_kernel_kept, or undefined (then the backward pass computes it again)
void s4_kernel(Context& ctx, const S4Parameters& in, Tensor& k, const Tensor& kept = {});
/// Gradients all defined.
void s4_kernel_backward(Context& ctx, const S4Parameters& in, const Tensor& dk, S4Parameters& gradient,
                        const Tensor& kept = {});

/// y_t = Σ_{j≤t} K_j u_{t−j} + D u_t. u, y [B,T,D]; k [D,L] dense; d [D] dense or undefined.
/// kept: as with s4_kernel.
Tensor fft_convolution_kept(Context& ctx, const Tensor& u, const Tensor& k);
void fft_convolution(Context& ctx, const Tensor& u, const Tensor& k, const Tensor& d, Tensor& y,
                     const Tensor& kept = {});
void fft_convolution_backward(Context& ctx, const Tensor& u, const Tensor& k, const Tensor& d,
                              const Tensor& dy, Tensor& du, Tensor& dk, Tensor& dd, const Tensor& kept = {});

// channel_skip.cu, lru_maps.cu
/// z = y + d_c u per channel c; y, u, z rows, d [D] dense
void channel_skip(Context& ctx, const Tensor& y, const Tensor& u, const Tensor& d, Tensor& z);
/// sent, if defined, is added to du (and may be du).
void channel_skip_backward(Context& ctx, const Tensor& u, const Tensor& d, const Tensor& dz, Tensor& du,
                           Tensor& dd, const Tensor& sent = {});
/// The same and what follows it, g = dropout(f(z)), in one pass. Backward: dz = f′(z) dropout(dg) + dz_sent
/// (unless undefined), written, and du, dd of it.
void channel_skip_activation(Context& ctx, const Tensor& y, const Tensor& u, const Tensor& d, Unary f,
                             const Dropout& drop, Tensor& z, Tensor& g);
void channel_skip_activation_backward(Context& ctx, const Tensor& u, const Tensor& d, const Tensor& z,
                                      Unary f, const Dropout& drop, const Tensor& dg, const Tensor& dz_sent,
                                      Tensor& dz, Tensor& du, Tensor& dd, const Tensor& sent = {});
/// Parameters of an LRU layer, or their gradients; all dense.
struct LruParameters {
  Tensor nu_log, theta_log, gamma_log;  ///< [N]
  Tensor b_re, b_im;                    ///< [N,D]
  Tensor c_re, c_im;                    ///< [D,N]
};
/// log|λ| = −exp(nu_log), arg λ = exp(theta_log), gain = exp(gamma_log) [N]; input = gain∘[B_re; B_im]
/// [2N,D], output = [C_re, −C_im] [D,2N]. All dense.
struct LruMaps {
  Tensor log_abs, arg, gain, input, output;
};
void lru_maps(Context& ctx, const LruParameters& in, LruMaps& out);
/// dmaps.gain is not read. Gradients all defined.
void lru_maps_backward(Context& ctx, const LruParameters& in, const LruMaps& maps, const LruMaps& dmaps,
                       LruParameters& gradient);

}  // namespace eigentrace::kernels
