#include "nn/parity.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <complex>
#include <filesystem>
#include <map>
#include <numeric>
#include <set>

#include "autograd/op_cases.h"
#include "nn/config/node.h"
#include "nn/model.h"
#include "nn/optimiser.h"
#include "nn/published.h"
#include "spectral/reading.h"
#include "tensor/error.h"
#include "tensor/io/safetensors.h"

namespace eigentrace {

const std::vector<ToleranceRow>& tolerance_table() {
  constexpr const char* switches = "rounding may switch a unit of the classifier's ReLU";
  static const std::vector<ToleranceRow> table = {
      {"", "published", 1e-9, 2e-4, 256, 512, "exponentials of differences that amplify"},
      {"sm-attention", "gradients", 1e-9, 2e-4, 256, 32, switches},
      {"lin-attention", "gradients", 1e-9, 2e-4, 256, 32, switches},
      {"norm-attention", "gradients", 1e-9, 2e-4, 256, 32, switches},
      {"", "gradients", 1e-9, 2e-4, 96, 32, "twice as many products, and sums that cancel"},
      {"", "after3", 1e-9, 2e-4, 96, 96, "Adam's steps divide by the gradient's size"},
      {"", "after3_conj", 1e-9, 2e-4, 96, 96, "Adam's steps divide by the gradient's size"},
      {"", "", 1e-9, 2e-4, 32, 32, "general: 13 products in a row, two operands each"},
  };
  return table;
}

double ToleranceRow::bound(DType dtype, Precision precision, bool bf16_activations) const {
  if (dtype == DType::f64) return f64;
  return f32 + (bf16_activations ? with_results : roundings) * operand_rounding(precision);
}

namespace {

using Values = std::vector<double>;

/// A reference file in memory.
class Fixture {
 public:
  explicit Fixture(const std::string& path) : reader_(path) {
    if (text("format") != "parity/1")
      fail(fmt::format("{}: metadata 'format': expected parity/1, found '{}'", path, text("format")));
    for (const char* key : {"complex", "zero_grad"}) names_[key] = list(text(key));
  }
  std::string text(const std::string& key) const {
    const auto found = reader_.metadata().find(key);
    return found == reader_.metadata().end() ? "" : found->second;
  }
  bool has(const std::string& name) const { return reader_.contains(name); }
  bool is(const char* key, const std::string& name) const { return names_.at(key).count(name) > 0; }
  ConfigNode json(const std::string& key) const { return parse_yaml(text(key), "metadata " + key); }
  Values values(const std::string& name) const {
    const HostArray array = reader_.read(name);
    Values out;
    if (array.dtype == DType::i64)
      for (int64_t x : array.as<int64_t>()) out.push_back(static_cast<double>(x));
    else
      for (double x : array.as<double>()) out.push_back(x);
    return out;
  }
  Shape shape(const std::string& name) const { return Shape(reader_.entries().at(name).shape); }
  /// Names below a prefix, without it.
  std::vector<std::string> below(const std::string& prefix) const {
    std::vector<std::string> out;
    for (const auto& [name, entry] : reader_.entries())
      if (name.starts_with(prefix)) out.push_back(name.substr(prefix.size()));
    return out;
  }
  static std::set<std::string> list(const std::string& json) {
    std::set<std::string> out;
    if (!json.empty())
      for (const ConfigNode& item : parse_yaml(json, "metadata").items) out.insert(item.text);
    return out;
  }

