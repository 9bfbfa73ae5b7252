#include "nn/mixers/s4.h"

#include <cmath>
#include <map>
#include <mutex>

#include "autograd/ops_scan.h"
#include "spectral/hippo.h"
#include "spectral/realisation.h"
#include "tensor/error.h"

namespace eigentrace {
namespace {

/// The same in every layer and channel: decomposed once for each number of states.
const HippoDplr& hippo(int64_t states) {
  static std::mutex mutex;
  static std::map<int64_t, HippoDplr> known;
  const std::lock_guard lock(mutex);
  const auto found = known.find(states);
  return found != known.end() ? found->second : known.emplace(states, hippo_dplr(states)).first->second;
}

/// Column vector [N] of `width` numbers a state, repeated for every channel: [N,D,width].
std::vector<double> in_every_channel(const std::vector<double>& column, size_t width, int64_t channels) {
  std::vector<double> all;
  for (size_t n = 0; n < column.size(); n += width)
    for (int64_t d = 0; d < channels; ++d)
      for (size_t i = 0; i < width; ++i) all.push_back(column[n + i]);
  return all;
}

class S4 final : public Mixer {
 public:
  S4(ParameterList& list, const std::string& name, const SsmConfig& c) : length_(c.seq_len) {
    const int64_t n = c.state_dim, d = c.hidden_dim;
    const HippoDplr& h = hippo(n);
    std::vector<double> re, im, p, b;
    for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
      re.push_back(h.lambda[i].real()), im.push_back(h.lambda[i].imag());
      p.push_back(h.p[i].real()), p.push_back(h.p[i].imag());
      b.push_back(h.b[i].real()), b.push_back(h.b[i].imag());
    }
    lambda_re_ = list.add(name + ".Lambda_re", {n, d}, init_values(in_every_channel(re, 1, d)));
    lambda_im_ = list.add(name + ".Lambda_im", {n, d}, init_values(in_every_channel(im, 1, d)));
    p_ = list.add(name + ".P", {n, d, 2}, init_values(in_every_channel(p, 2, d)), true);
    b_ = list.add(name + ".B", {n, d, 2}, init_values(in_every_channel(b, 2, d)), true);
    c_ = list.add(name + ".C", {n, d, 2},
                  c.C_init == CInit::lecun_normal ? init_lecun_normal(n) : init_normal(std::sqrt(0.5)));
    skip_ = list.add(name + ".D", {1, d}, init_constant(1));
    log_step_ = list.add(name + ".log_step", {1, d}, init_uniform(std::log(c.dt_min), std::log(c.dt_max)));
  }
  const char* family() const override { return "s4"; }

  std::unique_ptr<Terms> terms(Forward& forward, const Var& u, bool) const override {
    if (length_ != 0 && u.dim(1) != length_)
      fail("s4: input: expected seq_len = " + std::to_string(length_) +
           " steps (the kernel depends on it), found " + std::to_string(u.dim(1)) + "; pad to seq_len");
    auto t = std::make_unique<S4Terms>();
    t->input = u;
    t->kernel = s4_kernel(forward(lambda_re_), forward(lambda_im_), forward(p_), forward(b_), forward(c_),
                          forward(log_step_), u.dim(1));
    return t;
  }
  Mixed mix(Forward& forward, const Terms& terms) const override {
    return {fft_convolution(terms.input, static_cast<const S4Terms&>(terms).kernel, forward(skip_)), {}};
  }
  Var finish(Forward&, const Terms&, const Var& y) const override { return y; }
  Realisation realise(const Terms& terms, const Mixed&) const override {
    return {Family::s4, lambda({lambda_re_->value, lambda_im_->value, p_->value, log_step_->value}).map,
            Channels{ComplexTensor::interleaved(b_->value), ComplexTensor::interleaved(c_->value),
                     terms.input.dim(1)},
            terms.input.value(), skip_->value};
  }
  std::vector<LambdaSource> lambda_sources(const Terms&, const Mixed&) const override {
    return {{lambda_re_->value}, {lambda_im_->value}, {p_->value}, {log_step_->value}};
  }
  Lambda lambda(const std::vector<Tensor>& sources) const override {
    const Tensor& like = sources.at(0);
    std::vector<double> clipped = like.to_vector<double>();
    for (double& x : clipped) x = std::min(x, -1e-4);
    const Tensor re = Tensor::from(clipped, like.shape()).clone(like.device(), like.dtype());
    return {
        Family::s4,
        Dplr{{re, sources[1]}, ComplexTensor::interleaved(sources[2]), sources[3].reshape({like.dim(1)})}};
  }

 private:
  int64_t length_;
  Parameter *lambda_re_, *lambda_im_, *p_, *b_, *c_, *skip_, *log_step_;
};

}  // namespace

std::unique_ptr<Mixer> make_s4(ParameterList& list, const std::string& name, const SsmConfig& config) {
  return std::make_unique<S4>(list, name, config);
}

}  // namespace eigentrace
