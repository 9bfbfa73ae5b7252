#include <doctest/doctest.h>
#include <omp.h>

#include <cmath>

#include "autograd/ops_pointwise.h"
#include "nn/mixers/attention.h"
#include "nn/optimiser.h"
#include "spectral/reading.h"
#include "spectral/replay.h"
#include "tensor/error.h"
#include "tests/nn/model_testing.h"

using namespace eigentrace;
using namespace eigentrace::testing;

namespace {

struct Variant {
  std::string fn, options;
};
const std::vector<Variant> variants = {
    {"sm-attention", R"("dim_conv": 4, "max_pos_embed": 50, "mixer": "mlp", "mixer_dim": 7)"},
    {"sm-attention", R"("dim_conv": 3, "conv_type": "partial", "use_gate": true)"},
    {"lin-attention", R"("mixer": "glu", "dim_conv": 2)"},
    {"lin-attention", R"("mixer": "hybrid", "use_gate": true)"},
    {"norm-attention", R"("norm_fn": "exp", "approx_fn": "elu", "mixer": "mlp", "mixer_dim": 5)"},
    {"norm-attention",
     R"("norm_fn": "elu", "scale_B": true, "offset": true, "offset_init": "uniform", "dim_conv": 4)"},
    {"norm-attention",
     R"("norm_fn": "softplus", "approx_fn": "elu", "offset": true, "dim_conv": 4, "conv_type": "partial")"},
    {"norm-attention", R"("norm_fn": "sigmoid", "mixer": "hybrid", "use_gate": true)"},
};

struct Observed {
  std::vector<double> output;
  std::vector<std::vector<double>> log_eta;
};
Observed observe(const Model& model, const ModelInput& input, Precision precision = Precision::fp32) {
  Context ctx = poisoned(model.parameters().device(), precision);
  Tape tape(ctx, false);
  Forward forward(tape, model.parameters());
  Observed out;
  forward.on_mixer = [&](int, const Mixer&, const Terms&, const Mixed& mixed) {
    out.log_eta.push_back(mixed.log_eta.to_vector<double>());
    return Var();
  };
  out.output = model.output(forward, input).value().to_vector<double>();
  return out;
}

/// True iff the first `steps` of T steps of every sequence agree bit for bit.
bool same_prefix(const std::vector<double>& a, const std::vector<double>& b, int64_t batch, int64_t time,
                 int64_t steps) {
  const size_t row = a.size() / static_cast<size_t>(batch * time);
  for (int64_t s = 0; s < batch; ++s)
    for (size_t i = 0; i < static_cast<size_t>(steps) * row; ++i)
      if (const size_t at = static_cast<size_t>(s * time) * row + i; a[at] != b[at]) return false;
  return true;
}

/// n training steps with dropout; the parameters afterwards.
std::vector<double> train(const ModelConfig& config, DType dtype, int steps, int threads) {
  const int before = omp_get_max_threads();
  omp_set_num_threads(threads);
  auto model = make_model(config, 5, dtype);
  TrainConfig settings;
  Optimiser optimiser(model->parameters(), make_groups(model->parameters(), config, settings, Dialect::ours),
                      {1.0, false});
  Context ctx;
  for (int step = 0; step < steps; ++step) {
    ctx.set_step(1, static_cast<uint64_t>(step));
    Tape tape(ctx);
    Forward forward(tape, model->parameters());
    forward.dropout = true;
    const ModelInput input = token_input(random_tokens(3 * 29, 11, static_cast<uint64_t>(step)), 3, 29);
    tape.backward(model->loss(forward, input, label_all(3 * 29, 11, 2)).value);
    optimiser.step(ctx, {1e-2});
  }
  omp_set_num_threads(before);
  std::vector<double> all;
  for (const Parameter& p : model->parameters().parameters())
    for (double v : p.value.to_vector<double>()) all.push_back(v);
  return all;
}

/// Inputs after t change no output and no normaliser at or before t by one bit.
void check_causality(const Variant& v, Device device, DType dtype, Precision precision = Precision::fp32) {
  constexpr int64_t batch = 2, time = 29;
  INFO(v.fn << " " << v.options);
  auto model = make_model(small_transformer(v.fn, v.options), 1, dtype, device);
  perturb(*model, 0.1);
  std::vector<int32_t> ids = random_tokens(batch * time, 11, 1);
  const Observed before = observe(*model, token_input(ids, batch, time, device), precision);
  const bool slow = device.is_cuda() && cuda_is_emulated();
  for (int64_t t : slow ? std::vector<int64_t>{16} : std::vector<int64_t>{0, 1, 15, 16, 27}) {
    std::vector<int32_t> changed = ids;
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t i = t + 1; i < time; ++i) {
        int32_t& id = changed[static_cast<size_t>(b * time + i)];
        id = (id + 1 + static_cast<int32_t>(i % 9)) % 11;
      }
    const Observed after = observe(*model, token_input(changed, batch, time, device), precision);
    CHECK(same_prefix(before.output, after.output, batch, time, t + 1));
    CHECK(!same_prefix(before.output, after.output, batch, time, t + 2));
    for (size_t l = 0; l < before.log_eta.size(); ++l)
      CHECK(same_prefix(before.log_eta[l], after.log_eta[l], batch, time, t + 1));
  }
}

