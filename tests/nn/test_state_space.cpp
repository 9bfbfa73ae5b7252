// The families of mamba, S4, S5 and LRU: causality, replay, gradients, threads, initial values.
#include <doctest/doctest.h>
#include <omp.h>

#include <cmath>

#include "autograd/gradcheck.h"
#include "nn/mixers/lru.h"
#include "nn/mixers/mamba1.h"
#include "nn/mixers/mamba2.h"
#include "nn/mixers/s4.h"
#include "nn/mixers/s5.h"
#include "nn/optimiser.h"
#include "spectral/replay.h"
#include "tensor/error.h"
#include "tests/nn/model_testing.h"

using namespace eigentrace;
using namespace eigentrace::testing;

namespace {

/// A small model of a family: D 16, S 8, 2 layers, tokens below 11.
ModelConfig small(const std::string& layer, const std::string& options = "") {
  const bool mamba = layer == "mamba";
  return read_model_config(R"({"layer": ")" + layer +
                           R"(", "num_layers": 2, "hidden_dim": 16, "state_dim": 8, )" +
                           (mamba ? R"("vocab_size": 11, )" : R"("input_dim": 11, )") +
                           R"("output_dim": 11)" + (options.empty() ? "" : ", ") + options + "}");
}

struct Variant {
  std::string layer, options;
};
const std::vector<Variant> variants = {
    {"mamba", R"("num_heads": 2, "conv_dim": 4, "glu": true, "pooling": "none")"},
    {"mamba", R"("num_heads": 4, "expansion": 2, "conv_dim": 0, "prenorm": false, "pooling": "none")"},
    {"mamba", R"("num_heads": 2, "pseudoLTI": true, "conv_dim": 3, "glu": true, "pooling": "none")"},
    {"mamba", R"("version": "mamba1", "expansion": 2, "conv_dim": 4, "glu": true, "pooling": "none")"},
    {"lru", R"("activation": "full_glu", "norm": "batch", "prenorm": false, "pooling": "none")"},
    {"lru", R"("activation": "gelu", "norm": "layer", "r_min": 0.9, "r_max": 0.99, "pooling": "none")"},
    {"s5", R"("activation": "half_glu1", "norm": "batch", "num_blocks": 2, "pooling": "none")"},
    {"s5", R"("activation": "half_glu2", "norm": "layer", "num_blocks": 1, "discretization": "bilinear",
              "conj_sym": false, "clip_eigs": true, "C_init": "complex_normal", "pooling": "none")"},
    {"s4", R"("activation": "full_glu", "norm": "batch", "pooling": "none")"},
};
const std::vector<Variant> two_ended = {
    {"s5", R"("num_blocks": 2, "bidirectional": true, "norm": "layer", "pooling": "none")"},
    {"s5", R"("num_blocks": 2, "bidirectional": true, "C_init": "complex_normal", "pooling": "none")"},
};

std::vector<double> outputs(const Model& model, const ModelInput& input,
                            Precision precision = Precision::fp32) {
  Context ctx = poisoned(model.parameters().device(), precision);
  Tape tape(ctx, false);
  Forward forward(tape, model.parameters());
  return model.output(forward, input).value().to_vector<double>();
}

std::vector<int32_t> changed_after(std::vector<int32_t> ids, int64_t batch, int64_t time, int64_t t) {
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t i = b * time + t + 1; i < (b + 1) * time; ++i) {
      int32_t& id = ids[static_cast<size_t>(i)];
      id = (id + 1 + static_cast<int32_t>(i % 9)) % 11;
    }
  return ids;
}

/// Largest difference at steps ≤ t, and at the step after.
std::pair<double, double> differences(const std::vector<double>& a, const std::vector<double>& b,
                                      int64_t batch, int64_t time, int64_t t) {
  const size_t row = a.size() / static_cast<size_t>(batch * time);
  double until = 0, next = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const int64_t step = static_cast<int64_t>(i / row) % time;
    if (step <= t) until = std::max(until, std::abs(a[i] - b[i]));
    if (step == t + 1) next = std::max(next, std::abs(a[i] - b[i]));
  }
  return {until, next};
}

