// Functions with the mistakes that the sanitizers must find in CPU code, and beside each of them the
// function without its mistake, in which they must find nothing. All return what they computed from
// `count` numbers from 0 on.
#include <atomic>
#include <climits>
#include <functional>
#include <numeric>
#include <thread>
#include <vector>

#include "native/workers.h"
#include "thread_pool.h"

namespace {

constexpr int kThreads = 3;

std::vector<int> numbers(int count) {
  std::vector<int> values(count);
  std::iota(values.begin(), values.end(), 0);
  return values;
}

// Returns once all have come, without ordering anything that they do before or after.
void meet(std::atomic<int>& come, int all) {
  come.fetch_add(1, std::memory_order_relaxed);
  while (come.load(std::memory_order_relaxed) < all) std::this_thread::yield();
}

// Chunks run by the rasteriser's pool add to one sum; each waits for the others, so none has two.
template <typename Sum>
int sum_in_pool(int count) {
  Sum sum{0};
  std::atomic<int> come{0};
  const std::vector<int> values = numbers(count);
  gr::parallel_for(kThreads, kThreads, [&](int chunk, int) {
    meet(come, kThreads);
    for (int i = chunk; i < count; i += kThreads) sum += values[i];
  });
  return sum;
}

// So do the workers that the other packages start.
template <typename Sum>
int sum_of_workers(int count) {
  Sum sum{0};
  const std::vector<int> values = numbers(count);
  native::run_workers(kThreads, [&](int worker) {
    for (int i = worker; i < count; i += kThreads) sum += values[i];
  });
  return sum;
}

}  // namespace

extern "C" {

int pool(int count) { return sum_in_pool<int>(count); }
int pool_right(int count) { return sum_in_pool<std::atomic<int>>(count); }

int workers(int count) { return sum_of_workers<int>(count); }
int workers_right(int count) { return sum_of_workers<std::atomic<int>>(count); }

int beyond(int count) { return numbers(count).data()[count]; }
int beyond_right(int count) { return numbers(count).data()[count - 1]; }

int overflow(int count) { return INT_MAX - 1 + count; }
int overflow_right(int count) { return static_cast<int>(INT_MAX - 1 + unsigned(count)); }

int cast(int count) { return static_cast<int>(1e9f * count); }
int cast_right(int count) { return static_cast<int>(1e6f * count); }
}