void check_realisation(Device device) {
  for (const Variant& v : variants)
    for (DType dtype : {DType::f64, DType::f32}) {
      INFO(v.fn << " " << v.options);
      auto model = make_model(small_transformer(v.fn, v.options), 4, dtype, device);
      perturb(*model, 0.2);
      check_replay(*model, token_input(random_tokens(2 * 50, 11, 3), 2, 50, device),
                   dtype == DType::f64 ? 1e-10 : 1e-4);
    }
}

void check_all_gradients(Device device, int64_t elements_per_parameter) {
  std::vector<Variant> all = variants;
  all.push_back({"sm-attention", R"("classifier": true, "pooling": "cls", "mixer_dim": 6)"});
  all.push_back({"lin-attention", R"("classifier": true, "pooling": "sum", "mixer_dim": 6, "dual": true)"});
  all.push_back({"norm-attention", R"("classifier": true, "pooling": "none", "mixer_dim": 4)"});
  all.push_back({"lin-attention", R"("classifier": true, "pooling": "max")"});
  for (const Variant& v : taken_on(device, all, 5)) {
    INFO(v.fn << " " << v.options);
    ModelConfig config =
        small_transformer(v.fn, v.options + std::string(R"(, "dropout": 0.2, "att_dropout": 0.1)"));
    const auto& c = std::get<TransformerConfig>(config);
    auto model = make_model(config, 6, DType::f64, device);
    perturb(*model, 0.1);
    constexpr int64_t batch = 2, time = 9;
    const int64_t rows = model->per_position() ? batch * time : c.dual ? batch / 2 : batch;
    check_gradients(*model, token_input(random_tokens(batch * time, 11, 5), batch, time, device),
                    label_all(rows, c.mixer_dim == 0 && c.classifier ? 16 : 11, 7, device),
                    elements_per_parameter);
  }
}

}  // namespace

TEST_CASE("transformer: inputs after t change no output and no normaliser at or before t by one bit") {
  for (const Variant& v : variants)
    for (DType dtype : {DType::f32, DType::f64}) check_causality(v, {}, dtype);
}

TEST_CASE("cuda transformer: inputs after t change no output and no normaliser at or before t by one bit") {
  if (!gpu_here()) return;
  const Device gpu = parse_device("cuda");
  for (const Variant& v : variants) {
    check_causality(v, gpu, DType::f64);
    for (const Precision precision : {Precision::fp32, Precision::tf32, Precision::tf32x3, Precision::bf16})
      check_causality(v, gpu, DType::f32, precision);
  }
}

