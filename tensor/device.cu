#include "tensor/device.h"

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>

#include "tensor/cuda_check.h"
#include "tensor/error.h"

namespace eigentrace {

bool built_with_cuda() {
#ifdef EIGENTRACE_WITH_CUDA
  return true;
#else
  return false;
#endif
}

int cuda_device_count() {
#ifdef EIGENTRACE_WITH_CUDA
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();  // no driver is no error: the program runs on the CPU
    return 0;
  }
  return count;
#else
  return 0;
#endif
}

Device parse_device(const std::string& name) {
  if (name == "cpu") return {};
  const bool indexed = name.rfind("cuda:", 0) == 0;
  const std::string digits = indexed ? name.substr(5) : "0";
  if ((name != "cuda" && !indexed) || digits.empty() || digits.size() > 3 ||
      digits.find_first_not_of("0123456789") != std::string::npos)
    fail_usage("device: '" + name + "' is neither cpu, cuda nor cuda:INDEX");
  if (!built_with_cuda())
    fail_usage("device: '" + name +
               "' asked for, but this program was built without the CUDA Toolkit; use cpu");
  const int index = std::atoi(digits.c_str()), count = cuda_device_count();
  if (index >= count)
    fail_usage("device: '" + name + "' asked for, but " + std::to_string(count) + " GPUs are usable here");
  return {DeviceKind::cuda, index};
}

std::string to_string(Device device) {
  return device.is_cuda() ? "cuda:" + std::to_string(device.index) : "cpu";
}

std::string describe([[maybe_unused]] Device device) {
#ifdef EIGENTRACE_WITH_CUDA
  if (device.is_cuda()) {
    cudaDeviceProp properties;
    ET_CUDA(cudaGetDeviceProperties(&properties, device.index));
    const long tenths = static_cast<long>(static_cast<double>(properties.totalGlobalMem) / (1 << 30) * 10);
    return std::string(properties.name) + ", " + std::to_string(tenths / 10) + "." +
           std::to_string(tenths % 10) + " GiB, sm_" + std::to_string(properties.major) +
           std::to_string(properties.minor);
  }
#endif
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);)
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  return "unknown processor";
}

void* device_allocate(Device device, size_t bytes) {
  if (bytes == 0) bytes = 1;
  void* data = nullptr;
  if (device.is_cuda()) {
#ifdef EIGENTRACE_WITH_CUDA
    ET_CUDA(cudaSetDevice(device.index));
    if (cudaMalloc(&data, bytes) != cudaSuccess) cudaGetLastError(), data = nullptr;
#endif
  } else {
    data = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  }
  if (!data)
    fail("device_allocate: out of memory: " + std::to_string(bytes) + " bytes on " + to_string(device) +
         "; use a smaller batch or model");
  return data;
}

void device_free(Device device, void* data) {
  if (device.is_cuda()) {
#ifdef EIGENTRACE_WITH_CUDA
    cudaFree(data);  // may run while the program unwinds: an error here has no one to tell
#endif
  } else {
    std::free(data);
  }
}

void device_zero(Device device, void* data, size_t bytes) {
  if (device.is_cuda()) {
#ifdef EIGENTRACE_WITH_CUDA
    ET_CUDA(cudaMemset(data, 0, bytes));
#endif
  } else {
    std::memset(data, 0, bytes);
  }
}

void device_copy(Device to, void* destination, Device from, const void* source, size_t bytes) {
  if (!to.is_cuda() && !from.is_cuda()) {
    std::memcpy(destination, source, bytes);
    return;
  }
#ifdef EIGENTRACE_WITH_CUDA
  ET_CUDA(cudaMemcpy(destination, source, bytes, cudaMemcpyDefault));
#endif
}

void synchronise(Device device) {
#ifdef EIGENTRACE_WITH_CUDA
  if (device.is_cuda()) {
    ET_CUDA(cudaSetDevice(device.index));
    ET_CUDA(cudaDeviceSynchronize());
  }
#else
  (void)device;
#endif
}

}  // namespace eigentrace
