// Interventions inside the pass: the ops against the simulation, gradients against differences.
#include "nn/intervention.h"

#include <doctest/doctest.h>
#include <omp.h>

#include <cmath>

#include "autograd/gradcheck.h"
#include "nn/model.h"
#include "spectral/realisation.h"
#include "tensor/error.h"
#include "tensor/rng.h"

using namespace eigentrace;

namespace {

struct Case {
  const char* text;
  bool phases = false, ops = true;
};

const Case cases[] = {
    {"layer: transformer\nattention_fn: lin-attention\nnum_layers: 2\nhidden_dim: 8\nstate_dim: "
     "6\nnum_heads: 2\n"
     "mixer: none\nembedding: False\ninput_dim: 3\noutput_dim: 4\nclassifier: False\ndim_conv: 0\n"},
    {"layer: transformer\nattention_fn: norm-attention\nnum_layers: 2\nhidden_dim: 8\nstate_dim: "
     "6\nnum_heads: 2\n"
     "norm_fn: softplus\napprox_fn: elu\noffset: True\nmixer: none\nembedding: False\ninput_dim: "
     "3\noutput_dim: 4\n"
     "classifier: False\ndim_conv: 3\n"},
    {"layer: transformer\nattention_fn: norm-attention\nnum_layers: 2\nhidden_dim: 8\nstate_dim: "
     "6\nnum_heads: 2\n"
     "norm_fn: exp\napprox_fn: elu\nmixer: none\nembedding: False\ninput_dim: 3\noutput_dim: 4\n"
     "classifier: False\ndim_conv: 0\n"},
    {"layer: mamba\nnum_layers: 2\nhidden_dim: 8\nstate_dim: 6\nnum_heads: 2\nconv_dim: 3\ninput_dim: 3\n"
     "token_embedding: False\noutput_dim: 4\npooling: none\n"},
    {"layer: mamba\nnum_layers: 2\nhidden_dim: 8\nstate_dim: 6\nnum_heads: 2\nconv_dim: 3\ninput_dim: 3\n"
     "token_embedding: False\noutput_dim: 4\npooling: none\npseudoLTI: True\n"},
    {"layer: lru\nnum_layers: 2\nhidden_dim: 6\nstate_dim: 5\nactivation: full_glu\nnorm: layer\ninput_dim: "
     "3\n"
     "output_dim: 4\npooling: none\n",
     true},
    {"layer: s5\nnum_layers: 2\nhidden_dim: 6\nstate_dim: 8\nnum_blocks: 2\nbidirectional: True\nactivation: "
     "full_glu\n"
     "norm: layer\ninput_dim: 3\noutput_dim: 4\npooling: none\n",
     true},
    {"layer: transformer\nattention_fn: sm-attention\nnum_layers: 2\nhidden_dim: 8\nstate_dim: 6\nnum_heads: "
     "2\n"
     "mixer: none\nembedding: False\ninput_dim: 3\noutput_dim: 4\nclassifier: False\n",
     false, false},
    {"layer: mamba\nversion: mamba1\nnum_layers: 2\nhidden_dim: 8\nstate_dim: 6\nconv_dim: 3\ninput_dim: 3\n"
     "token_embedding: False\noutput_dim: 4\npooling: none\n",
     false, false},
    {"layer: s4\nnum_layers: 2\nhidden_dim: 6\nstate_dim: 4\nactivation: full_glu\nnorm: layer\ninput_dim: "
     "3\n"
     "output_dim: 4\npooling: none\nseq_len: 21\n",
     true, false}};

constexpr int64_t steps = 21;

/// Many passes of tiny models: threads would only wait for one another.
struct OneThread {
  int before = omp_get_max_threads();
  OneThread() { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before); }
};

ModelInput floats(DType dtype) {
  Rng rng(5, 1);
  std::vector<double> values(size_t(2 * steps * 3));
  for (double& x : values) x = rng.normal();
  ModelInput input;
  input.values = Tensor::from(values, {2, steps, 3}).clone({}, dtype);
  return input;
}

