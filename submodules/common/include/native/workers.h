// Fork-join over std::thread: no pool to keep alive between calls, nothing to warm up.
#pragma once

#include <functional>

namespace native {

// Calls body(worker) for worker in [0, workers), each on a thread of its own, and waits for all.
// Where the system grants no more threads, the remaining workers run on the calling thread. The first
// exception of a body is thrown here, when all are done.
void run_workers(int workers, const std::function<void(int worker)>& body);

}  // namespace native