TEST_CASE("transformer: no mixer sees its future, even when it is ten thousand times larger") {
  constexpr int64_t batch = 2, time = 33, width = 16;
  for (const Variant& v : variants) {
    INFO(v.fn << " " << v.options);
    ParameterList list(2, DType::f32, {});
    const auto mixer =
        make_attention(list, "a", std::get<TransformerConfig>(small_transformer(v.fn, v.options)));
    Rng rng(8);
    std::vector<float> x(static_cast<size_t>(batch * time * width));
    for (float& e : x) e = static_cast<float>(rng.normal());
    const auto run = [&](const std::vector<float>& values, std::vector<double>& log_eta) {
      Context ctx;
      Tape tape(ctx, false);
      Forward forward(tape, list);
      const auto terms = mixer->terms(forward, tape.constant(Tensor::from(values, {batch, time, width})));
      const Mixed mixed = mixer->mix(forward, *terms);
      log_eta = mixed.log_eta.to_vector<double>();
      return mixer->finish(forward, *terms, mixed.y).value().to_vector<double>();
    };
    std::vector<double> eta_before, eta_after;
    const std::vector<double> before = run(x, eta_before);
    for (int64_t t : {0, 20, 31}) {
      std::vector<float> changed = x;
      for (int64_t b = 0; b < batch; ++b)
        for (int64_t i = (b * time + t + 1) * width; i < (b + 1) * time * width; ++i)
          changed[static_cast<size_t>(i)] *= 1e4f;
      const std::vector<double> after = run(changed, eta_after);
      CHECK(same_prefix(before, after, batch, time, t + 1));
      CHECK(same_prefix(eta_before, eta_after, batch, time, t + 1));
    }
  }
}

TEST_CASE("transformer: simulating the realisation step by step gives what the layer computed") {
  check_realisation({});
}

TEST_CASE("cuda transformer: simulating the realisation step by step gives what the layer computed") {
  if (gpu_here()) check_realisation(parse_device("cuda"));
}

TEST_CASE("transformer: gradients of whole configured models agree with central differences") {
  check_all_gradients({}, 4);
}

TEST_CASE("cuda transformer: gradients of whole configured models agree with central differences") {
  if (gpu_here()) check_all_gradients(parse_device("cuda"), cuda_is_emulated() ? 1 : 4);
}

TEST_CASE("transformer: training steps give the same bits for one and two threads, and again") {
  for (const char* fn : {"sm-attention", "lin-attention", "norm-attention"}) {
    const ModelConfig config = small_transformer(
        fn, R"("mixer": "mlp", "mixer_dim": 20, "dropout": 0.1, "att_dropout": 0.1, "dim_conv": 4)");
    const std::vector<double> one = train(config, DType::f32, 3, 1);
    CHECK(one == train(config, DType::f32, 3, 2));
    CHECK(one == train(config, DType::f32, 3, 1));
    CHECK(one != train(config, DType::f32, 2, 1));
  }
}

TEST_CASE("transformer: norm attention at its extremes has no inf, no NaN, and says where it is dead") {
  for (const char* f : {"exp", "elu", "softplus", "sigmoid"})
    for (double shift : {-100.0, 0.0, 100.0})
      for (DType dtype : {DType::f32, DType::f64}) {
        INFO(f << " " << shift << " " << name_of(dtype));
        auto model = make_model(
            small_transformer("norm-attention", std::string(R"("offset": true, "norm_fn": ")") + f + "\""), 1,
            dtype);
        if (shift != 0)
          for (Parameter& p : model->parameters().parameters())
            if (p.name.ends_with("offset")) p.value.assign(std::vector<double>{shift, shift});
        Context ctx;
        Tape tape(ctx);
        tape.check_finite = true;
        Forward forward(tape, model->parameters());
        bool dead = false;
        forward.on_mixer = [&](int, const Mixer& mixer, const Terms& terms, const Mixed& mixed) {
          const ReplayResult result = replay(mixer.realise(terms, mixed), mixed.y.value());
          CHECK_MESSAGE(result.agrees(dtype == DType::f64 ? 1e-10 : 1e-4), result.text());
          dead = dead || result.layer.dead || result.heads[0].dead;
          return Var();
        };
        const ModelInput input = token_input(random_tokens(2 * 20, 11, 3), 2, 20);
        // log η itself may overflow (f = exp, 100); values, gradients and the replay must not mind.
        CHECK_NOTHROW(tape.backward(model->loss(forward, input, label_all(40, 11, 3)).value));
        if (shift == 100 && std::string(f) == "exp") CHECK(dead);
        if (shift == 0 && std::string(f) == "softplus") CHECK(!dead);
      }
}