std::unique_ptr<Mixer> mixer_of(ParameterList& list, const ModelConfig& config) {
  if (const auto* m = std::get_if<MambaConfig>(&config))
    return m->version == MambaVersion::mamba1 ? make_mamba1(list, "m", *m) : make_mamba2(list, "m", *m);
  const auto& c = std::get<SsmConfig>(config);
  if (c.layer == SsmKind::lru) return make_lru(list, "m", c);
  return c.layer == SsmKind::s5 ? make_s5(list, "m", c) : make_s4(list, "m", c);
}

/// n training steps with dropout and the batch's statistics; parameters and buffers afterwards.
std::vector<double> train(const ModelConfig& config, int steps, int threads) {
  const int before = omp_get_max_threads();
  omp_set_num_threads(threads);
  auto model = make_model(config, 5, DType::f32);
  std::vector<ParameterGroup> groups = make_groups(model->parameters(), config, TrainConfig{}, Dialect::ours);
  const std::vector<double> rates(groups.size(), 1e-2);
  Optimiser optimiser(model->parameters(), std::move(groups), {1.0, false});
  Context ctx;
  for (int step = 0; step < steps; ++step) {
    ctx.set_step(1, static_cast<uint64_t>(step));
    Tape tape(ctx);
    Forward forward(tape, model->parameters());
    forward.dropout = forward.batch_statistics = true;
    const ModelInput input = token_input(random_tokens(3 * 29, 11, static_cast<uint64_t>(step)), 3, 29);
    tape.backward(model->loss(forward, input, label_all(3 * 29, 11, 2)).value);
    optimiser.step(ctx, rates);
  }
  omp_set_num_threads(before);
  std::vector<double> all;
  for (const Parameter& p : model->parameters().parameters())
    for (double v : p.value.to_vector<double>()) all.push_back(v);
  for (const Buffer& b : model->parameters().buffers())
    for (double v : b.value.to_vector<double>()) all.push_back(v);
  return all;
}

/// Inputs after t change no output at or before t by one bit (S4: to its FFT's rounding).
void check_causality(const Variant& v, Device device, DType dtype, Precision precision = Precision::fp32) {
  constexpr int64_t batch = 2, time = 29;
  INFO(v.layer << " " << v.options);
  auto model = make_model(small(v.layer, v.options), 1, dtype, device);
  perturb(*model, 0.1);
  const std::vector<int32_t> ids = random_tokens(batch * time, 11, 1);
  const auto run = [&](const std::vector<int32_t>& tokens) {
    return outputs(*model, token_input(tokens, batch, time, device), precision);
  };
  const std::vector<double> before = run(ids);
  // Rounded operands of the products that follow turn the FFT's last digit into one of their own.
  const double rounding = v.layer != "s4"                ? 0
                          : dtype == DType::f64          ? 1e-13
                          : precision == Precision::tf32 ? 5e-3
                          : precision == Precision::bf16 ? 2e-2
                                                         : 2e-5;
  const bool slow = device.is_cuda() && cuda_is_emulated();
  for (int64_t t : slow ? std::vector<int64_t>{16} : std::vector<int64_t>{0, 1, 15, 16, 27}) {
    const auto [until, next] = differences(before, run(changed_after(ids, batch, time, t)), batch, time, t);
    CHECK(until <= rounding);
    CHECK(next > 1e-3);
  }
}

void check_realisation(Device device, const std::vector<int64_t>& times) {
  std::vector<Variant> all = variants;
  all.insert(all.end(), two_ended.begin(), two_ended.end());
  for (const Variant& v : all)
    for (int64_t time : times)
      for (DType dtype : {DType::f64, DType::f32}) {
        INFO(v.layer << " " << v.options << " T " << time);
        auto model = make_model(small(v.layer, v.options), 4, dtype, device);
        perturb(*model, 0.05);
        check_replay(*model, token_input(random_tokens(2 * time, 11, 3), 2, time, device),
                     dtype == DType::f32 ? 1e-4
                     : v.layer == "s4"   ? 1e-8
                                         : 1e-10);
      }
}

