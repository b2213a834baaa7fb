// What the host side of the CUDA modules of all packages shares.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace native {

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// Makes `device` current for its lifetime. This library has a CUDA runtime of its own, linked in
// statically, whose current device is not torch's.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (device != before_) check(cudaSetDevice(device), "cudaSetDevice");
    current_ = device;
  }
  ~DeviceGuard() {
    if (current_ != before_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;

 private:
  int before_ = 0, current_ = 0;
};

// Tensors cross from Python as addresses: exporting each by DLPack costs microseconds and makes
// torch order streams. The Python side has checked device, dtype, shape and layout.
template <typename T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

inline cudaStream_t stream_of(std::uintptr_t handle) { return pointer<CUstream_st>(handle); }

}  // namespace native
