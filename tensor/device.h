#pragma once
// Devices and their memory. The CUDA bodies exist where the CUDA Toolkit compiled the program.
#include <cstddef>
#include <string>

namespace eigentrace {

enum class DeviceKind : unsigned char { cpu, cuda };

struct Device {
  DeviceKind kind = DeviceKind::cpu;
  int index = 0;
  bool is_cuda() const { return kind == DeviceKind::cuda; }
  bool operator==(const Device&) const = default;
};

/// "cpu", "cuda", "cuda:1" → Device. UsageError: another word, a GPU that is not there, a program built
/// without CUDA.
Device parse_device(const std::string& name);
std::string to_string(Device device);
/// "NVIDIA H200, 139.8 GiB, sm_90" or the processor's name.
std::string describe(Device device);
/// Number of usable GPUs; 0 without a driver, or in a build without CUDA.
int cuda_device_count();
/// True iff the "GPU" is the tests' emulation on the CPU (tests/simt).
constexpr bool cuda_is_emulated() {
#ifdef EIGENTRACE_EMULATE
  return true;
#else
  return false;
#endif
}
/// True iff the program was built with the CUDA Toolkit.
bool built_with_cuda();

/// Uninitialised bytes, 256-byte aligned. Error: out of memory, with the size asked for.
void* device_allocate(Device device, size_t bytes);
void device_free(Device device, void* data);
void device_zero(Device device, void* data, size_t bytes);
/// Copies between any two devices and waits until the copy is done.
void device_copy(Device to, void* destination, Device from, const void* source, size_t bytes);
/// Waits until all work queued on the device is done.
void synchronise(Device device);

}  // namespace eigentrace