 private:
  SafetensorsReader reader_;
  std::map<std::string, std::set<std::string>> names_;
};

double largest(const Values& x) {
  double m = 0;
  for (double e : x) m = std::max(m, std::abs(e));
  return m;
}

/// Among bf16 values many are equal or nearly so: one in 16 of the features may be taken from another time
/// than without rounding, and its gradient then goes elsewhere, a relative difference of √(2/16) in the norm.
/// (2 of 32 were in a fixture, and 0.20 the difference.)
constexpr double switched_features = 0.354;

/// ‖found − expected‖ / ‖expected‖.
double relative_norm(const Values& found, const Values& expected) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    difference += (found[i] - expected[i]) * (found[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(difference / (norm > 0 ? norm : 1));
}

class Comparison {
 public:
  Comparison(Context& ctx, const std::string& path, DType dtype)
      : ctx_(ctx),
        dtype_(dtype),
        file_(std::filesystem::path(path).stem().string()),
        fixture_(path),
        config_(read_model_config(fixture_.text("model"))),
        model_(make_model(config_, 1, dtype, ctx.device())) {
    family_ = layer_name(config_);
    if (!model_->mixers().empty() && family_ != "s4" && family_ != "s5" && family_ != "lru")
      family_ = model_->mixers()[0]->family();
    make_input();
  }

  std::vector<ParityRow> run() {
    if (!load()) return rows_;
    output();
    pass_with_gradients();
    published_eigenvalues();
    if (fixture_.text("optimizer") != "null") {
      steps("after3", true);
      if (!fixture_.below("after3_conj/").empty()) steps("after3_conj", false);
    }
    return rows_;
  }

 private:
  ParityRow& row(const std::string& quantity) {
    for (ParityRow& r : rows_)
      if (r.quantity == quantity) return r;
    ParityRow r;
    r.file = file_, r.quantity = quantity;
    for (const ToleranceRow& t : tolerance_table()) {
      const std::string family = t.family, of = t.quantity;
      if ((!family.empty() && family != family_) || (!of.empty() && of != quantity)) continue;
      r.row = t, r.tolerance = t.bound(dtype_, precision(), bf16_activations());
      if (bf16_activations() && max_pooled() && quantity == "gradients") r.tolerance += switched_features;
      break;
    }
    return rows_.emplace_back(r);
  }
  /// Of all products or of those inside softmax attention, whichever round more.
  Precision precision() const {
    const Precision attention = ctx_.attention_precision.value_or(ctx_.precision);
    return operand_rounding(attention) > operand_rounding(ctx_.precision) ? attention : ctx_.precision;
  }
  bool bf16_activations() const { return ctx_.activation_type(dtype_) == DType::bf16; }
  bool max_pooled() const {
    const auto* config = std::get_if<TransformerConfig>(&config_);
    return config && config->classifier && config->pooling == PoolKind::max;
  }
  void put(const std::string& quantity, const std::string& tensor, double error,
           const std::string& note = "") {
    ParityRow& r = row(quantity);
    ++r.tensors;
    if (std::isnan(error)) error = INFINITY;
    if (r.tensors == 1 || error > r.error) r.error = error, r.tensor = tensor, r.note = note;
  }
  void compare(const std::string& quantity, const std::string& tensor, const Values& found,
               const Values& expected, double scale = 0) {
    if (found.size() != expected.size())
      return put(quantity, tensor, INFINITY,
                 fmt::format("{} elements expected, found {}", expected.size(), found.size()));
    double worst = 0;
    for (size_t i = 0; i < found.size(); ++i) {
      const double error = std::abs(found[i] - expected[i]);
      worst = error <= worst ? worst : error;  // a NaN stays
      if (std::isnan(error)) worst = INFINITY;
    }
    if (scale == 0) scale = largest(expected);
    put(quantity, tensor, worst / (scale > 0 ? scale : 1));
  }

  bool load() {
    std::set<std::string> missing;
    for (const std::string& name : fixture_.below("param/")) missing.insert(name);
    for (Parameter& p : model_->parameters().parameters()) {
      const std::string name = "param/" + p.name;
      if (!fixture_.has(name)) {
        put("parameters", p.name, INFINITY, "the file has no such parameter");
      } else if (!(fixture_.shape(name) == p.value.shape())) {
        put("parameters", p.name, INFINITY,
            fmt::format("{} in the file, {} in the model", to_string(fixture_.shape(name)),
                        to_string(p.value.shape())));
      } else if (fixture_.is("complex", p.name) != p.is_complex) {
        put("parameters", p.name, INFINITY, "complex in one, real in the other");
      } else {
        p.value.assign(fixture_.values(name));
        put("parameters", p.name, 0);
      }
      missing.erase(p.name);
    }
    for (const std::string& name : missing)
      put("parameters", name, INFINITY, "the model has no such parameter");
    for (Buffer& b : model_->parameters().buffers())
      if (fixture_.has("buffer/" + b.name)) b.value.assign(fixture_.values("buffer/" + b.name));
    return row("parameters").pass();
  }

  void make_input() {
    const Shape shape = fixture_.shape("input");
    const Values values = fixture_.values("input");
    if (fixture_.text("input_encoding") == "float") {
      input_.values = Tensor::from(values, shape, ctx_.device()).clone(ctx_.device(), dtype_);
    } else {
      std::vector<int32_t> ids(values.begin(), values.end()), order(ids.size());
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
        return ids[static_cast<size_t>(a)] < ids[static_cast<size_t>(b)];
      });
      input_.tokens = {Tensor::from(ids, shape, ctx_.device()),
                       Tensor::from(order, {static_cast<int64_t>(order.size())}, ctx_.device())};
    }
    if (fixture_.text("padded") == "true") {
      const Values lengths = fixture_.values("lengths");
      input_.lengths = Tensor::from(std::vector<int32_t>(lengths.begin(), lengths.end()),
                                    {static_cast<int64_t>(lengths.size())}, ctx_.device());
    }
    std::vector<int32_t> rows, classes;
    const Values targets = fixture_.values("target");
    for (size_t i = 0; i < targets.size(); ++i)
      if (targets[i] >= 0)
        rows.push_back(static_cast<int32_t>(i)), classes.push_back(static_cast<int32_t>(targets[i]));
    const auto count = static_cast<int64_t>(rows.size());
    // The study's trainer of s4, s5 and lru divides by all positions.
    const bool all = std::holds_alternative<SsmConfig>(config_);
    const double divisor = static_cast<double>(all ? targets.size() : rows.size());
    labels_ = {Tensor::from(rows, {count}, ctx_.device()), Tensor::from(classes, {count}, ctx_.device()),
               Tensor::from(std::vector<float>(rows.size(), 1.0f), {count}, ctx_.device()),
               Tensor::from(std::vector<double>{divisor}, {1}, ctx_.device())};
  }