void check_all_gradients(Device device, int64_t elements_per_parameter) {
  std::vector<Variant> all = variants;
  all.push_back({"mamba", R"("num_heads": 2, "pooling": "max", "prenorm": false)"});
  all.push_back({"mamba", R"("version": "mamba1", "pooling": "last")"});
  all.push_back({"lru", R"("pooling": "mean", "activation": "half_glu2", "norm": "batch")"});
  all.push_back({"s4", R"("pooling": "last", "activation": "half_glu1", "norm": "layer", "seq_len": 9)"});
  for (const Variant& v : taken_on(device, all, 4)) {
    INFO(v.layer << " " << v.options);
    auto model = make_model(small(v.layer, v.options + R"(, "dropout": 0.2)"), 6, DType::f64, device);
    perturb(*model, 0.05);
    constexpr int64_t batch = 3, time = 9;
    ModelInput input = token_input(random_tokens(batch * time, 11, 5), batch, time, device);
    if (v.options.find("mean") != std::string::npos)
      input.lengths = Tensor::from(std::vector<int32_t>{9, 4, 1}, {batch}, device);
    const int64_t rows = model->per_position() ? batch * time : batch;
    check_gradients(*model, input, label_all(rows, 11, 7, device), elements_per_parameter);
  }
}

}  // namespace

TEST_CASE(
    "state space: inputs after t change no output at or before t by one bit (S4: to its FFT's rounding)") {
  for (const Variant& v : variants)
    for (DType dtype : {DType::f32, DType::f64}) check_causality(v, {}, dtype);
}

TEST_CASE(
    "cuda state space: inputs after t change no output at or before t by one bit (S4: to its rounding)") {
  if (!gpu_here()) return;
  const Device gpu = parse_device("cuda");
  for (const Variant& v : variants) {
    check_causality(v, gpu, DType::f64);
    for (const Precision precision : {Precision::fp32, Precision::tf32, Precision::tf32x3, Precision::bf16})
      check_causality(v, gpu, DType::f32, precision);
  }
}

TEST_CASE("state space: bidirectional S5 does see its future") {
  for (const Variant& v : two_ended) {
    auto model = make_model(small(v.layer, v.options), 1, DType::f64);
    const std::vector<int32_t> ids = random_tokens(2 * 29, 11, 1);
    const std::vector<double> before = outputs(*model, token_input(ids, 2, 29));
    const std::vector<double> after = outputs(*model, token_input(changed_after(ids, 2, 29, 15), 2, 29));
    CHECK(differences(before, after, 2, 29, 15).first > 1e-3);
  }
}

TEST_CASE("state space: simulating the realisation step by step gives what the layer computed") {
  check_realisation({}, {1, 2, 63, 100});
}

TEST_CASE("cuda state space: simulating the realisation step by step gives what the layer computed") {
  if (gpu_here()) check_realisation(parse_device("cuda"), {1, 100});
}

