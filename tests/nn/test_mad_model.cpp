#include <doctest/doctest.h>
#include <omp.h>

#include <cmath>
#include <filesystem>

#include "nn/config/config.h"
#include "nn/optimiser.h"
#include "tensor/error.h"
#include "tensor/worse.h"
#include "tests/nn/model_testing.h"

using namespace eigentrace;
using testing::gpu_here;

namespace {

using Values = std::vector<double>;

constexpr int64_t batch = 2, time_steps = 9, width = 12, classes = 11;

/// D 12, S 4, 11 tokens, 9 steps; `options` are more JSON members.
ModelConfig small_mad(const std::string& mixer, const std::string& options = "") {
  return read_model_config(R"({"layer": "mad", "mixer": ")" + mixer +
                           R"(", "hidden_dim": 12, "state_dim": 4, "vocab_size": 11, "output_dim": 11)" +
                           (options.empty() ? "" : ", ") + options + "}");
}
struct Variant {
  std::string mixer, options;
};
const std::vector<Variant> variants = {
    {"sm-attention", R"("num_heads": 2, "dim_conv": 3)"},
    {"lin-attention", R"("num_heads": 2, "num_layers": 3)"},
    {"norm-attention", R"("norm_fn": "exp", "approx_fn": "elu", "offset": true)"},
    {"mamba2", R"("num_heads": 2, "expansion": 2)"},
    {"mamba1", ""},
    {"lru", ""},
    {"s5", R"("num_blocks": 2)"},
    {"s4", R"("seq_len": 9)"},
    {"mamba2", R"("num_heads": 3, "conv_dim": 0, "auto_encoder": true, "seq_len": 9)"},
    {"sm-attention", R"("auto_encoder": true, "seq_len": 9)"},
};

ModelInput input_of(uint64_t seed) {
  return token_input(random_tokens(batch * time_steps, classes, seed), batch, time_steps);
}

Values values_of(Model& model, const std::string& name) {
  const Parameter* p = model.parameters().find(name);
  REQUIRE_MESSAGE(p != nullptr, name);
  return p->value.to_vector<double>();
}

// The equations, row by row in float64.
Values norm(const Values& x, const Values& weight) {
  const size_t d = weight.size();
  Values y(x.size());
  for (size_t r = 0; r < x.size(); r += d) {
    double squares = 0;
    for (size_t i = 0; i < d; ++i) squares += x[r + i] * x[r + i];
    for (size_t i = 0; i < d; ++i)
      y[r + i] = x[r + i] / std::sqrt(squares / static_cast<double>(d) + 1e-5) * weight[i];
  }
  return y;
}
Values times(const Values& x, const Values& weight, size_t in, const Values& bias = {}) {
  const size_t out = weight.size() / in, rows = x.size() / in;
  Values y(rows * out);
  for (size_t r = 0; r < rows; ++r)
    for (size_t o = 0; o < out; ++o) {
      double sum = bias.empty() ? 0 : bias[o];
      for (size_t i = 0; i < in; ++i) sum += x[r * in + i] * weight[o * in + i];
      y[r * out + o] = sum;
    }
  return y;
}
double silu(double x) { return x / (1 + std::exp(-x)); }
double gelu(double x) { return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))); }
Values plus(Values a, const Values& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  return a;
}
double distance(const Values& a, const Values& b) {
  REQUIRE(a.size() == b.size());
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) worst = worse(worst, std::abs(a[i] - b[i]));
  return worst;
}

/// What the hooks of one pass saw, and its output.
struct Observed {
  std::vector<Values> mixer_in, mixer_out, block;
  Values output;
  Shape shape;
};
Observed observe(const Model& model, const ModelInput& input) {
  Context ctx;
  ctx.poison = true;
  Tape tape(ctx, false);
  Forward forward(tape, model.parameters());
  Observed seen;
  forward.on_mixer_output = [&](int, const Var& in, const Var& out) {
    seen.mixer_in.push_back(in.value().to_vector<double>());
    seen.mixer_out.push_back(out.value().to_vector<double>());
  };
  forward.on_block = [&](int, const Var& out) { seen.block.push_back(out.value().to_vector<double>()); };
  const Var output = model.output(forward, input);
  seen.output = output.value().to_vector<double>(), seen.shape = output.shape();
  return seen;
}

double deviation(const Values& x) {
  double sum = 0;
  for (double e : x) sum += e * e;
  return std::sqrt(sum / static_cast<double>(x.size()));
}
bool zero(const Values& x) { return deviation(x) == 0; }

void check_all_gradients(Device device, int64_t elements_per_parameter) {
  for (const Variant& v : taken_on(device, variants, 9)) {
    INFO(v.mixer << " " << v.options);
    auto model = make_model(small_mad(v.mixer, v.options), 6, DType::f64, device);
    perturb(*model, 0.1);
    const std::vector<int32_t> tokens = random_tokens(batch * time_steps, classes, 5);
    check_gradients(*model, token_input(tokens, batch, time_steps, device),
                    label_all(batch * time_steps, classes, 7, device), elements_per_parameter);
  }
}

}  // namespace

