#pragma once
// The model section: one struct per family, under the study's key names.
#include <array>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

namespace eigentrace {

enum class AttentionKind : unsigned char { softmax, linear, norm };
constexpr auto enum_names(AttentionKind) {
  return std::array{"sm-attention", "lin-attention", "norm-attention"};
}
enum class NormFn : unsigned char { exp, elu, softplus, sigmoid };
constexpr auto enum_names(NormFn) { return std::array{"exp", "elu", "softplus", "sigmoid"}; }
enum class ApproxFn : unsigned char { none, elu };
constexpr auto enum_names(ApproxFn) { return std::array{"none", "elu"}; }
enum class OffsetInit : unsigned char { exp, uniform };
constexpr auto enum_names(OffsetInit) { return std::array{"exp", "uniform"}; }
enum class ConvType : unsigned char { full, partial };
constexpr auto enum_names(ConvType) { return std::array{"full", "partial"}; }
enum class MixerKind : unsigned char { mlp, glu, hybrid, none };
constexpr auto enum_names(MixerKind) { return std::array{"mlp", "glu", "hybrid", "none"}; }
enum class PoolKind : unsigned char { mean, max, sum, cls, last, none };
constexpr auto enum_names(PoolKind) { return std::array{"mean", "max", "sum", "cls", "last", "none"}; }
enum class NormKind : unsigned char { layer, batch };
constexpr auto enum_names(NormKind) { return std::array{"layer", "batch"}; }
enum class MambaVersion : unsigned char { mamba1, mamba2 };
constexpr auto enum_names(MambaVersion) { return std::array{"mamba1", "mamba2"}; }
enum class SsmKind : unsigned char { s4, s5, lru };
constexpr auto enum_names(SsmKind) { return std::array{"s4", "s5", "lru"}; }
enum class MadMixer : unsigned char { softmax, linear, norm, mamba2, mamba1, lru, s5, s4 };
constexpr auto enum_names(MadMixer) {
  return std::array{"sm-attention", "lin-attention", "norm-attention", "mamba2", "mamba1", "lru", "s5", "s4"};
}
enum class SsmActivation : unsigned char { full_glu, half_glu1, half_glu2, gelu };
constexpr auto enum_names(SsmActivation) { return std::array{"full_glu", "half_glu1", "half_glu2", "gelu"}; }
enum class CInit : unsigned char { complex_normal, lecun_normal, trunc_standard_normal };
constexpr auto enum_names(CInit) {
  return std::array{"complex_normal", "lecun_normal", "trunc_standard_normal"};
}
enum class Discretization : unsigned char { zoh, bilinear };
constexpr auto enum_names(Discretization) { return std::array{"zoh", "bilinear"}; }

/// `layer: transformer`.
struct TransformerConfig {
  AttentionKind attention_fn = AttentionKind::softmax;
  NormFn norm_fn = NormFn::softplus;
  ApproxFn approx_fn = ApproxFn::none;
  bool scale_B = false, offset = false;
  OffsetInit offset_init = OffsetInit::exp;
  int64_t dim_conv = 0;
  ConvType conv_type = ConvType::full;
  bool use_gate = false;
  int64_t num_layers = 1, hidden_dim = 0, state_dim = 0, num_heads = 1;
  MixerKind mixer = MixerKind::none;
  int64_t mixer_dim = 0;
  double dropout = 0, att_dropout = 0;
  NormKind norm = NormKind::layer;
  bool embedding = true;
  int64_t vocab_size = 0, max_pos_embed = 0, input_dim = 1;
  bool classifier = false;
  PoolKind pooling = PoolKind::mean;
  bool dual = false;
  int64_t output_dim = 0;
};

template <class V>
void visit_fields(V& v, TransformerConfig& c) {
  const bool norm_attention = c.attention_fn == AttentionKind::norm;
  const char* other = "attention_fn is not norm-attention";
  v("attention_fn", c.attention_fn, "sm-attention, lin-attention or norm-attention");
  v("norm_fn", c.norm_fn, "f of the normaliser exp(f(n + offset))", norm_attention, other);
  v("approx_fn", c.approx_fn, "feature map of q and k: none or elu (elu + 1)", norm_attention, other);
  v("scale_B", c.scale_B, "divide by the square root of the head width", norm_attention, other);
  v("offset", c.offset, "a learned offset per head", norm_attention, other);
  v("offset_init", c.offset_init, "exp: 4 to 9; uniform: 8 to 14", norm_attention && c.offset,
    norm_attention ? "offset is False" : other);
  v("dim_conv", c.dim_conv, "taps of the causal convolution before the recurrence (0: none)");
  v("conv_type", c.conv_type, "full: over q, k and v; partial: over q and k", c.dim_conv > 0,
    "dim_conv is 0");
  v("use_gate", c.use_gate, "multiply the block by silu of a projection of its input");
  v("num_layers", c.num_layers, "blocks");
  v("hidden_dim", c.hidden_dim, "D: width of the model");
  v("state_dim", c.state_dim, "S: width of q and of k, all heads together");
  v("num_heads", c.num_heads, "H: heads; divides hidden_dim and state_dim");
  v("mixer", c.mixer, "channel mixer: mlp, glu, hybrid or none");
  v("mixer_dim", c.mixer_dim, "inner width of mlp and of the classifier (there 0: none)",
    c.mixer == MixerKind::mlp || c.classifier, "mixer is not mlp and classifier is False");
  v("dropout", c.dropout, "after the encoder, the attention and inside the channel mixer");
  v("att_dropout", c.att_dropout, "on the weights (softmax) or on the output (linear, norm)");
  v("norm", c.norm, "always layer");
  v("embedding", c.embedding, "tokens through a table, else floats through a linear layer");
  v("vocab_size", c.vocab_size, "V: rows of the table", c.embedding, "embedding is False");
  v("max_pos_embed", c.max_pos_embed, "learned positions (0: none)", c.embedding, "embedding is False");
  v("input_dim", c.input_dim, "numbers per step", !c.embedding, "embedding is True");
  v("classifier", c.classifier, "one output per sequence, else one per position");
  v("pooling", c.pooling, "over time: mean, max, sum, cls (first step) or none", c.classifier,
    "classifier is False");
  v("dual", c.dual, "compare the two halves of the batch", c.classifier, "classifier is False");
  v("output_dim", c.output_dim, "classes");
}

/// `layer: mamba`.
struct MambaConfig {
  MambaVersion version = MambaVersion::mamba2;
  bool pseudoLTI = false;
  int64_t num_layers = 1, hidden_dim = 0, state_dim = 0, num_heads = 1;
  int64_t conv_dim = 4, expansion = 1;
  bool glu = false, prenorm = true;
  double dropout = 0;
  NormKind norm = NormKind::layer;
  bool token_embedding = true;
  int64_t vocab_size = 0, input_dim = 1;
  PoolKind pooling = PoolKind::none;
  bool dual = false;
  int64_t output_dim = 0;
};

template <class V>
void visit_fields(V& v, MambaConfig& c) {
  const bool mamba2 = c.version == MambaVersion::mamba2;
  const char* other = "version is mamba1";
  v("version", c.version, "mamba2 (SSD) or mamba1 (selective scan)");
  v("pseudoLTI", c.pseudoLTI, "decay that does not depend on the input", mamba2, other);
  v("num_layers", c.num_layers, "blocks");
  v("hidden_dim", c.hidden_dim, "D: width of the model");
  v("state_dim", c.state_dim, "S: states");
  v("num_heads", c.num_heads, "hidden_dim / num_heads is the head width; there are expansion times as many",
    mamba2, other);
  v("conv_dim", c.conv_dim, "taps of the causal convolution (0: neither it nor its SiLU; mamba2 only)");
  v("expansion", c.expansion, "inner width / hidden_dim");
  v("glu", c.glu, "gated linear unit after the mixer");
  v("prenorm", c.prenorm, "LayerNorm before the mixer, else after the residual sum");
  v("dropout", c.dropout, "twice per block");
  v("norm", c.norm, "always layer");
  v("token_embedding", c.token_embedding, "tokens through a table, else floats through a linear layer");
  v("vocab_size", c.vocab_size, "V: rows of the table", c.token_embedding, "token_embedding is False");
  v("input_dim", c.input_dim, "numbers per step", !c.token_embedding, "token_embedding is True");
  v("pooling", c.pooling, "over time: mean, max, last or none");
  v("dual", c.dual, "always False: the published model does not build with it");
  v("output_dim", c.output_dim, "classes");
}

/// `layer: s4`, `s5` or `lru`.
struct SsmConfig {
  SsmConfig() = default;
  explicit SsmConfig(SsmKind kind)
      : layer(kind), C_init(kind == SsmKind::s5 ? CInit::lecun_normal : CInit::complex_normal) {}
  SsmKind layer = SsmKind::s4;
  int64_t num_layers = 1, hidden_dim = 0, state_dim = 0;
  SsmActivation activation = SsmActivation::full_glu;
  double dropout = 0;
  NormKind norm = NormKind::batch;
  bool prenorm = true;
  double dt_min = 1e-3, dt_max = 0.1;
  CInit C_init = CInit::complex_normal;
  int64_t num_blocks = 8;
  bool conj_sym = true, clip_eigs = false, bidirectional = false;
  Discretization discretization = Discretization::zoh;
  double r_min = 0, r_max = 1, max_phase = 6.28;
  std::vector<std::string> ssm_lr_vars = {"Lambda_re", "Lambda_im", "P", "B", "log_step"};
  PoolKind pooling = PoolKind::mean;
  int64_t seq_len = 0, input_dim = 1, output_dim = 0;
};

template <class V>
void visit_fields(V& v, SsmConfig& c) {
  const bool s5 = c.layer == SsmKind::s5, lru = c.layer == SsmKind::lru;
  v("num_layers", c.num_layers, "layers");
  v("hidden_dim", c.hidden_dim, "D: width of the model");
  v("state_dim", c.state_dim, "S: states (s4: of each channel)");
  v("activation", c.activation, "after the mixer: full_glu, half_glu1, half_glu2 or gelu");
  v("dropout", c.dropout, "masks shared over time");
  v("norm", c.norm, "batch or layer");
  v("prenorm", c.prenorm, "normalise before the mixer, else after the residual sum");
  v("dt_min", c.dt_min, "smallest initial step", !lru, "layer is lru");
  v("dt_max", c.dt_max, "largest initial step", !lru, "layer is lru");
  v("C_init", c.C_init, "complex_normal, lecun_normal or (s5) trunc_standard_normal", !lru, "layer is lru");
  v("num_blocks", c.num_blocks, "HiPPO blocks; divides state_dim", s5, "layer is not s5");
  v("conj_sym", c.conj_sym, "keep one of each conjugate pair", s5, "layer is not s5");
  v("clip_eigs", c.clip_eigs, "keep Re Lambda at -1e-4 or below", s5, "layer is not s5");
  v("bidirectional", c.bidirectional, "a second scan from the end (not causal)", s5, "layer is not s5");
  v("discretization", c.discretization, "zoh or bilinear", s5, "layer is not s5");
  v("r_min", c.r_min, "smallest initial |lambda|", lru, "layer is not lru");
  v("r_max", c.r_max, "largest initial |lambda|", lru, "layer is not lru");
  v("max_phase", c.max_phase, "largest initial phase", lru, "layer is not lru");
  v("ssm_lr_vars", c.ssm_lr_vars, "last names of the parameters trained at ssm_lr", !s5,
    "s5 has its own: Lambda_re, Lambda_im, log_step");
  v("pooling", c.pooling, "over time: mean (over the valid steps), last or none");
  v("seq_len", c.seq_len, "length of every input; 0: the data set's");
  v("input_dim", c.input_dim, "numbers per step, or different tokens");
  v("output_dim", c.output_dim, "classes");
}

/// `layer: mad`, the model of the MAD suite (arXiv 2403.17844): mixer and SwiGLU layers in turn.
struct MadModelConfig {
  MadMixer mixer = MadMixer::softmax;
  int64_t num_layers = 4, hidden_dim = 128, state_dim = 0, num_heads = 1;
  NormFn norm_fn = NormFn::softplus;
  ApproxFn approx_fn = ApproxFn::none;
  bool scale_B = false, offset = false;
  OffsetInit offset_init = OffsetInit::exp;
  int64_t dim_conv = 0, conv_dim = 4, expansion = 1, num_blocks = 8;
  bool auto_encoder = false;
  int64_t vocab_size = 0, seq_len = 0, output_dim = 0;
  bool attention() const { return mixer <= MadMixer::norm; }
  bool mamba() const { return mixer == MadMixer::mamba2 || mixer == MadMixer::mamba1; }
  bool fixed_time() const { return auto_encoder || mixer == MadMixer::s4; }  ///< its parts know T
};

template <class V>
void visit_fields(V& v, MadModelConfig& c) {
  const bool norm = c.mixer == MadMixer::norm;
  const char* other = "mixer is not norm-attention";
  v("mixer", c.mixer, "sm-, lin- or norm-attention, mamba2, mamba1, lru, s5 or s4");
  v("num_layers", c.num_layers, "mixers and MLPs counted together, a mixer first");
  v("hidden_dim", c.hidden_dim, "D: width of the model");
  v("state_dim", c.state_dim, "S: as in the mixer's own family");
  v("num_heads", c.num_heads, "H: as in the mixer's own family", c.attention() || c.mixer == MadMixer::mamba2,
    "only attention and mamba2 have heads");
  v("norm_fn", c.norm_fn, "f of the normaliser exp(f(n + offset))", norm, other);
  v("approx_fn", c.approx_fn, "feature map of q and k: none or elu (elu + 1)", norm, other);
  v("scale_B", c.scale_B, "divide by the square root of the head width", norm, other);
  v("offset", c.offset, "a learned offset per head", norm, other);
  v("offset_init", c.offset_init, "exp: 4 to 9; uniform: 8 to 14", norm && c.offset,
    norm ? "offset is False" : other);
  v("dim_conv", c.dim_conv, "taps of the causal convolution over q, k and v (0: none)", c.attention(),
    "mixer is not an attention");
  v("conv_dim", c.conv_dim, "taps of the causal convolution (0: neither it nor its SiLU; mamba2 only)",
    c.mamba(), "mixer is not mamba2 or mamba1");
  v("expansion", c.expansion, "the mixer's inner width / hidden_dim", c.mamba(),
    "mixer is not mamba2 or mamba1");
  v("num_blocks", c.num_blocks, "HiPPO blocks; divides state_dim", c.mixer == MadMixer::s5,
    "mixer is not s5");
  v("auto_encoder", c.auto_encoder, "decode every position from the last one (compression)");
  v("vocab_size", c.vocab_size, "V: rows of the table; 0: the data set's");
  v("seq_len", c.seq_len, "length of every input; 0: the data set's", c.fixed_time(),
    "auto_encoder is False and mixer is not s4");
  v("output_dim", c.output_dim, "classes; 0: the data set's");
}

using ModelConfig = std::variant<TransformerConfig, MambaConfig, SsmConfig, MadModelConfig>;

/// "transformer", "mamba", "s4", "s5", "lru" or "mad": the value of `layer`.
std::string layer_name(const ModelConfig& config);
/// What the mixers of a MAD model are in their own family.
ModelConfig mixer_config(const MadModelConfig& config);
/// Errors (usage): sizes that do not divide, rates outside [0, 1), options a family does not have.
void check(const ModelConfig& config);
/// From a YAML (or JSON) mapping with the study's keys. Keys the study writes without effect are told in
/// `notices` if given. Errors (usage): unknown keys, bad values, impossible sizes.
ModelConfig read_model_config(const std::string& text, std::vector<std::string>* notices = nullptr);
/// The keys that have an effect, `layer` first. Two configurations are equal iff these texts are.
std::string to_yaml(const ModelConfig& config);
std::string to_json(const ModelConfig& config);

}  // namespace eigentrace
