#include "parallel.h"

#include <system_error>
#include <thread>
#include <vector>

namespace photometric {

void run_threads(int threads, const std::function<void(int worker)>& body) {
  std::vector<std::thread> others;
  others.reserve(threads > 1 ? threads - 1 : 0);
  try {
    for (int i = 1; i < threads; ++i) others.emplace_back(std::cref(body), i);
  } catch (const std::system_error&) {
  }
  body(0);
  for (std::thread& thread : others) thread.join();
}

}  // namespace photometric
