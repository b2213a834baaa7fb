// What the parallel loops of the packages promise, as functions for test_thread_pool.py.
#if defined(__linux__)
#include <pthread.h>
#endif

#include <atomic>
#include <chrono>
#include <cstddef>
#include <new>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <vector>

#include "native/workers.h"
#include "thread_pool.h"

namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::seconds kPatience{20};  // a loop that does not do it by then never will

// Waits for a condition; false if it does not come.
template <typename Condition>
bool wait_for(const Condition& condition) {
  const auto start = Clock::now();
  while (!condition()) {
    if (Clock::now() - start > kPatience) return false;
    std::this_thread::yield();
  }
  return true;
}

int share_begin(int chunks, int threads, int worker) { return chunks * worker / threads; }

}  // namespace

extern "C" {

// Runs many loops of chunks that take longer and longer; returns how many chunks did not run exactly
// once, or with a worker that there is not.
int mistaken_chunks(int chunks, int threads, int loops) {
  int mistakes = 0;
  for (int loop = 0; loop < loops; ++loop) {
    std::vector<std::atomic<int>> runs(chunks);
    std::atomic<int> strangers{0};
    gr::parallel_for(chunks, threads, [&](int chunk, int worker) {
      if (worker < 0 || worker >= threads) ++strangers;
      volatile int spent = 0;
      for (int i = 0; i < 50 * chunk; ++i) spent = i;
      (void)spent;
      ++runs[chunk];
    });
    mistakes += strangers;
    for (const std::atomic<int>& count : runs) mistakes += count != 1;
  }
  return mistakes;
}

// Every worker waits in its first chunk until all have begun; returns how many began elsewhere than at
// the start of their share, or -1 if they never all began.
int begun_elsewhere(int chunks, int threads) {
  std::vector<std::atomic<int>> first(threads);
  for (std::atomic<int>& chunk : first) chunk = -1;
  std::atomic<int> begun{0};
  std::atomic<bool> all{true};
  gr::parallel_for(chunks, threads, [&](int chunk, int worker) {
    int none = -1;
    if (!first[worker].compare_exchange_strong(none, chunk)) return;
    ++begun;
    if (!wait_for([&] { return begun == threads; })) all = false;
  });
  if (!all) return -1;
  int elsewhere = 0;
  for (int w = 0; w < threads; ++w) elsewhere += first[w] != share_begin(chunks, threads, w);
  return elsewhere;
}

// The first chunk of a share lasts until all others are done, those of that share among them.
bool share_of_a_busy_worker_is_done(int chunks, int threads, int busy) {
  std::atomic<int> done{0};
  std::atomic<bool> finished{true};
  gr::parallel_for(chunks, threads, [&](int chunk, int) {
    if (chunk == share_begin(chunks, threads, busy) && !wait_for([&] { return done == chunks - 1; })) {
      finished = false;
    }
    ++done;
  });
  return finished;
}

// Returns how many chunks ran of a loop of which one fails, or -1 if the caller is not told.
int ran_beside_a_failure(int chunks, int threads, int failing) {
  std::atomic<int> ran{0};
  try {
    gr::parallel_for(chunks, threads, [&](int chunk, int) {
      ++ran;
      if (chunk == failing) throw std::runtime_error("as planned");
    });
  } catch (const std::runtime_error&) {
    return ran;
  }
  return -1;
}

// The same for the workers of the other packages.
int worked_beside_failures(int workers, int first, int second) {
  std::atomic<int> ran{0};
  try {
    native::run_workers(workers, [&](int worker) {
      ++ran;
      if (worker == first || worker == second) throw std::bad_alloc();
    });
  } catch (const std::bad_alloc&) {
    return ran;
  }
  return -1;
}

// Two loops at once, and one within another: returns how many chunks ran.
int ran_at_once(int chunks, int threads) {
  std::atomic<int> ran{0};
  const auto loop = [&] { gr::parallel_for(chunks, threads, [&](int, int) { ++ran; }); };
  std::thread other([&] { gr::parallel_for(chunks, threads, [&](int, int) { loop(); }); });
  loop();
  other.join();
  return ran;
}

// `mistaken_chunks` of a loop for which the system grants no more threads than there are, as each asks
// for a stack beyond all memory; -1 where that cannot be arranged.
int mistaken_chunks_without_threads(int chunks, int threads) {
#if defined(__GLIBC__)
  pthread_attr_t before, endless;
  if (pthread_getattr_default_np(&before) != 0 || pthread_attr_init(&endless) != 0) return -1;
  pthread_attr_setstacksize(&endless, std::size_t{1} << 60);
  if (pthread_setattr_default_np(&endless) != 0) return -1;
  int mistakes = chunks;
  try {
    mistakes = mistaken_chunks(chunks, threads, 2);
  } catch (const std::system_error&) {
  }
  pthread_setattr_default_np(&before);
  return mistakes;
#else
  return -1;
#endif
}
}
