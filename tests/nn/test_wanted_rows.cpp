// Behind the last mixer only the rows that the loss reads are computed: the same loss, the same gradients.
#include "tests/nn/model_testing.h"

using namespace eigentrace;

namespace {

/// Who looks at the last mixer: nobody, a reading of its eigenvalues, or one who wants every row of its
/// output.
enum class Watched { not_at_all, recurrence, output };

/// Loss, correct ones, predictions and all gradients.
std::vector<double> pass(const ModelConfig& config, Device device, Watched watched, bool padded,
                         DType dtype = DType::f64) {
  auto model = make_model(config, 3, dtype, device);
  perturb(*model, 0.1);
  constexpr int64_t batch = 3, time = 21;
  std::vector<int32_t> rows{2, 3, 17, 21, 30, 41, 44, 62}, classes{1, 10, 3, 0, 4, 2, 2, 7};
  std::vector<float> weights(rows.size(), 1.0f);
  if (padded)
    for (int i = 0; i < 3; ++i) rows.push_back(0), classes.push_back(0), weights.push_back(0);
  const auto size = static_cast<int64_t>(rows.size());
  const Labels labels{Tensor::from(rows, {size}, device), Tensor::from(classes, {size}, device),
                      Tensor::from(weights, {size}, device),
                      Tensor::from(std::vector<double>{8}, {1}, device)};
  Context ctx = testing::poisoned(device);
  if (dtype == DType::f32) ctx.attention_precision = Precision::bf16;
  Tape tape(ctx);
  Forward forward(tape, model->parameters());
  if (watched == Watched::output)
    forward.on_mixer_output = [&](int, const Var&, const Var& out) { CHECK(out.dim(1) == time); };
  if (watched == Watched::recurrence)
    forward.on_mixer = [&](int, const Mixer&, const Terms&, const Mixed& mixed) {
      CHECK(mixed.y.dim(1) == time);
      return Var();
    };
  const Loss loss =
      model->loss(forward, token_input(random_tokens(batch * time, 11, 1), batch, time, device), labels);
  tape.backward(loss.value);
  std::vector<double> numbers{loss.value.value().item(), loss.correct.item()};
  for (int32_t predicted : loss.argmax.to_vector<int32_t>()) numbers.push_back(predicted);
  for (const Parameter& p : model->parameters().parameters())
    for (double v : tape.gradient_of(forward(&p)).to_vector<double>()) numbers.push_back(v);
  return numbers;
}

void check_passes(Device device) {
  const std::string mamba =
      R"({"layer": "mamba", "num_layers": 2, "hidden_dim": 16, "state_dim": 8, "vocab_size": 11,
          "output_dim": 11, "pooling": "none", "token_embedding": true, )";
  const std::vector<ModelConfig> models = {
      small_transformer("sm-attention", R"("dim_conv": 4, "mixer": "mlp", "mixer_dim": 7)"),
      small_transformer("lin-attention"),
      small_transformer("norm-attention", R"("norm_fn": "softplus", "mixer": "glu")"),
      small_transformer("lin-attention", R"("use_gate": true)"),
      read_model_config(mamba + R"("num_heads": 2, "conv_dim": 4, "glu": true})"),
      read_model_config(mamba + R"("num_heads": 2, "prenorm": false})"),
      read_model_config(mamba + R"("num_heads": 2, "pseudoLTI": true, "glu": true})"),
      read_model_config(mamba + R"("version": "mamba1", "glu": true})")};
  for (size_t m = 0; m < models.size(); ++m)
    for (const bool padded : {false, true}) {
      CAPTURE(m);
      const std::vector<double> some = pass(models[m], device, Watched::not_at_all, padded),
                                all = pass(models[m], device, Watched::output, padded);
      REQUIRE(some.size() == all.size());
      for (size_t i = 0; i < some.size(); ++i) CHECK(some[i] == doctest::Approx(all[i]).epsilon(1e-9));
    }
}

}  // namespace

TEST_CASE("wanted rows: loss and gradients are those of a pass that computes every row") { check_passes({}); }

TEST_CASE("cuda wanted rows: loss and gradients are those of a pass that computes every row") {
  if (testing::gpu_here()) check_passes(testing::gpu_context(Precision::fp32).device());
}

/// Heads 128 wide, of which labelled queries alone are computed where the device has wgmma.
TEST_CASE("cuda wanted rows: attention in bf16 gives the gradients of a pass that computes every row") {
  if (!testing::gpu_here()) return;
  const Device device = testing::gpu_context().device();
  const ModelConfig config = read_model_config(
      R"({"layer": "transformer", "attention_fn": "sm-attention", "num_layers": 1, "hidden_dim": 128,
          "state_dim": 128, "num_heads": 1, "vocab_size": 11, "output_dim": 11})");
  for (const bool padded : {false, true}) {
    const std::vector<double> some = pass(config, device, Watched::not_at_all, padded, DType::f32),
                              all = pass(config, device, Watched::output, padded, DType::f32);
    CHECK(testing::relative_error(some, all) < 1e-5);
    CHECK(pass(config, device, Watched::recurrence, padded, DType::f32) == some);
  }
}