TEST_CASE("transformer: a dry run asks for the memory the step then takes, and touches nothing") {
  for (const Variant& v : variants) {
    auto model = make_model(small_transformer(v.fn, v.options), 1, DType::f32);
    const ModelInput input = token_input(random_tokens(4 * 25, 11, 3), 4, 25);
    const Labels labels = label_all(100, 11, 3);
    const auto peak = [&](Context ctx) {
      Tape tape(ctx);
      Forward forward(tape, model->parameters());
      tape.backward(model->loss(forward, input, labels).value);
      return ctx.slab().peak();
    };
    CHECK(peak(Context::dry_run({})) == peak(Context()));
  }
}

TEST_CASE("transformer: hooks see every layer, and a replaced y goes on through the model") {
  auto model = make_model(small_transformer("sm-attention"), 1, DType::f64);
  const ModelInput input = token_input(random_tokens(2 * 10, 11, 3), 2, 10);
  const auto run = [&](double factor, bool hooked) {
    Context ctx;
    Tape tape(ctx, false);
    Forward forward(tape, model->parameters());
    std::vector<int> seen;
    if (hooked) {
      forward.on_mixer = [&](int layer, const Mixer& mixer, const Terms& terms, const Mixed& mixed) {
        CHECK(std::string(mixer.family()) == "sm-attention");
        CHECK(terms.input.shape() == Shape{2, 10, 16});
        seen.push_back(layer);
        return scale(mixed.y, factor);
      };
      forward.on_block = [&](int, const Var& output) { CHECK(output.shape() == Shape{2, 10, 16}); };
    }
    std::vector<double> y = model->output(forward, input).value().to_vector<double>();
    if (hooked) CHECK(seen == std::vector<int>{0, 1});
    return y;
  };
  CHECK(run(1, true) == run(1, false));
  CHECK(run(0, true) != run(1, false));
}

TEST_CASE("transformer: initial offsets are the published ones") {
  const auto near = [](const std::vector<double>& a, const std::vector<double>& b) {
    bool good = a.size() == b.size();
    for (size_t i = 0; good && i < a.size(); ++i) good = std::abs(a[i] - b[i]) < 1e-12;
    return good;
  };
  CHECK(initial_offsets(OffsetInit::exp, 1) == std::vector<double>{4});
  CHECK(initial_offsets(OffsetInit::uniform, 1) == std::vector<double>{3});
  CHECK(near(initial_offsets(OffsetInit::exp, 4), {4, 5.666666666666667, 7.333333333333333, 9}));
  CHECK(near(initial_offsets(OffsetInit::uniform, 4), {8, 11.130144886836813, 12.822863140985854, 14}));
}

TEST_CASE("transformer: an input of the other kind, too long or odd for pairs is an error that says so") {
  Context ctx;
  Tape tape(ctx, false);
  auto model = make_model(small_transformer("sm-attention", R"("max_pos_embed": 8)"), 1, DType::f32);
  Forward forward(tape, model->parameters());
  CHECK_THROWS_WITH_AS(model->output(forward, token_input(random_tokens(9, 11, 1), 1, 9)),
                       doctest::Contains("at most max_pos_embed = 8 steps, found 9"), Error);
  CHECK_THROWS_WITH_AS(model->output(forward, ModelInput{}), doctest::Contains("expected tokens"), Error);
  auto pairs =
      make_model(small_transformer("sm-attention", R"("classifier": true, "mixer_dim": 4, "dual": true)"), 1,
                 DType::f32);
  Forward other(tape, pairs->parameters());
  CHECK_THROWS_WITH_AS(pairs->output(other, token_input(random_tokens(9, 11, 1), 3, 3)),
                       doctest::Contains("expected an even batch, found 3"), Error);
}