std::shared_ptr<Interventions> interventions(const char* text) {
  return std::make_shared<Interventions>(parse_interventions(text));
}

std::vector<double> output(const Model& model, const char* text, InterventionPath path) {
  Context ctx;
  ctx.poison = true;
  Tape tape(ctx, false);
  Forward forward(tape, model.parameters());
  Intervener intervener(interventions(text ? text : "abs<=1 layers=99"), path);
  if (text) intervener.attach(forward);
  return model.output(forward, floats(model.parameters().dtype())).value().to_vector<double>();
}

double difference(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  double error = 0, norm = 0;
  for (size_t k = 0; k < a.size(); ++k) error += (a[k] - b[k]) * (a[k] - b[k]), norm += b[k] * b[k];
  return std::sqrt(error / norm);
}

}  // namespace

TEST_CASE("intervention in a pass: nothing changed is the model's own output, by ops and by replay") {
  for (const Case& c : cases)
    for (const DType dtype : {DType::f64, DType::f32}) {
      CAPTURE(std::string(c.text));
      const auto model = make_model(read_model_config(c.text), 3, dtype);
      const auto untouched = output(*model, nullptr, InterventionPath::automatic);
      const double tolerance = dtype == DType::f64 ? 1e-9 : 1e-4;
      CHECK(difference(output(*model, "abs<=inf", InterventionPath::replay), untouched) < tolerance);
      if (!c.ops) continue;
      CHECK(difference(output(*model, "abs<=inf", InterventionPath::ops), untouched) < tolerance);
      CHECK(output(*model, "abs<=0.5 layers=2", InterventionPath::ops) ==
            untouched);  // there is no such layer
    }
}

TEST_CASE("intervention in a pass: the ops give what the simulation gives") {
  const OneThread one_thread;
  for (const Case& c : cases) {
    if (!c.ops) continue;
    CAPTURE(std::string(c.text));
    const bool heads = !c.phases;
    for (const DType dtype : {DType::f64, DType::f32}) {
      const auto model = make_model(read_model_config(c.text), 3, dtype);
      const auto untouched = output(*model, nullptr, InterventionPath::automatic);
      for (const char* text : {"abs<=0.7", "abs>=0.95", "abs=0.9", "abs*=0.8", "abs^=2", "lambda=0",
                               "lambda=0.5 layers=1", "abs<=0.9; abs*=0.5 layers=0", "abs=0.4 heads=1",
                               "arg+=40", "arg=0", "arg*=0.5", "lambda=-0.5"}) {
        CAPTURE(std::string(text));
        const std::string change = text;
        if (change.find("heads") != std::string::npos && !heads) continue;
        if ((change.starts_with("arg") || change == "lambda=-0.5") && heads) continue;
        const auto replayed = output(*model, text, InterventionPath::replay);
        CHECK(difference(output(*model, text, InterventionPath::ops), replayed) <
              (dtype == DType::f64 ? 1e-9 : 2e-4));
        if (!change.starts_with("abs>=")) CHECK(difference(replayed, untouched) > 1e-5);
      }
    }
  }
}

