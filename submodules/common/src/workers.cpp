#include "native/workers.h"

#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace native {

void run_workers(int workers, const std::function<void(int worker)>& body) {
  std::mutex mutex;
  std::exception_ptr error;
  // What leaves a thread ends the process, and so does a thread that nobody waits for.
  const auto run = [&](int worker) {
    try {
      body(worker);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!error) error = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  threads.reserve(workers > 1 ? workers - 1 : 0);
  int started = 1;
  try {
    for (; started < workers; ++started) threads.emplace_back(run, started);
  } catch (const std::exception&) {  // no thread, or no memory for one
  }
  for (int worker = started; worker < workers; ++worker) run(worker);
  run(0);
  for (std::thread& thread : threads) thread.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace native
