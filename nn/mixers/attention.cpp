#include "nn/mixers/attention.h"

#include <cmath>
#include <tuple>
#include <utility>

#include "autograd/ops_pointwise.h"
#include "autograd/ops_sequence.h"
#include "autograd/ops_shape.h"
#include "spectral/realisation.h"

namespace eigentrace {
namespace {

class Attention : public Mixer {
 public:
  Attention(ParameterList& list, const std::string& name, const TransformerConfig& config)
      : config_(config), heads_(config.num_heads), qk_(2 * config.state_dim), v_(config.hidden_dim) {
    const bool norm = config.attention_fn == AttentionKind::norm;
    const int64_t width = qk_ + v_ + (norm ? heads_ : 0);
    projection_ = Linear(list, name + (norm ? ".Wvqkn" : ".Wqkv"), v_, width);
    const int64_t channels = config.conv_type == ConvType::full ? qk_ + v_ : qk_;
    convolution_ = ShortConvolution(list, name + ".conv1d", channels, config.dim_conv);
    if (norm && config.offset)
      offset_ = list.add(name + ".inner_attn.offset", {heads_},
                         init_values(initial_offsets(config.offset_init, heads_)));
    out_ = Linear(list, name + ".out_proj", v_, v_);
  }

  Var finish(Forward& forward, const Terms& terms, const Var& y) const override {
    const Shape rows{y.dim(0), y.dim(1), v_};
    const Var merged = reshape(y, rows);
    (void)terms;
    return out_(forward, drops_before(forward) ? merged : dropout(merged, forward.rate(config_.att_dropout)));
  }

  std::vector<LambdaSource> lambda_sources(const Terms&, const Mixed& mixed) const override {
    return {{mixed.log_eta, true}};
  }
  Lambda lambda(const std::vector<Tensor>& sources) const override {
    return {kind(), NormaliserRatio{sources.at(0), Gauge::state_normalised}};
  }

 protected:
  virtual Family kind() const = 0;
  /// True iff att_dropout has acted when finish begins: on the attention weights or on y.
  virtual bool drops_before(const Forward&) const { return false; }
  /// True iff q and k pass through elu + 1 before the recurrence.
  virtual bool elu_features() const { return false; }

  Var heads(const Var& x, int64_t width) const {
    return reshape(x, {x.dim(0), x.dim(1), heads_, width / heads_});
  }
  /// q and k, v, side by side in that order or (qk_at 1) the other → heads, after the convolution of all
  /// channels or of q and k alone, which also makes their features.
  void set_heads(Forward& forward, const Var& all, size_t qk_at, bool convolve, AttentionTerms& out) const {
    const bool full = config_.conv_type == ConvType::full, features = elu_features();
    convolve = convolve && convolution_.weight;
    const auto convolved = [&](const Var& x, const std::vector<int64_t>& widths, size_t mapped) {
      return features ? causal_conv1d_elu(x, forward(convolution_.weight), forward(convolution_.bias), true,
                                          widths, mapped)
                      : ConvolvedParts{split(convolution_(forward, x), widths), {}};
    };
    const std::vector<int64_t> widths = qk_at == 0 ? std::vector{qk_, v_} : std::vector{v_, qk_};
    ConvolvedParts c =
        convolve && full ? convolved(all, widths, qk_at) : ConvolvedParts{split(all, widths), {}};
    const Var v = c.parts[1 - qk_at];
    Var qk = c.parts[qk_at];
    if (convolve && !full) c = convolved(qk, {qk_}, 0), qk = c.parts[0];
    if (features && !convolve) c.of = qk, qk = unary(Unary::elu_plus_one, qk);
    const auto halves = [&](const Var& x) {
      const std::vector<Var> parts = split(x, {qk_ / 2, qk_ / 2});
      return std::pair{heads(parts[0], qk_ / 2), heads(parts[1], qk_ / 2)};
    };
    std::tie(out.q, out.k) = halves(qk);
    if (features) std::tie(out.of.x, out.of.z) = halves(c.of);
    out.v = heads(v, v_);
  }
  double inverse_root_width() const {
    const int64_t width = config_.state_dim / heads_;
    return 1.0 / std::sqrt(static_cast<double>(width));
  }