TEST_CASE("mad model: layers, norm and head are the equations, around what the mixer computed") {
  auto model = make_model(small_mad("mamba2", R"("num_heads": 2)"), 1, DType::f64);
  perturb(*model, 0.3);
  const ModelInput input = input_of(3);
  const Observed seen = observe(*model, input);
  CHECK(seen.shape == Shape{batch, time_steps, classes});
  REQUIRE(seen.block.size() == 2);
  const Values table = values_of(*model, "embedding.weight");
  Values x;
  for (int32_t id : input.tokens.ids.to_vector<int32_t>())
    x.insert(x.end(), table.begin() + id * width, table.begin() + (id + 1) * width);
  for (size_t b = 0; b < 2; ++b) {
    const std::string mixer = "layers." + std::to_string(2 * b), mlp = "layers." + std::to_string(2 * b + 1);
    CHECK(distance(seen.mixer_in[b], norm(x, values_of(*model, mixer + ".norm.weight"))) < 1e-12);
    x = plus(x, seen.mixer_out[b]);
    const Values n = norm(x, values_of(*model, mlp + ".norm.weight"));
    const Values w2 = times(n, values_of(*model, mlp + ".mlp.w2.weight"), width);
    Values inner = times(n, values_of(*model, mlp + ".mlp.w1.weight"), width);
    CHECK(inner.size() == static_cast<size_t>(batch * time_steps * 32));  // ⌊8·12/3⌋ = 32
    for (size_t i = 0; i < inner.size(); ++i) inner[i] = silu(inner[i]) * w2[i];
    x = plus(x, times(inner, values_of(*model, mlp + ".mlp.w3.weight"), 32));
    CHECK(distance(seen.block[b], x) < 1e-11);
  }
  const Values logits =
      times(norm(x, values_of(*model, "head.norm.weight")), values_of(*model, "head.linear.weight"), width,
            values_of(*model, "head.linear.bias"));
  CHECK(distance(seen.output, logits) < 1e-11);
}

TEST_CASE("mad model: the auto-encoder decodes every position from the last layer's last position") {
  auto model = make_model(small_mad("sm-attention", R"("auto_encoder": true, "seq_len": 9)"), 1, DType::f64);
  perturb(*model, 0.3);
  const Observed seen = observe(*model, input_of(4));
  CHECK(seen.shape == Shape{batch, time_steps, classes});
  Values x;
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t t = 0; t < time_steps; ++t)
      for (int64_t i = 0; i < width; ++i) {
        const int64_t half = width / 2;
        const auto j = static_cast<double>(i % half);
        const double angle = static_cast<double>(t) * std::pow(10000.0, -j / static_cast<double>(half - 1));
        const double e = seen.block.back()[static_cast<size_t>(((b + 1) * time_steps - 1) * width + i)];
        x.push_back(e + (i < width / 2 ? std::sin(angle) : std::cos(angle)));
      }
  for (const std::string name : {"decoder.0", "decoder.1"}) {
    x = times(norm(x, values_of(*model, name + ".norm.weight")), values_of(*model, name + ".linear.weight"),
              width, values_of(*model, name + ".linear.bias"));
    for (double& e : x) e = gelu(e);
  }
  x = times(norm(x, values_of(*model, "head.norm.weight")), values_of(*model, "head.linear.weight"), width,
            values_of(*model, "head.linear.bias"));
  CHECK(distance(seen.output, x) < 1e-11);
  Context ctx;
  Tape tape(ctx, false);
  Forward forward(tape, model->parameters());
  CHECK_THROWS_WITH_AS(model->output(forward, token_input(random_tokens(8, classes, 1), 1, 8)),
                       doctest::Contains("expected seq_len = 9 steps, found 8"), Error);
}