TEST_CASE("state space: gradients of each mixer alone agree with central differences") {
  std::vector<Variant> all = variants;
  all.insert(all.end(), two_ended.begin(), two_ended.end());
  for (const Variant& v : all)
    for (int64_t time : {1, 2, 63, 100}) {
      INFO(v.layer << " " << v.options << " T " << time);
      ParameterList list(3, DType::f64, {});
      const auto mixer = mixer_of(list, small(v.layer, v.options));
      Rng rng(7);
      std::vector<double> x(static_cast<size_t>(2 * time * 16)), weights(x.size());
      for (double& e : x) e = rng.normal();
      for (double& e : weights) e = rng.normal();
      const Tensor input = Tensor::from(x, {2, time, 16}), cotangent = Tensor::from(weights, {2, time, 16});
      Context ctx;
      ctx.poison = true;
      std::vector<double> dx;
      const auto run = [&](bool record) {
        Tape tape(ctx, record);
        Forward forward(tape, list);
        const Var u = record ? tape.leaf(input) : tape.constant(input), y = (*mixer)(forward, 0, u);
        double sum = 0;
        const std::vector<double> values = y.value().to_vector<double>();
        for (size_t i = 0; i < values.size(); ++i) sum += values[i] * weights[i];
        if (record) {
          tape.backward(std::span(&y, 1), std::span(&cotangent, 1));
          dx = tape.gradient_of(u).to_vector<double>();
        }
        return sum;
      };
      run(true);
      std::vector<Tensor> values = {input};
      std::vector<std::string> names = {"input"};
      std::vector<std::vector<double>> analytic = {dx};
      for (const Parameter& p : list.parameters()) {
        values.push_back(p.value), names.push_back(p.name);
        analytic.push_back(p.gradient.to_vector<double>());
      }
      GradcheckOptions options;
      options.max_elements = time > 2 ? 2 : 4;
      options.step = v.layer == "mamba" ? 1e-5 : 3e-6;  // λ^T of a turning λ is far from linear
      const GradcheckReport report =
          compare_gradients([&] { return run(false); }, values, analytic, names, options);
      CHECK_MESSAGE(report.max_error() < 1e-6, report.worst[0].input << " " << report.worst[0].error);
      CHECK(ctx.slab().in_use() == 0);
    }
}

TEST_CASE("state space: gradients of whole configured models agree with central differences") {
  check_all_gradients({}, 2);
}

TEST_CASE("cuda state space: gradients of whole configured models agree with central differences") {
  if (gpu_here()) check_all_gradients(parse_device("cuda"), cuda_is_emulated() ? 1 : 4);
}

TEST_CASE("state space: training steps give the same bits for one and two threads, and again") {
  for (const Variant& v : variants) {
    INFO(v.layer << " " << v.options);
    const ModelConfig config = small(v.layer, v.options + R"(, "dropout": 0.1)");
    const std::vector<double> one = train(config, 2, 1);
    CHECK(one == train(config, 2, 2));
    CHECK(one == train(config, 2, 1));
    CHECK(one != train(config, 1, 1));
  }
}

TEST_CASE("state space: a dry run asks for the memory the step then takes, and touches nothing") {
  for (const Variant& v : variants) {
    INFO(v.layer << " " << v.options);
    auto model = make_model(small(v.layer, v.options), 1, DType::f32);
    const ModelInput input = token_input(random_tokens(4 * 25, 11, 3), 4, 25);
    const Labels labels = label_all(100, 11, 3);
    const auto peak = [&](Context ctx) {
      Tape tape(ctx);
      Forward forward(tape, model->parameters());
      forward.batch_statistics = true;
      tape.backward(model->loss(forward, input, labels).value);
      return ctx.slab().peak();
    };
    CHECK(peak(Context::dry_run({})) == peak(Context()));
  }
}

