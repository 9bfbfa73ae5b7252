#include <doctest/doctest.h>

#include <cmath>

#include "tensor/error.h"
#include "tensor/kernels.h"
#include "tensor/rng.h"
#include "tensor/worse.h"

using namespace eigentrace;

TEST_CASE("cuda: a pointwise kernel gives the CPU's values on the GPU, dense and strided") {
  if (cuda_device_count() == 0) {
    MESSAGE("no GPU here: this case needs one");
    CHECK_THROWS_AS(parse_device("cuda:0"), UsageError);
    return;
  }
  const Device gpu = parse_device("cuda");
  Context host, device(gpu, size_t{64} << 20);
  device.poison = true;
  Rng rng(7);
  std::vector<double> values(63 * 100);
  for (double& v : values) v = 3 * rng.normal();
  for (const DType dtype : {DType::f64, DType::f32})
    for (const bool strided : {false, true}) {
      Tensor x = Tensor::from(values, {63, 100}).clone({}, dtype), x_gpu = x.clone(gpu, dtype);
      if (strided) x = x.slice(1, 3, 50), x_gpu = x_gpu.slice(1, 3, 50);
      Tensor y = host.empty(x.shape(), dtype), y_gpu = device.empty(x.shape(), dtype);
      Tensor dx = host.empty(x.shape(), dtype), dx_gpu = device.empty(x.shape(), dtype);
      for (int f = 0; f <= static_cast<int>(kernels::Unary::elu_plus_one); ++f) {
        const auto function = static_cast<kernels::Unary>(f);
        kernels::unary(host, function, x, y);
        kernels::unary(device, function, x_gpu, y_gpu);
        kernels::unary_backward(host, function, x, y, dx);
        kernels::unary_backward(device, function, x_gpu, y_gpu, dx_gpu);
        synchronise(gpu);
        const double bound = dtype == DType::f64 ? 1e-14 : 2e-6;
        const auto check = [&](const Tensor& a, const Tensor& b) {
          const std::vector<double> u = a.to_vector<double>(), v = b.to_vector<double>();
          double worst = 0;
          for (size_t i = 0; i < u.size(); ++i)
            worst = worse(worst, std::abs(u[i] - v[i]) / (1 + std::abs(u[i])));
          INFO(kernels::name_of(function), ", ", name_of(dtype), ", strided ", strided);
          CHECK(worst < bound);
        };
        check(y, y_gpu);
        check(dx, dx_gpu);
      }
    }
}

TEST_CASE("cuda: a device that is not there is a usage error that says so") {
  CHECK_THROWS_AS(parse_device("cuda:99"), UsageError);
  CHECK_THROWS_AS(parse_device("gpu"), UsageError);
  CHECK(parse_device("cpu") == Device{});
}