TEST_CASE("mad model: initial values are the suite's, those of the auto-encoder all N(0, 0.02²)") {
  const auto full = [](const std::string& options) {
    return make_model(read_model_config(R"({"layer": "mad", "state_dim": 128, "vocab_size": 64,
                                            "output_dim": 64, )" +
                                        options + "}"),
                      2, DType::f64);
  };
  const auto near = [](double found, double expected) { return std::abs(found / expected - 1) < 0.03; };
  const double standard = 1 / std::sqrt(3 * 128.0);  // of U(±1/√128)
  const auto attention = full(R"("mixer": "sm-attention", "num_heads": 16, "dim_conv": 4)");
  CHECK(attention->parameters().find("layers.1.mlp.w1.weight")->value.shape() == Shape{352, 128});
  CHECK(attention->mixers().size() == 2);
  CHECK(near(deviation(values_of(*attention, "embedding.weight")), 0.02));
  for (const char* name : {"layers.0.mixer.Wqkv.weight", "layers.1.mlp.w2.weight", "head.linear.weight"})
    CHECK(near(deviation(values_of(*attention, name)), standard));
  for (const char* name : {"layers.0.mixer.Wqkv.bias", "layers.2.mixer.out_proj.bias", "head.linear.bias"})
    CHECK(zero(values_of(*attention, name)));
  CHECK(!zero(values_of(*attention, "layers.0.mixer.conv1d.bias")));
  for (const char* name : {"layers.3.norm.weight", "head.norm.weight"})
    CHECK(values_of(*attention, name) == Values(128, 1.0));

  const std::string mamba1 = R"("mixer": "mamba1", "expansion": 2)";
  const auto plain = full(mamba1), encoder = full(mamba1 + R"(, "auto_encoder": true, "seq_len": 32)");
  const std::string steps = "layers.0.mixer.dt_proj.bias";
  CHECK(!zero(values_of(*plain, steps)));
  CHECK(zero(values_of(*encoder, steps)));
  CHECK(values_of(*plain, "layers.0.mixer.A_log") == values_of(*encoder, "layers.0.mixer.A_log"));
  int linear = 0;
  for (const Parameter& p : encoder->parameters().parameters())
    if (p.value.rank() == 2 && p.name.ends_with(".weight")) {
      INFO(p.name);
      CHECK(near(deviation(p.value.to_vector<double>()), 0.02));
      ++linear;
    }
  CHECK(linear == 1 + 2 * (4 + 3) + 3);  // table, mixers and MLPs, decoder and head
}

TEST_CASE("mad model: gradients of whole models agree with central differences") {
  check_all_gradients({}, 8);
}

TEST_CASE("cuda mad model: gradients of whole models agree with central differences") {
  if (gpu_here()) check_all_gradients(parse_device("cuda"), cuda_is_emulated() ? 1 : 8);
}

TEST_CASE("mad model: training steps give the same bits for one and two threads, and lower the loss") {
  for (const Variant& v : variants) {
    INFO(v.mixer << " " << v.options);
    const ModelConfig config = small_mad(v.mixer, v.options);
    const auto train = [&](int threads, double& first, double& last) {
      const int before = omp_get_max_threads();
      omp_set_num_threads(threads);
      auto model = make_model(config, 5, DType::f32);
      Optimiser optimiser(model->parameters(),
                          make_groups(model->parameters(), config, TrainConfig{}, Dialect::ours), {0, false});
      Context ctx;
      for (int step = 0; step < 6; ++step) {
        Tape tape(ctx);
        Forward forward(tape, model->parameters());
        const Loss loss = model->loss(forward, input_of(1), label_all(batch * time_steps, classes, 2));
        (step == 0 ? first : last) = loss.value.value().item();
        tape.backward(loss.value);
        optimiser.step(ctx, {1e-2});
      }
      omp_set_num_threads(before);
      Values all;
      for (const Parameter& p : model->parameters().parameters())
        for (double e : p.value.to_vector<double>()) all.push_back(e);
      return all;
    };
    double first = 0, last = 0;
    const Values one = train(1, first, last);
    CHECK(one == train(2, first, last));
    CHECK(last < first - 0.1);
  }
}

TEST_CASE("mad model: configurations print and read back, and impossible ones are errors") {
  for (const Variant& v : variants) {
    const ModelConfig config = small_mad(v.mixer, v.options);
    CHECK(layer_name(config) == "mad");
    CHECK(to_yaml(read_model_config(to_yaml(config))) == to_yaml(config));
  }
  CHECK_THROWS_WITH_AS(small_mad("sm-attention", R"("num_heads": 5)"), doctest::Contains("does not divide"),
                       UsageError);
  CHECK_THROWS_WITH_AS(small_mad("hyena"), doctest::Contains("norm-attention, mamba2"), UsageError);
  CHECK_THROWS_WITH_AS(make_model(small_mad("s4"), 1, DType::f32), doctest::Contains("seq_len"), UsageError);
  ModelConfig model = small_mad("s4");
  TaskShape sequence;
  sequence.time = 5, sequence.vocabulary = sequence.classes = 11;
  CHECK_THROWS_WITH_AS(fit_model(model, sequence), doctest::Contains("an output per position"), UsageError);
  sequence.per_position = true;
  fit_model(model, sequence);
  CHECK(std::get<MadModelConfig>(model).seq_len == 5);
}

TEST_CASE("mad model: the suite's runs in tasks/experiments fit their tasks") {
  int count = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::string(EIGENTRACE_TEST_DATA) + "/../tasks/experiments")) {
    if (!entry.path().filename().string().starts_with("mad-")) continue;
    INFO(entry.path().string());
    RunConfig run = read_config_file(entry.path().string()).config;
    CHECK(run.dialect == Dialect::ours);
    CHECK_NOTHROW(fit_model(run.model, make_task(run.dataset)->shape(Split::train)));
    CHECK(make_model(run.model, 1, DType::f32)->per_position());
    ++count;
  }
  CHECK(count == 4);
}