  TransformerConfig config_;
  int64_t heads_, qk_, v_;
  Linear projection_, out_;
  ShortConvolution convolution_;
  Parameter* offset_ = nullptr;
};

const AttentionTerms& own(const Terms& terms) { return static_cast<const AttentionTerms&>(terms); }

/// Order of the projection: q, k, v.
class QkvAttention : public Attention {
 public:
  using Attention::Attention;
  std::unique_ptr<Terms> terms(Forward& forward, const Var& x, bool convolve) const override {
    auto out = std::make_unique<AttentionTerms>();
    out->input = x;
    set_heads(forward, projection_(forward, x), 0, convolve, *out);
    return out;
  }
};

class SoftmaxAttention final : public QkvAttention {
 public:
  using QkvAttention::QkvAttention;
  const char* family() const override { return "sm-attention"; }
  Mixed mix(Forward& forward, const Terms& terms) const override { return attend(forward, terms, nullptr); }
  Mixed mix_for_rows(Forward& forward, const Terms& terms, const Labels& labels) const override {
    return attend(forward, terms, &labels);
  }
  Realisation realise(const Terms& terms, const Mixed& mixed) const override {
    const AttentionTerms& t = own(terms);
    return {kind(),
            lambda({mixed.log_eta}).map,
            Kernel{t.q.value(), t.k.value(), inverse_root_width()},
            t.v.value(),
            {}};
  }

 protected:
  Family kind() const override { return Family::softmax_attention; }
  bool drops_before(const Forward&) const override { return true; }

 private:
  Mixed attend(Forward& forward, const Terms& terms, const Labels* labels) const {
    const AttentionTerms& t = own(terms);
    const Attended out = softmax_attention(t.q, t.k, t.v, inverse_root_width(),
                                           forward.rate(config_.att_dropout), labels, !forward.on_mixer);
    return {.y = out.y, .log_eta = out.lse, .rows = out.rows};
  }
};

/// Σ_j (Π_{l=j+1..i} λ'_l) q_i·k_j v_j η_i/η_j for other eigenvalues λ' of η: the recurrence of the
/// unnormalised state with decay λ'_i/λ_i, which is 1 where nothing is changed, so that η's own size never
/// enters.
Var decayed(const AttentionTerms& t, const Var& log_eta, const EigenvalueMap& map) {
  Var log_lambda = sub(log_eta, log_eta);  // log λ_0 := 0: there is no such eigenvalue
  if (const int64_t steps = log_eta.dim(1); steps > 1) {
    const Var by_time = transpose(log_eta, 1, 2);
    const Var first = split(by_time, {1, steps - 1})[0], all_but_last = split(by_time, {steps - 1, 1})[0];
    log_lambda = sub(transpose(concat({first, all_but_last}), 1, 2), log_eta);
  }
  return ssd(t.q, t.k, t.v, sub(map({log_lambda, {}}).log_abs, log_lambda), {});
}

class LinearAttention final : public QkvAttention {
 public:
  using QkvAttention::QkvAttention;
  const char* family() const override { return "lin-attention"; }
  Mixed mix(Forward& forward, const Terms& terms) const override {
    const AttentionTerms& t = own(terms);
    const double rate = drops_before(forward) ? forward.rate(config_.att_dropout) : 0;
    const Normalised out = linear_attention(t.q, t.k, t.v, t.of, rate);
    return {out.y, out.log_eta};
  }
  bool has_mix_with() const override { return true; }
  Var mix_with(Forward&, const Terms& terms, const EigenvalueMap& map) const override {
    const AttentionTerms& t = own(terms);
    const Var log_eta = attention_normaliser(t.q, t.k);
    return divide_by_eta(decayed(t, log_eta, map), log_eta);
  }
  Realisation realise(const Terms& terms, const Mixed& mixed) const override {
    const AttentionTerms& t = own(terms);
    return {
        kind(), lambda({mixed.log_eta}).map, Factored{t.q.value(), t.k.value(), {}, 1.0}, t.v.value(), {}};
  }