TEST_CASE("intervention in a pass: gradients through changed eigenvalues are those of central differences") {
  const OneThread one_thread;
  for (const Case& c : cases) {
    if (!c.ops) continue;
    for (const char* text : {"abs<=0.9", "abs*=0.8; abs^=1.5", "lambda=0.5 layers=0", "arg+=40; abs>=0.2"}) {
      if (std::string(text).starts_with("arg") && !c.phases) continue;
      CAPTURE(std::string(c.text));
      CAPTURE(std::string(text));
      const auto model = make_model(read_model_config(c.text), 3, DType::f64);
      const ModelInput input = floats(DType::f64);
      std::vector<Tensor> values;
      std::vector<std::string> names;
      std::vector<std::vector<double>> analytic;
      Rng rng(7, 2);
      std::vector<double> cotangent;
      Intervener intervener(interventions(text), InterventionPath::ops);
      Context ctx;
      const auto pass = [&](bool backward) {
        Tape tape(ctx, backward);
        Forward forward(tape, model->parameters());
        intervener.attach(forward);
        const Var y = model->output(forward, input);
        const auto out = y.value().to_vector<double>();
        while (cotangent.size() < out.size()) cotangent.push_back(rng.normal());
        double loss = 0;
        for (size_t k = 0; k < out.size(); ++k) loss += cotangent[k] * out[k];
        if (backward) {
          const Var outputs[] = {y};
          const Tensor cotangents[] = {Tensor::from(cotangent, y.shape())};
          tape.backward(outputs, cotangents);
        }
        return loss;
      };
      pass(true);
      for (const Parameter& p : model->parameters().parameters()) {
        values.push_back(p.value), names.push_back(p.name);
        analytic.push_back(p.gradient.to_vector<double>());
      }
      GradcheckOptions options;
      options.max_elements = 3;
      options.step =
          1e-5;  // rounding of the loss, divided by the step, was 3e-6 of S5's small gradients with 1e-6
      const GradcheckReport report =
          compare_gradients([&] { return pass(false); }, values, analytic, names, options);
      CAPTURE(report.worst[0].input);
      CHECK(report.max_error() < 2e-6);
    }
  }
}

TEST_CASE("intervention in a pass: frozen to means and profiles the ops agree with the simulation") {
  for (const Case& c : cases) {
    if (!c.ops || c.phases || std::string(c.text).find("pseudoLTI") != std::string::npos) continue;
    CAPTURE(std::string(c.text));
    const auto model = make_model(read_model_config(c.text), 3, DType::f64);
    for (const char* text : {"freeze=mean", "freeze=profile", "freeze=mean heads=0"}) {
      CAPTURE(std::string(text));
      auto frozen = interventions(text);
      const auto run = [&](InterventionPath path, bool read) {
        Context ctx;
        Tape tape(ctx, false);
        Forward forward(tape, model->parameters());
        Intervener intervener(frozen, path);
        if (read)
          forward.on_mixer = [&](int layer, const Mixer& mixer, const Terms& terms, const Mixed& mixed) {
            const LayerSpectrum spectrum = read_spectrum(mixer.realise(terms, mixed), layer);
            frozen->freeze(
                0, text == std::string("freeze=profile") ? frozen_profile(spectrum) : frozen_mean(spectrum));
            return Var();
          };
        else
          intervener.attach(forward);
        return model->output(forward, floats(DType::f64)).value().to_vector<double>();
      };
      const auto untouched = run(InterventionPath::automatic, true);
      const auto replayed = run(InterventionPath::replay, false);
      CHECK(difference(run(InterventionPath::ops, false), replayed) < 1e-10);
      CHECK(difference(replayed, untouched) > 1e-6);
    }
  }
}

TEST_CASE("intervention in a pass: what cannot be is an error that says so") {
  for (const Case& c : cases) {
    CAPTURE(std::string(c.text));
    const auto model = make_model(read_model_config(c.text), 3, DType::f64);
    for (const InterventionPath path : {InterventionPath::ops, InterventionPath::replay}) {
      if (!c.ops) {
        CHECK_THROWS_WITH_AS(output(*model, "abs<=0.9", InterventionPath::ops),
                             doctest::Contains("no differentiable form"), UsageError);
        continue;
      }
      if (c.phases)
        CHECK_THROWS_AS(output(*model, "abs<=0.9 heads=0", path), UsageError);
      else
        CHECK_THROWS_WITH_AS(output(*model, "arg+=10", path), doctest::Contains("real and positive"),
                             UsageError);
      CHECK_THROWS_AS(output(*model, "abs<=0.9 heads=9", path), UsageError);
      CHECK_THROWS_AS(output(*model, "freeze=mean", path), UsageError);
    }
  }
}
