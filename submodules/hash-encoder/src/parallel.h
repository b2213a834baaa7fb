// Fork-join over std::thread: no pool to keep alive between calls, nothing to warm up.
#pragma once

#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

namespace hashgrid {

// Calls body(worker) for worker in [0, workers), each on a thread of its own, and waits for all.
// Where the system grants no more threads, the remaining workers run on the calling thread.
template <typename Body>
void run_workers(int workers, const Body& body) {
  std::vector<std::thread> threads;
  threads.reserve(workers > 1 ? workers - 1 : 0);
  int started = 1;
  try {
    for (; started < workers; ++started) threads.emplace_back(body, started);
  } catch (const std::system_error&) {
  }
  for (int worker = started; worker < workers; ++worker) body(worker);
  body(0);
  for (std::thread& thread : threads) thread.join();
}

// Calls body(task) for task in [0, tasks); a worker takes the next task when it is done with one.
template <typename Body>
void run_tasks(int workers, int tasks, const Body& body) {
  std::atomic<int> next{0};
  run_workers(workers < tasks ? workers : tasks, [&](int) {
    for (int task = next++; task < tasks; task = next++) body(task);
  });
}

}  // namespace hashgrid