TEST_CASE("state space: initial values have the published laws") {
  struct Law {
    const char *layer, *options, *parameter;
    double mean, deviation;
  };
  // Means and deviations of the reference's initialisers at the same fan-ins; values that are not random: 0.
  const Law laws[] = {
      {"mamba", R"("num_heads": 64)", "dt_bias", -4.60333, 1.33725},
      {"mamba", R"("num_heads": 64)", "A_log", 1.95517, 0.676536},
      {"mamba", R"("num_heads": 64)", "mamba.D", 1, 0},
      {"mamba", R"("num_heads": 64, "pseudoLTI": true)", "mamba.A", -5, 1.7320508},
      {"mamba", R"("num_heads": 64, "pseudoLTI": true)", "dt_bias", -4.60333, 1.33725},
      {"mamba", R"("version": "mamba1")", "dt_proj.bias", -4.60333, 1.33725},
      {"mamba", R"("version": "mamba1")", "dt_proj.weight", 0, 0.2886751},  // R = 4
      {"lru", "", "nu_log", -1.27036, 1.28255},                             // of a uniform |λ|² on (0, 1)
      {"lru", "", "gamma_log", -0.5, 0.5},
      {"lru", R"("r_min": 0.9, "r_max": 0.99)", "nu_log", -3.0316, 0.60455},
      {"lru", R"("r_min": 0.9, "r_max": 0.99)", "gamma_log", -1.197, 0.28934},
      {"lru", "", "theta_log", 0.83737, 1},
      {"lru", "", "B_re", 0, 0.0883883},
      {"lru", "", "C_im", 0, 0.125},
      {"lru", "", "seq.D", 0, 1},
      {"s4", "", "seq.C", 0, 0.7071068},
      {"s4", R"("C_init": "lecun_normal")", "seq.C", 0, 0.125},
      {"s4", "", "log_step", -4.60517, 1.329402},
      {"s4", "", "seq.D", 1, 0},
      {"s5", "", "seq.B", 0, 0.0883883},
      {"s5", "", "seq.C", 0, 0.015625},
      {"s5", R"("C_init": "trunc_standard_normal")", "seq.C", 0, 0.125},
      {"s5", R"("C_init": "complex_normal")", "seq.C", 0, 0.7071068},
      {"s5", "", "log_step", -4.60517, 1.329402},
      {"s5", "", "seq.D", 0, 1},
  };
  for (const Law& law : laws) {
    INFO(std::string(law.layer) << " " << std::string(law.options) << " " << std::string(law.parameter));
    const bool mamba = std::string(law.layer) == "mamba";
    const ModelConfig config =
        read_model_config(R"({"layer": ")" + std::string(law.layer) +
                          R"(", "num_layers": 24, "hidden_dim": 64, "state_dim": 64, )" +
                          (mamba ? R"("vocab_size": 5, )" : R"("input_dim": 5, )") + R"("output_dim": 5)" +
                          (*law.options ? ", " : "") + law.options + "}");
    auto model = make_model(config, 11, DType::f64);
    std::vector<double> all;
    for (const Parameter& p : model->parameters().parameters())
      if (p.name.ends_with(law.parameter))
        for (double x : p.value.to_vector<double>()) all.push_back(x);
    const double n = static_cast<double>(all.size());
    REQUIRE(n >= 768);
    double mean = 0, square = 0;
    for (double x : all) mean += x / n;
    for (double x : all) square += (x - mean) * (x - mean) / n;
    CHECK(std::abs(mean - law.mean) <= 5 * law.deviation / std::sqrt(n) + 1e-3 * law.deviation + 1e-12);
    CHECK(std::abs(std::sqrt(square) - law.deviation) <= 6 * law.deviation / std::sqrt(n) + 1e-12);
  }
}

TEST_CASE("state space: what an input cannot be is an error that says so") {
  Context ctx;
  Tape tape(ctx, false);
  auto fixed = make_model(small("s4", R"("seq_len": 8, "pooling": "none")"), 1, DType::f32);
  Forward forward(tape, fixed->parameters());
  CHECK_THROWS_WITH_AS(fixed->output(forward, token_input(random_tokens(9, 11, 1), 1, 9)),
                       doctest::Contains("expected seq_len = 8 steps"), Error);
  auto last = make_model(small("lru", R"("pooling": "last")"), 1, DType::f32);
  Forward other(tape, last->parameters());
  ModelInput padded = token_input(random_tokens(9, 11, 1), 1, 9);
  padded.lengths = Tensor::from(std::vector<int32_t>{4}, {1});
  CHECK_THROWS_WITH_AS(last->output(other, padded), doctest::Contains("use mean"), Error);
  auto mamba = make_model(small("mamba", R"("num_heads": 2)"), 1, DType::f32);
  Forward third(tape, mamba->parameters());
  CHECK_THROWS_WITH_AS(mamba->output(third, ModelInput{}), doctest::Contains("expected tokens"), Error);
}