 protected:
  Family kind() const override { return Family::linear_attention; }
  bool elu_features() const override { return true; }
  /// Where nobody reads y before it is dropped, or some rows of it alone.
  bool drops_before(const Forward& forward) const override { return !forward.on_mixer && !forward.only; }
};

/// Order of the projection: v, q, k, n. n is never convolved.
class NormAttention final : public Attention {
 public:
  using Attention::Attention;
  const char* family() const override { return "norm-attention"; }
  std::unique_ptr<Terms> terms(Forward& forward, const Var& x, bool convolve) const override {
    auto out = std::make_unique<AttentionTerms>();
    out->input = x;
    const std::vector<Var> all = split(projection_(forward, x), {v_ + qk_, heads_});
    set_heads(forward, all[0], 1, convolve, *out);
    out->n = widen(all[1]);
    return out;
  }
  Mixed mix(Forward& forward, const Terms& terms) const override {
    const AttentionTerms& t = own(terms);
    const Normalised out = norm_attention(t.q, t.k, t.v, function(), t.n, forward(offset_), scale(), t.of);
    return {out.y, out.log_eta};
  }
  bool has_mix_with() const override { return true; }
  Var mix_with(Forward& forward, const Terms& terms, const EigenvalueMap& map) const override {
    const AttentionTerms& t = own(terms);
    const Var offset = forward(offset_);
    const Var log_eta = unary(log_eta_of(), offset.defined() ? add(t.n, offset) : t.n);
    return norm_scale(decayed(t, log_eta, map), function(), t.n, offset, scale()).y;
  }
  Realisation realise(const Terms& terms, const Mixed& mixed) const override {
    const AttentionTerms& t = own(terms);
    return {kind(),
            lambda({mixed.log_eta}).map,
            Factored{t.q.value(), t.k.value(), {}, scale()},
            t.v.value(),
            {}};
  }

 protected:
  Family kind() const override { return Family::norm_attention; }
  bool elu_features() const override { return config_.approx_fn == ApproxFn::elu; }

 private:
  Unary log_eta_of() const {
    switch (config_.norm_fn) {
      case NormFn::exp:
        return Unary::exp;
      case NormFn::elu:
        return Unary::elu;
      case NormFn::softplus:
        return Unary::softplus;
      case NormFn::sigmoid:
        return Unary::sigmoid;
    }
    return Unary::exp;
  }
  double scale() const { return config_.scale_B ? inverse_root_width() : 1.0; }
  NormFunction function() const {
    switch (config_.norm_fn) {
      case NormFn::exp:
        return NormFunction::exp;
      case NormFn::elu:
        return NormFunction::elu;
      case NormFn::softplus:
        return NormFunction::softplus;
      case NormFn::sigmoid:
        return NormFunction::sigmoid;
    }
    return NormFunction::exp;
  }
};

}  // namespace

std::vector<double> initial_offsets(OffsetInit kind, int64_t heads) {
  const auto linspace = [heads](double low, double high) {
    std::vector<double> x(static_cast<size_t>(heads), low);
    for (int64_t h = 1; h < heads; ++h)
      x[static_cast<size_t>(h)] =
          low + (high - low) * static_cast<double>(h) / static_cast<double>(heads - 1);
    return x;
  };
  if (kind == OffsetInit::exp) return linspace(4, 9);
  if (heads == 1) return {3};
  std::vector<double> x = linspace(0.02, 0.1);
  for (double& e : x) e = std::log(std::expm1(e));
  const double low = x.front(), high = x.back();
  for (double& e : x) e = 8 + (14 - 8) * (e - low) / (high - low);
  return x;
}

std::unique_ptr<Mixer> make_attention(ParameterList& list, const std::string& name,
                                      const TransformerConfig& config) {
  switch (config.attention_fn) {
    case AttentionKind::softmax:
      return std::make_unique<SoftmaxAttention>(list, name, config);
    case AttentionKind::linear:
      return std::make_unique<LinearAttention>(list, name, config);
    case AttentionKind::norm:
      return std::make_unique<NormAttention>(list, name, config);
  }
  return nullptr;
}

}  // namespace eigentrace
