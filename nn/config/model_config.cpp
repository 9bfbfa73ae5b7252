#include "nn/config/model_config.h"

#include <fmt/format.h>

#include "nn/config/config.h"
#include "tensor/error.h"

namespace eigentrace {
namespace {

void need(bool good, const std::string& message) {
  if (!good) fail_usage("model." + message);
}
void at_least(const char* key, int64_t value, int64_t least) {
  need(value >= least, fmt::format("{}: expected at least {}, found {}", key, least, value));
}
void probability(const char* key, double value) {
  need(value >= 0 && value < 1, fmt::format("{}: expected 0 to below 1, found {}", key, value));
}
void divides(const char* divisor_key, int64_t divisor, const char* key, int64_t value) {
  need(value % divisor == 0,
       fmt::format("{}: {} = {} does not divide {} = {}", divisor_key, divisor_key, divisor, key, value));
}
void no_pooling(PoolKind given, std::initializer_list<PoolKind> allowed, const char* words) {
  for (PoolKind kind : allowed)
    if (given == kind) return;
  need(false, fmt::format("pooling: expected {}, found '{}'", words,
                          enum_names(PoolKind{})[static_cast<size_t>(given)]));
}
// Far beyond any machine, near enough that no product of two sizes overflows.
void sizes(std::initializer_list<std::pair<const char*, int64_t>> given) {
  for (const auto& [key, value] : given) {
    at_least(key, value, 1);
    need(value <= (int64_t{1} << 28), fmt::format("{}: expected at most 2^28, found {}", key, value));
  }
}

void check_one(const TransformerConfig& c) {
  sizes({{"num_layers", c.num_layers},
         {"hidden_dim", c.hidden_dim},
         {"state_dim", c.state_dim},
         {"num_heads", c.num_heads}});
  divides("num_heads", c.num_heads, "hidden_dim", c.hidden_dim);
  divides("num_heads", c.num_heads, "state_dim", c.state_dim);
  need(c.dim_conv >= 0 && c.dim_conv <= 1024,
       fmt::format("dim_conv: expected 0 (none) to 1024, found {}", c.dim_conv));
  probability("dropout", c.dropout);
  probability("att_dropout", c.att_dropout);
  need(c.norm == NormKind::layer, "norm: the transformer has LayerNorm only; expected layer");
  at_least("mixer_dim", c.mixer_dim, c.mixer == MixerKind::mlp ? 1 : 0);
  if (c.embedding)
    at_least("max_pos_embed", c.max_pos_embed, 0);
  else
    at_least("input_dim", c.input_dim, 1);
  if (c.classifier)
    no_pooling(c.pooling, {PoolKind::mean, PoolKind::max, PoolKind::sum, PoolKind::cls, PoolKind::none},
               "mean, max, sum, cls or none");
  need(!c.dual || c.classifier, "dual: wants classifier: True");
  need(!c.dual || c.mixer_dim >= 2, fmt::format("mixer_dim: dual wants at least 2, found {}", c.mixer_dim));
}

void check_one(const MambaConfig& c) {
  sizes({{"num_layers", c.num_layers},
         {"hidden_dim", c.hidden_dim},
         {"state_dim", c.state_dim},
         {"expansion", c.expansion}});
  const bool mamba1 = c.version == MambaVersion::mamba1;
  need(c.conv_dim >= (mamba1 ? 1 : 0) && c.conv_dim <= 1024,
       fmt::format("conv_dim: expected {} to 1024, found {}", mamba1 ? 1 : 0, c.conv_dim));
  if (!mamba1) {
    sizes({{"num_heads", c.num_heads}});
    divides("num_heads", c.num_heads, "hidden_dim", c.hidden_dim);
    need(!c.pseudoLTI || c.state_dim % (c.expansion * c.num_heads) == 0,
         fmt::format("state_dim: pseudoLTI wants a multiple of expansion * num_heads = {}, found {}",
                     c.expansion * c.num_heads, c.state_dim));
  }
  probability("dropout", c.dropout);
  need(c.norm == NormKind::layer, "norm: mamba has LayerNorm only; expected layer");
  need(!c.dual, "dual: the published mamba does not build with it; expected False");
  no_pooling(c.pooling, {PoolKind::mean, PoolKind::max, PoolKind::last, PoolKind::none},
             "mean, max, last or none");
  if (!c.token_embedding) at_least("input_dim", c.input_dim, 1);
}

void check_one(const SsmConfig& c) {
  sizes({{"num_layers", c.num_layers}, {"hidden_dim", c.hidden_dim}, {"state_dim", c.state_dim}});
  probability("dropout", c.dropout);
  no_pooling(c.pooling, {PoolKind::mean, PoolKind::last, PoolKind::none}, "mean, last or none");
  at_least("seq_len", c.seq_len, 0);
  at_least("input_dim", c.input_dim, 0);
  if (c.layer == SsmKind::lru) {
    need(c.r_min >= 0 && c.r_min < c.r_max && c.r_max <= 1,
         fmt::format("r_min, r_max: expected 0 <= r_min < r_max <= 1, found {} and {}", c.r_min, c.r_max));
    need(c.max_phase > 0, fmt::format("max_phase: expected a positive angle, found {}", c.max_phase));
    return;
  }
  need(c.dt_min > 0 && c.dt_min <= c.dt_max,
       fmt::format("dt_min, dt_max: expected 0 < dt_min <= dt_max, found {} and {}", c.dt_min, c.dt_max));
  if (c.layer == SsmKind::s4) {
    need(c.C_init != CInit::trunc_standard_normal,
         "C_init: s4 has complex_normal and lecun_normal, found 'trunc_standard_normal'");
    return;
  }
  sizes({{"num_blocks", c.num_blocks}});
  divides("num_blocks", c.num_blocks, "state_dim", c.state_dim);
  need(!c.conj_sym || (c.state_dim / c.num_blocks) % 2 == 0,
       fmt::format("num_blocks: conj_sym keeps half of each block: state_dim / num_blocks = {} is odd",
                   c.state_dim / c.num_blocks));
}

void check_one(const MadModelConfig& c) {
  sizes({{"num_layers", c.num_layers}, {"hidden_dim", c.hidden_dim}});
  for (const auto& [key, value] :
       {std::pair{"vocab_size", c.vocab_size}, {"seq_len", c.seq_len}, {"output_dim", c.output_dim}})
    at_least(key, value, 0);
  need(!c.auto_encoder || (c.hidden_dim % 2 == 0 && c.hidden_dim >= 4),
       fmt::format("hidden_dim: auto_encoder wants an even number from 4, found {}", c.hidden_dim));
  check(mixer_config(c));
}

/// 0: what the data say; else at least as much.
void fill_in(int64_t& size, int64_t wanted, const char* key, const char* what) {
  if (size == 0) size = wanted;
  need(size >= wanted, fmt::format("{}: the data have {} {}, found {}", key, wanted, what, size));
}
void wants_tokens(bool model_tokens, const TaskShape& data, const char* key) {
  const bool tokens = data.encoding() == Encoding::tokens;
  need(model_tokens == tokens, fmt::format("{}: the data are {}; expected {}", key,
                                           tokens ? "tokens" : "floats", tokens ? "True" : "False"));
}
void exactly(int64_t& size, int64_t wanted, const char* key, const char* what) {
  if (size == 0) size = wanted;
  need(size == wanted, fmt::format("{}: the data have {} {}, found {}", key, wanted, what, size));
}

void fit(TransformerConfig& c, const TaskShape& data) {
  wants_tokens(c.embedding, data, "embedding");
  if (c.embedding) {
    fill_in(c.vocab_size, data.vocabulary, "vocab_size", "different tokens");
    need(c.max_pos_embed == 0 || c.max_pos_embed >= data.time,
         fmt::format("max_pos_embed: sequences have {} steps, found {} positions", data.time,
                     c.max_pos_embed));
  } else {
    exactly(c.input_dim, data.features, "input_dim", "numbers per step");
  }
  need(c.dual == (data.documents == 2), "dual: expected True iff the data are pairs of documents");
  need(data.per_position == (!c.classifier || c.pooling == PoolKind::none),
       data.per_position ? "classifier: the data label positions; expected False"
                         : "classifier: the data label whole sequences; expected True, and pooling");
  if (!c.classifier || c.mixer_dim > 0) fill_in(c.output_dim, data.classes, "output_dim", "classes");
}

void fit(MambaConfig& c, const TaskShape& data) {
  wants_tokens(c.token_embedding, data, "token_embedding");
  if (c.token_embedding)
    fill_in(c.vocab_size, data.vocabulary, "vocab_size", "different tokens");
  else
    exactly(c.input_dim, data.features, "input_dim", "numbers per step");
  need(data.per_position == (c.pooling == PoolKind::none),
       data.per_position ? "pooling: the data label positions; expected none"
                         : "pooling: the data label whole sequences; expected mean, max or last");
  fill_in(c.output_dim, data.classes, "output_dim", "classes");
}

void fit(SsmConfig& c, const TaskShape& data) {
  if (data.encoding() == Encoding::tokens)
    fill_in(c.input_dim, data.vocabulary, "input_dim", "different tokens");
  else
    exactly(c.input_dim, data.features, "input_dim", "numbers per step");
  exactly(c.seq_len, data.time, "seq_len", "steps");
  need(data.per_position == (c.pooling == PoolKind::none),
       data.per_position ? "pooling: the data label positions; expected none"
                         : "pooling: the data label whole sequences; expected mean or last");
  need(c.pooling != PoolKind::last || data.fixed_length,
       "pooling: last is not defined on sequences of different lengths; expected mean");
  fill_in(c.output_dim, data.classes, "output_dim", "classes");
}

void fit(MadModelConfig& c, const TaskShape& data) {
  need(data.encoding() == Encoding::tokens, "layer: mad reads tokens, the data are floats");
  need(data.per_position && data.documents == 1,
       "layer: mad has an output per position, the data label whole sequences");
  fill_in(c.vocab_size, data.vocabulary, "vocab_size", "different tokens");
  if (c.fixed_time()) {
    need(data.fixed_length, "layer: mad with s4 or auto_encoder wants sequences of one length");
    exactly(c.seq_len, data.time, "seq_len", "steps");
  }
  fill_in(c.output_dim, data.classes, "output_dim", "classes");
}

}  // namespace

ModelConfig mixer_config(const MadModelConfig& c) {
  if (c.attention()) {
    TransformerConfig t;
    t.attention_fn = static_cast<AttentionKind>(c.mixer);  // the enums begin alike
    t.norm_fn = c.norm_fn, t.approx_fn = c.approx_fn, t.scale_B = c.scale_B;
    t.offset = c.offset, t.offset_init = c.offset_init, t.dim_conv = c.dim_conv;
    t.hidden_dim = c.hidden_dim, t.state_dim = c.state_dim, t.num_heads = c.num_heads;
    return t;
  }
  if (c.mamba()) {
    MambaConfig m;
    m.version = c.mixer == MadMixer::mamba1 ? MambaVersion::mamba1 : MambaVersion::mamba2;
    m.hidden_dim = c.hidden_dim, m.state_dim = c.state_dim, m.num_heads = c.num_heads;
    m.conv_dim = c.conv_dim, m.expansion = c.expansion;
    return m;
  }
  SsmConfig s(c.mixer == MadMixer::lru ? SsmKind::lru : c.mixer == MadMixer::s5 ? SsmKind::s5 : SsmKind::s4);
  s.hidden_dim = c.hidden_dim, s.state_dim = c.state_dim;
  s.seq_len = c.seq_len, s.num_blocks = c.num_blocks;
  return s;
}

std::string layer_name(const ModelConfig& config) {
  if (std::holds_alternative<TransformerConfig>(config)) return "transformer";
  if (std::holds_alternative<MambaConfig>(config)) return "mamba";
  if (std::holds_alternative<MadModelConfig>(config)) return "mad";
  return enum_names(SsmKind{})[static_cast<size_t>(std::get<SsmConfig>(config).layer)];
}

void check(const ModelConfig& config) {
  std::visit([](const auto& c) { check_one(c); }, config);
}

void fit_model(ModelConfig& model, const TaskShape& data) {
  std::visit([&](auto& c) { fit(c, data); }, model);
}

}  // namespace eigentrace
