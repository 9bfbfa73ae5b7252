// Spectra of whole models: what a layer computed, replayed and read inside the pass.
#include "tools/spectrum.h"

#include <doctest/doctest.h>

#include <cmath>

#include "tasks/mqar.h"
#include "tensor/error.h"
#include "tensor/rng.h"
#include "tools/device_batch.h"

using namespace eigentrace;

namespace {

TransformerConfig transformer(AttentionKind kind) {
  TransformerConfig config;
  config.attention_fn = kind;
  config.num_layers = 2, config.hidden_dim = 24, config.state_dim = 16, config.num_heads = 2;
  config.dropout = 0.3, config.att_dropout = 0.2;  // neither may be seen by the exact reading
  config.vocab_size = config.output_dim = 40;
  config.max_pos_embed = 100;
  config.dim_conv = kind == AttentionKind::linear ? 0 : 3;
  config.scale_B = config.offset = kind == AttentionKind::norm;
  config.approx_fn = ApproxFn::elu;
  return config;
}

ModelInput tokens(int64_t batch, int64_t steps) {
  Rng rng(5, 1);
  std::vector<int32_t> ids(static_cast<size_t>(batch * steps));
  for (int32_t& id : ids) id = int32_t(rng.below(40));
  ModelInput input;
  input.tokens.ids = Tensor::from(ids, {batch, steps});
  return input;
}

constexpr AttentionKind kinds[] = {AttentionKind::softmax, AttentionKind::linear, AttentionKind::norm};

}  // namespace

TEST_CASE("spectrum: every attention layer of a model is replayed from its own terms") {
  for (const AttentionKind kind : kinds)
    for (const DType dtype : {DType::f64, DType::f32})
      for (const int64_t steps : {2, 63, 100}) {
        const auto model = make_model(ModelConfig(transformer(kind)), 3, dtype);
        Context ctx;
        ctx.poison = true;
        SpectrumRequest request;
        request.check = true;
        const SpectrumRecord record = model_spectra(ctx, *model, tokens(3, steps), request);
        REQUIRE(record.layers.size() == 2);
        for (const LayerRecord& layer : record.layers) {
          CAPTURE(name_of(layer.spectrum.family));
          CAPTURE(steps);
          CHECK(layer.spectrum.shape == std::vector<int64_t>{3, steps - 1, 2});
          CHECK_FALSE(layer.replay->layer.dead);
          CHECK(layer.replay->layer.relative_error < replay_tolerance(dtype, layer.spectrum.family));
        }
        CHECK(replay_agrees(record, replay_tolerance(dtype, record.layers[0].spectrum.family)));
        CHECK(ctx.slab().in_use() == 0);
      }
}

TEST_CASE("spectrum: every layer of the state space families is replayed, read and compared") {
  struct Case {
    const char* model;
    Family family;
    SpectrumKind kind;
    bool published;
  };
  const std::string mamba =
      "layer: mamba\nnum_layers: 2\nhidden_dim: 16\nstate_dim: 8\nnum_heads: 2\nconv_dim: 3\nglu: True\n"
      "dropout: 0.2\nvocab_size: 40\ntoken_embedding: True\noutput_dim: 40\npooling: none\n";
  const std::string ssm =
      "num_layers: 2\nhidden_dim: 12\nstate_dim: 8\nactivation: full_glu\ndropout: 0.2\nnorm: batch\n"
      "seq_len: 63\ninput_dim: 40\noutput_dim: 40\npooling: none\n";
  const Case cases[] = {{"", Family::mamba2, SpectrumKind::time_varying, true},
                        {"expansion: 2\n", Family::mamba2, SpectrumKind::time_varying, true},
                        {"pseudoLTI: True\n", Family::mamba2_pseudo_lti, SpectrumKind::fixed_per_head, true},
                        {"version: mamba1\n", Family::mamba1, SpectrumKind::selective, false},
                        {"layer: lru\n", Family::lru, SpectrumKind::fixed, true},
                        {"layer: s5\nnum_blocks: 2\n", Family::s5, SpectrumKind::fixed, true},
                        {"layer: s5\nnum_blocks: 2\nbidirectional: True\ndiscretization: bilinear\n",
                         Family::s5, SpectrumKind::fixed, true},
                        {"layer: s4\n", Family::s4, SpectrumKind::fixed_per_channel, true}};
  for (const Case& c : cases)
    for (const DType dtype : {DType::f64, DType::f32}) {
      std::string text = c.model;
      text += text.find("layer:") == std::string::npos ? mamba : ssm;
      if (c.family == Family::mamba1) text.erase(text.find("num_heads: 2\n"), 13);  // not read
      CAPTURE(text);
      const auto model = make_model(read_model_config(text), 3, dtype);
      Context ctx;
      ctx.poison = true;
      SpectrumRequest request;
      request.check = request.compare = true;
      const SpectrumRecord record = model_spectra(ctx, *model, tokens(2, 63), request);
      REQUIRE(record.layers.size() == 2);
      for (const LayerRecord& layer : record.layers) {
        CHECK(layer.spectrum.family == c.family);
        CHECK(layer.spectrum.kind == c.kind);
        CHECK(layer.replay->layer.y_norm > 0);
        CHECK(layer.replay->layer.relative_error < replay_tolerance(dtype, c.family));
        CHECK(layer.comparison.has_value() == c.published);
      }
    }
}

