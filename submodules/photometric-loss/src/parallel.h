// Fork-join over std::thread: no pool to keep alive between calls, nothing to warm up.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

#include "native/isa.h"

namespace photometric {

// Calls body(worker) on up to `threads` threads, the caller's among them, and waits for all. Where
// the system grants fewer, fewer call it: what there is to do is shared through `Tasks`.
void run_threads(int threads, const std::function<void(int worker)>& body);

// Hands out [0, count) one by one.
class Tasks {
 public:
  NATIVE_INLINE explicit Tasks(std::int64_t count) : count_(count) {}
  // The next task; false where none is left.
  NATIVE_INLINE bool next(std::int64_t& task) {
    task = next_.fetch_add(1, std::memory_order_relaxed);
    return task < count_;
  }

 private:
  const std::int64_t count_;
  std::atomic<std::int64_t> next_{0};
};

}  // namespace photometric