  Forward forward_on(Tape& tape) const {
    Forward forward(tape, model_->parameters());
    forward.batch_statistics = fixture_.text("mode") == "train";
    return forward;
  }

  void output() {
    std::vector<Values> buffers;
    for (const Buffer& b : model_->parameters().buffers()) buffers.push_back(b.value.to_vector<double>());
    {
      Tape tape(ctx_, false);
      Forward forward = forward_on(tape);
      compare("output", "output", model_->output(forward, input_).value().to_vector<double>(),
              fixture_.values("output"));
    }
    for (size_t i = 0; i < buffers.size(); ++i) model_->parameters().buffers()[i].value.assign(buffers[i]);
  }

  /// tensor: "eig/0" as /re and /im, or real alone.
  void eigenvalues(const std::string& quantity, const std::string& name, const LayerSpectrum& spectrum) {
    Values re, im;
    for (size_t i = 0; i < spectrum.log_abs.size(); ++i) {
      const double radius = std::exp(spectrum.log_abs[i]), angle = spectrum.arg.empty() ? 0 : spectrum.arg[i];
      re.push_back(radius * std::cos(angle)), im.push_back(radius * std::sin(angle));
    }
    const bool real = !fixture_.has(name + "/im");
    const Values want_re = fixture_.values(real ? name : name + "/re");
    const Values want_im = real ? Values(want_re.size(), 0.0) : fixture_.values(name + "/im");
    if (spectrum.kind == SpectrumKind::fixed_per_channel && want_re.size() == re.size())
      match_rows(spectrum.shape[1], want_re, want_im, re, im);
    double scale = 0;
    for (size_t i = 0; i < want_re.size(); ++i) scale = std::max(scale, std::hypot(want_re[i], want_im[i]));
    compare(quantity, name + "/re", re, want_re, scale);
    compare(quantity, name + "/im", im, want_im, scale);
  }
  /// Orders each row's eigenvalues as the reference: near ties of the angle may be sorted either way.
  static void match_rows(int64_t width, const Values& want_re, const Values& want_im, Values& re,
                         Values& im) {
    for (size_t begin = 0; begin + static_cast<size_t>(width) <= re.size();
         begin += static_cast<size_t>(width))
      for (size_t i = begin; i < begin + static_cast<size_t>(width); ++i) {
        size_t best = i;
        for (size_t j = i; j < begin + static_cast<size_t>(width); ++j)
          if (std::hypot(re[j] - want_re[i], im[j] - want_im[i]) <
              std::hypot(re[best] - want_re[i], im[best] - want_im[i]))
            best = j;
        std::swap(re[i], re[best]), std::swap(im[i], im[best]);
      }
  }

