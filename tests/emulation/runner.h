// Lets Python run the functions of a .cu file of these tests by their names: emulated.library.
#pragma once

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "native/cuda.cuh"

namespace runner {

using Function = void (*)(int* data, int count);

struct Named {
  const char* name;
  Function function;
  bool kernel = true;  // else it runs on the host
};

// What went wrong, or null. The functions work on a copy of `data` of just that size.
template <typename Table>
const char* run(const Table& table, const char* name, unsigned grid, unsigned block, int* data,
                int count) {
  static std::string error;
  std::vector<int> device(data, data + count);
  try {
    for (const Named& entry : table) {
      if (std::strcmp(entry.name, name) != 0) continue;
      if (entry.kernel) {
        native::launch(entry.function, dim3(grid), dim3(block), nullptr, device.data(), count);
      } else {
        entry.function(device.data(), count);
      }
      std::copy(device.begin(), device.end(), data);
      return nullptr;
    }
    error = std::string("there is no function ") + name;
  } catch (const std::exception& caught) {
    error = caught.what();
  }
  return error.c_str();
}

}  // namespace runner

#define RUNNER_EXPORTS(...)                                                                  \
  extern "C" __attribute__((visibility("default"))) const char* run_by_name(                 \
      const char* name, unsigned grid, unsigned block, int* data, int count) {               \
    static const runner::Named table[] = {__VA_ARGS__};                                      \
    return runner::run(table, name, grid, block, data, count);                               \
  }
