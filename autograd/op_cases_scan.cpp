#include "autograd/op_cases.h"
#include "autograd/ops_scan.h"

namespace eigentrace {
namespace {

using Values = std::vector<Var>;

OpInstance diagonal_scan_instance(bool reverse, uint64_t seed, Device device) {
  Rng rng(seed);
  const int64_t b = odd_size(rng, 7), t = odd_size(rng, 7), n = odd_size(rng, 63);
  // x is a part of a wider tensor, as after the one GEMM that makes [re, im]
  return {[reverse, n](Tape&, const Values& in) {
            return Values{diagonal_scan(split(in[0], {3, 2 * n})[1], in[1], in[2], reverse)};
          },
          {normal_tensor(rng, {b, t, 3 + 2 * n}, device), uniform_tensor(rng, {n}, -1, -1e-3, device),
           uniform_tensor(rng, {n}, -3.1, 3.1, device)},
          {"x", "log_abs", "arg"}};
}

OpInstance s5_discretise_instance(bool bilinear, uint64_t seed, Device device) {
  Rng rng(seed);
  const int64_t n = odd_size(rng, 63);
  return {[bilinear](Tape&, const Values& in) {
            const Discretised d = s5_discretise(in[0], in[1], in[2], bilinear, true);
            return Values{d.log_abs, d.arg, d.factor.re, d.factor.im};
          },
          {uniform_tensor(rng, {n}, -1, -0.1, device), uniform_tensor(rng, {n}, -20, 20, device),
           uniform_tensor(rng, {n, 1}, -6, -2, device)},
          {"lambda_re", "lambda_im", "log_step"}};
}

OpInstance selective_scan_instance(uint64_t seed, Device device) {
  Rng rng(seed);
  const int64_t b = odd_size(rng, 2), t = odd_size(rng, 63), e = odd_size(rng, 63), s = odd_size(rng, 7);
  return {[s](Tape&, const Values& in) {
            const Values parts = split(in[3], {2, s, s});  // B and C as cut from one projection
            return Values{selective_scan(in[0], in[1], in[2], parts[1], parts[2], in[4])};
          },
          {normal_tensor(rng, {b, t, e}, device), uniform_tensor(rng, {b, t, e}, 0.01, 1, device),
           uniform_tensor(rng, {e, s}, -1, 1, device), normal_tensor(rng, {b, t, 2 + 2 * s}, device),
           normal_tensor(rng, {e}, device)},
          {"x", "delta", "a_log", "b, c", "d"}};
}

OpInstance selective_step_instance(uint64_t seed, Device device) {
  Rng rng(seed);
  const int64_t b = odd_size(rng, 7), t = odd_size(rng), h = odd_size(rng, 7);
  // x is the end of a wider projection; one of the two results alone as well
  return {[h](Tape&, const Values& in) {
            const Var x = split(in[0], {3, h})[1];
            const SelectiveStep both = selective_step(x, in[1], in[2]);
            return Values{both.delta, both.log_a, selective_step(x, in[2], in[1]).log_a};
          },
          {normal_tensor(rng, {b, t, 3 + h}, device), normal_tensor(rng, {h}, device),
           normal_tensor(rng, {h}, device)},
          {"x", "bias", "a_log"}};
}

OpInstance s4_kernel_instance(uint64_t seed, Device device) {
  Rng rng(seed);
  const int64_t n = odd_size(rng, 7), d = odd_size(rng, 7), length = odd_size(rng);
  return {[length](Tape&, const Values& in) {
            return Values{s4_kernel(in[0], in[1], in[2], in[3], in[4], in[5], length)};
          },
          {uniform_tensor(rng, {n, d}, -1, -0.1, device), normal_tensor(rng, {n, d}, device),
           normal_tensor(rng, {n, d, 2}, device), normal_tensor(rng, {n, d, 2}, device),
           normal_tensor(rng, {n, d, 2}, device), uniform_tensor(rng, {1, d}, -4, -2, device)},
          {"lambda_re", "lambda_im", "p", "b", "c", "log_step"}};
}

OpInstance fft_convolution_instance(uint64_t seed, Device device) {
  Rng rng(seed);
  const int64_t b = odd_size(rng, 7), t = odd_size(rng), d = odd_size(rng, 63);
  return {[](Tape&, const Values& in) { return Values{fft_convolution(in[0], in[1], in[2])}; },
          {normal_tensor(rng, {b, t, d}, device), uniform_tensor(rng, {d, t}, -0.2, 0.2, device),
           normal_tensor(rng, {d}, device)},
          {"u", "k", "d"}};
}

OpInstance channel_skip_instance(uint64_t seed, Device device) {
  Rng rng(seed);
  const int64_t b = odd_size(rng, 7), t = odd_size(rng), d = odd_size(rng, 63);
  // u is a part of a wider tensor
  return {
      [d](Tape&, const Values& in) {
        return Values{channel_skip(in[0], split(in[1], {3, d})[1], in[2]), channel_skip(in[0], in[0], in[2])};
      },
      {normal_tensor(rng, {b, t, d}, device), normal_tensor(rng, {b, t, 3 + d}, device),
       normal_tensor(rng, {d}, device)},
      {"y", "u", "d"}};
}

/// With a mask shared over time, with one for each element, and without, z used as well, not used, not made.
OpInstance channel_skip_activation_instance(uint64_t seed, Device device) {
  Rng rng(seed);
  const int64_t b = odd_size(rng, 7), t = odd_size(rng), d = odd_size(rng, 63);
  return {[d](Tape&, const Values& in) {
            const Var u = split(in[1], {3, d})[1];
            const Skipped shared = channel_skip_activation(in[0], u, in[2], Unary::gelu_tanh, 0.3,
                                                           DropoutMask::shared_over_time),
                          each = channel_skip_activation(in[0], in[0], in[2], Unary::silu, 0.2,
                                                         DropoutMask::element),
                          plain =
                              channel_skip_activation(in[0], u, in[2], Unary::gelu, 0, DropoutMask::element),
                          without = channel_skip_activation(in[0], u, in[2], Unary::gelu_tanh, 0.3,
                                                            DropoutMask::shared_over_time, false);
            return Values{shared.active, shared.z, each.active, plain.z, without.active};
          },
          {normal_tensor(rng, {b, t, d}, device), normal_tensor(rng, {b, t, 3 + d}, device),
           normal_tensor(rng, {d}, device)},
          {"y", "u", "d"}};
}

OpInstance lru_maps_instance(uint64_t seed, Device device) {
  Rng rng(seed);
  const int64_t n = odd_size(rng, 7), d = odd_size(rng, 63);
  return {[](Tape&, const Values& in) {
            const LruMaps m = lru_maps(in[0], in[1], in[2], {in[3], in[4]}, {in[5], in[6]});
            return Values{m.log_abs, m.arg, m.input, m.output};
          },
          {normal_tensor(rng, {n}, device), normal_tensor(rng, {n}, device), normal_tensor(rng, {n}, device),
           normal_tensor(rng, {n, d}, device), normal_tensor(rng, {n, d}, device),
           normal_tensor(rng, {d, n}, device), normal_tensor(rng, {d, n}, device)},
          {"nu_log", "theta_log", "gamma_log", "B_re", "B_im", "C_re", "C_im"}};
}

OpInstance complex_parts_instance(uint64_t seed, Device device) {
  Rng rng(seed);
  const Shape shape = {odd_size(rng, 7), odd_size(rng, 7), 2};
  return {[](Tape&, const Values& in) {
            const Complex z = complex_parts(in[0]), square = z * conj(z) + z * z;
            return Values{packed(square)};
          },
          {normal_tensor(rng, shape, device)},
          {"z"}};
}

}  // namespace

std::vector<OpCase> op_cases_scan() {
  const auto scan = [](bool reverse) {
    return [reverse](uint64_t seed, Device device) { return diagonal_scan_instance(reverse, seed, device); };
  };
  const auto discretise = [](bool bilinear) {
    return
        [bilinear](uint64_t seed, Device device) { return s5_discretise_instance(bilinear, seed, device); };
  };
  return {{"complex_parts: z conj(z) + z²", Op::complex_parts, complex_parts_instance},
          {"diagonal_scan: forwards", Op::diagonal_scan, scan(false)},
          {"diagonal_scan: backwards", Op::diagonal_scan, scan(true)},
          {"s5_discretise: zero-order hold", Op::s5_discretise, discretise(false)},
          {"s5_discretise: bilinear", Op::s5_discretise, discretise(true)},
          {"selective_scan", Op::selective_scan, selective_scan_instance},
          {"s4_kernel", Op::s4_kernel, s4_kernel_instance},
          {"fft_convolution", Op::fft_convolution, fft_convolution_instance},
          {"selective_step", Op::selective_step, selective_step_instance},
          {"channel_skip", Op::channel_skip, channel_skip_instance},
          {"channel_skip_activation", Op::channel_skip_activation, channel_skip_activation_instance},
          {"lru_maps", Op::lru_maps, lru_maps_instance}};
}

}  // namespace eigentrace