  /// What the published analysis makes of the same layers.
  void published_eigenvalues() {
    std::set<std::string> due;
    for (const std::string& name : fixture_.below("eig_paper/")) due.insert(name.substr(0, name.find('/')));
    if (due.empty()) return;
    Tape tape(ctx_, false);
    Forward forward(tape, model_->parameters());
    watch_published(forward, *model_, [&](int layer, const LayerSpectrum& spectrum) {
      if (due.erase(std::to_string(layer)) > 0)
        eigenvalues("published", fmt::format("eig_paper/{}", layer), spectrum);
    });
    model_->features(forward, input_);
    for (const std::string& layer : due) put("published", "eig_paper/" + layer, INFINITY, "was not read");
  }

  void pass_with_gradients() {
    std::vector<Values> buffers;
    for (const Buffer& b : model_->parameters().buffers()) buffers.push_back(b.value.to_vector<double>());
    {
      Tape tape(ctx_);
      Forward forward = forward_on(tape);
      forward.on_mixer = [&](int layer, const Mixer& mixer, const Terms& terms, const Mixed& mixed) {
        eigenvalues("eigenvalues", fmt::format("eig/{}", layer),
                    read_spectrum(mixer.realise(terms, mixed), layer));
        return Var();
      };
      forward.on_mixer_output = [&](int layer, const Var& in, const Var& out) {
        const std::string l = std::to_string(layer);
        compare("mixer_in", "mixer_in/" + l, in.value().to_vector<double>(),
                fixture_.values("mixer_in/" + l));
        compare("mixer_out", "mixer_out/" + l, out.value().to_vector<double>(),
                fixture_.values("mixer_out/" + l));
      };
      const Loss loss = model_->loss(forward, input_, labels_);
      compare("loss", "loss", {loss.value.value().item()}, fixture_.values("loss"));
      tape.backward(loss.value);
    }
    for (const Buffer& b : model_->parameters().buffers())
      if (const std::string name = "after1/buffer/" + b.name; fixture_.has(name))
        compare("statistics", name, b.value.to_vector<double>(), fixture_.values(name));
    double overall = 0;
    for (const std::string& name : fixture_.below("grad/"))
      overall = std::max(overall, largest(fixture_.values("grad/" + name)));
    Values all_found, all_expected;
    for (const Parameter& p : model_->parameters().parameters()) {
      const std::string name = "grad/" + p.name;
      if (!fixture_.has(name)) continue;
      const Values found = p.gradient.to_vector<double>(), expected = fixture_.values(name);
      if (!bf16_activations() || found.size() != expected.size()) {
        compare("gradients", name, found, expected, fixture_.is("zero_grad", p.name) ? overall : 0);
      } else {
        all_found.insert(all_found.end(), found.begin(), found.end());
        all_expected.insert(all_expected.end(), expected.begin(), expected.end());
      }
    }
    if (!all_found.empty()) put("gradients", "grad", relative_norm(all_found, all_expected));
    for (size_t i = 0; i < buffers.size(); ++i) model_->parameters().buffers()[i].value.assign(buffers[i]);
  }

