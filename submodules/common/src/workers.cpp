#include "native/workers.h"

#include <system_error>
#include <thread>
#include <vector>

namespace native {

void run_workers(int workers, const std::function<void(int worker)>& body) {
  std::vector<std::thread> threads;
  threads.reserve(workers > 1 ? workers - 1 : 0);
  int started = 1;
  try {
    for (; started < workers; ++started) threads.emplace_back(std::cref(body), started);
  } catch (const std::system_error&) {
  }
  for (int worker = started; worker < workers; ++worker) body(worker);
  body(0);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace native
