// Fork-join over std::thread: no pool to keep alive between calls, nothing to warm up.
#pragma once

#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace photometric {

// Calls body(worker) on up to `threads` threads, the caller's among them, and waits for all. Where
// the system grants fewer, fewer call it: what there is to do is shared through `Tasks`.
template <typename Body>
void run_threads(int threads, const Body& body) {
  std::vector<std::thread> others;
  others.reserve(threads > 1 ? threads - 1 : 0);
  try {
    for (int i = 1; i < threads; ++i) others.emplace_back(body, i);
  } catch (const std::system_error&) {
  }
  body(0);
  for (std::thread& thread : others) thread.join();
}

// Hands out [0, count) one by one.
class Tasks {
 public:
  explicit Tasks(std::int64_t count) : count_(count) {}
  // The next task; false where none is left.
  bool next(std::int64_t& task) {
    task = next_.fetch_add(1, std::memory_order_relaxed);
    return task < count_;
  }

 private:
  const std::int64_t count_;
  std::atomic<std::int64_t> next_{0};
};

}  // namespace photometric