  /// The optimiser's groups as our own code makes them from the settings of the file.
  std::vector<ParameterGroup> groups(const ConfigNode& settings, Values& rates) {
    const auto number = [](const ConfigNode& node, const char* key) {
      return std::stod(node.find(key)->text);
    };
    TrainConfig train;
    train.schedule = ScheduleKind::published;
    train.ssm = settings.find("kind")->text == "multi_transform";
    const ConfigNode& regular = train.ssm ? *settings.find("regular") : settings;
    train.lr = number(regular, "lr"), train.wd = number(regular, "weight_decay");
    train.betas = {std::stod(regular.find("betas")->items[0].text),
                   std::stod(regular.find("betas")->items[1].text)};
    if (train.ssm) train.ssm_lr = number(*settings.find("ssm"), "lr");
    std::vector<ParameterGroup> all = make_groups(model_->parameters(), config_, train, Dialect::study);
    std::set<std::string> expected, found;
    if (const ConfigNode* names = settings.find("ssm_params"))
      for (const ConfigNode& name : names->items) expected.insert(name.text);
    for (const ParameterGroup& group : all) {
      rates.push_back(group.kind == GroupKind::ssm ? *train.ssm_lr : train.lr);
      if (group.kind != GroupKind::ssm) continue;
      for (int i : group.members)
        found.insert(model_->parameters().parameters()[static_cast<size_t>(i)].name);
    }
    if (expected != found) put("after3", "ssm_params", INFINITY, "other parameters are in the ssm group");
    return all;
  }

  void steps(const std::string& quantity, bool published_complex) {
    load();
    const ConfigNode settings = fixture_.json("optimizer");
    Values rates;
    std::vector<ParameterGroup> all = groups(settings, rates);
    const ConfigNode* clip = settings.find("clip_grad_norm");
    Optimiser optimiser(
        model_->parameters(), std::move(all),
        {clip && clip->kind == ConfigNode::Kind::scalar ? std::stod(clip->text) : 0.0, published_complex});
    const ConfigNode* per_step = settings.find("lr_per_step");
    const ConfigNode* losses = settings.find(quantity == "after3" ? "loss_per_step" : "loss_per_step_conj");
    for (size_t step = 0; step < 3; ++step) {
      Tape tape(ctx_);
      Forward forward = forward_on(tape);
      const Loss loss = model_->loss(forward, input_, labels_);
      if (losses)
        compare("loss_per_step", fmt::format("{} step {}", quantity, step), {loss.value.value().item()},
                {std::stod(losses->items[step].text)});
      tape.backward(loss.value);
      if (per_step) rates.assign(1, std::stod(per_step->items[step].text));
      optimiser.step(ctx_, rates);
    }
    for (const Parameter& p : model_->parameters().parameters()) {
      const std::string name = quantity + "/param/" + p.name;
      if (!fixture_.has(name)) continue;
      Values found = p.value.to_vector<double>();
      const Values expected = fixture_.values(name), gradient = fixture_.values("grad/" + p.name);
      // Adam turns rounding noise of a vanishing gradient into steps as long as any.
      const double vanishing = std::max(1e-5, 80 * operand_rounding(precision()) * largest(gradient));
      for (size_t i = 0; i < found.size(); ++i)
        if (std::abs(gradient[i]) <= vanishing) found[i] = expected[i];
      compare(quantity, name, found, expected);
    }
    for (const Buffer& b : model_->parameters().buffers())
      if (const std::string name = quantity + "/buffer/" + b.name; fixture_.has(name))
        compare("statistics", name, b.value.to_vector<double>(), fixture_.values(name));
  }

  Context& ctx_;
  DType dtype_;
  std::string file_, family_;
  Fixture fixture_;
  ModelConfig config_;
  std::unique_ptr<Model> model_;
  ModelInput input_;
  Labels labels_;
  std::vector<ParityRow> rows_;
};

}  // namespace

std::vector<ParityRow> run_parity(Context& ctx, const std::string& path, DType dtype) {
  return Comparison(ctx, path, dtype).run();
}

std::string to_string(const ParityRow& row) {
  return fmt::format("{:<60} {:<13} {:>9.2e} of {:.0e}  {}  {}{}", row.file, row.quantity, row.error,
                     row.tolerance, row.pass() ? "pass" : "FAIL", row.tensor,
                     row.note.empty() ? "" : " (" + row.note + ")");
}

}  // namespace eigentrace