TEST_CASE("spectrum: both readings of one pass, and their difference") {
  for (const AttentionKind kind : kinds) {
    const auto model = make_model(ModelConfig(transformer(kind)), 3, DType::f64);
    Context ctx;
    SpectrumRequest request;
    request.compare = true;
    const SpectrumRecord both = model_spectra(ctx, *model, tokens(3, 63), request);
    for (const LayerRecord& layer : both.layers) {
      REQUIRE(layer.comparison.has_value());
      CHECK(layer.spectrum.reading == "exact");
      CHECK(layer.comparison->count == 3 * 62 * 2);
      CHECK(layer.comparison->mean_difference > 0);
    }
    CHECK(comparison_table(both).find("published") != std::string::npos);
    // Alone, each reading is the same as beside the other.
    request = {};
    const SpectrumRecord exact = model_spectra(ctx, *model, tokens(3, 63), request);
    request.published = true;
    const SpectrumRecord published = model_spectra(ctx, *model, tokens(3, 63), request);
    for (size_t l = 0; l < 2; ++l) {
      CHECK(exact.layers[l].spectrum.log_abs == both.layers[l].spectrum.log_abs);
      CHECK(published.layers[l].spectrum.log_abs == both.layers[l].published->log_abs);
      CHECK(published.layers[l].statistics.all.binning == Binning::published);
    }
    // The study reads untrained weights with dropout on: other numbers.
    request.dropout = true;
    ctx.set_step(1, 0);
    CHECK(model_spectra(ctx, *model, tokens(3, 63), request).layers[0].spectrum.log_abs !=
          published.layers[0].spectrum.log_abs);
    // The exact reading, alone or beside it, never sees a mask.
    request.published = false;
    CHECK(model_spectra(ctx, *model, tokens(3, 63), request).layers[1].spectrum.log_abs ==
          exact.layers[1].spectrum.log_abs);
    request.compare = request.check = true;
    const SpectrumRecord masked = model_spectra(ctx, *model, tokens(3, 63), request);
    CHECK(masked.layers[1].spectrum.log_abs == exact.layers[1].spectrum.log_abs);
    CHECK(masked.layers[1].published->log_abs != published.layers[1].spectrum.log_abs);
    CHECK(replay_agrees(masked, 1e-10));
  }
}

TEST_CASE("spectrum: a batch is the first examples of the test split, in order") {
  MqarConfig config;
  config.vocab_size = 40, config.input_seq_length = 32, config.num_kv_pairs = 4;
  config.num_train_examples = config.num_validation_examples = config.num_test_examples = 10;
  const auto task = make_task(config);
  const Batch batch = spectrum_batch(*task, 64);
  CHECK(batch.examples == 10);
  Batch direct;
  const int64_t third[] = {2};
  task->make(Split::test, third, direct);
  CHECK(std::equal(direct.tokens.begin(), direct.tokens.end(), batch.row(2).begin()));
  CHECK_THROWS_AS(spectrum_batch(*task, 0), UsageError);
  CHECK(study_batch("imdb") == 32);
  CHECK(study_batch("wikitext-103") == 8);

  const auto model = make_model(ModelConfig(transformer(AttentionKind::softmax)), 3, DType::f32);
  DeviceBatch data({}, DType::f32);
  data.load(batch, false, LossAverage::labelled);
  Context ctx;
  const SpectrumRecord record = model_spectra(ctx, *model, data.input());
  const std::string table = spectrum_table(record);
  CHECK(std::count(table.begin(), table.end(), '\n') == 1 + 2 * 2);
}
