#include "thread_pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace gr {
namespace {

constexpr int kSpins = 2000;  // about 50 us: longer than the gap between two stages of one render

void relax() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#endif
}

long process_id() {
#if defined(__unix__) || defined(__APPLE__)
  return static_cast<long>(::getpid());
#else
  return 0;
#endif
}

using Body = std::function<void(int, int)>;

// One parallel loop. Workers hold it by shared_ptr, so a late one finds no chunk left, no more.
struct Job {
  const Body* body;
  int chunks, threads;
  std::atomic<int> next{0}, finished{0}, workers{1};
  std::mutex error_mutex;
  std::exception_ptr error;

  void work(int worker) {
    int done = 0;
    for (int chunk; (chunk = next.fetch_add(1)) < chunks; ++done) {
      try {
        (*body)(chunk, worker);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(error_mutex);
        error = std::current_exception();
      }
    }
    finished.fetch_add(done);
  }
};

class Pool {
 public:
  // The pool lives as long as the process: its threads sleep on a condition variable at exit.
  void run(const std::shared_ptr<Job>& job) {
    ensure_workers(job->threads - 1);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      job_ = job;
      ++generation_;
    }
    wake_.notify_all();
    job->work(0);
    while (job->finished.load() < job->chunks) {
      for (int i = 0; i < kSpins && job->finished.load() < job->chunks; ++i) relax();
      if (job->finished.load() < job->chunks) std::this_thread::yield();
    }
  }

  std::mutex busy;

 private:
  void ensure_workers(int count) {
    for (; started_ < count; ++started_) std::thread([this] { loop(); }).detach();
  }

  [[noreturn]] void loop() {
    std::uint64_t seen = 0;
    for (;;) {
      for (int i = 0; i < kSpins && generation_.load() == seen; ++i) relax();
      std::shared_ptr<Job> job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_.load() != seen; });
        seen = generation_.load();
        job = job_;
      }
      const int worker = job->workers.fetch_add(1);
      if (worker < job->threads) job->work(worker);
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<std::uint64_t> generation_{0};
  std::shared_ptr<Job> job_;
  int started_ = 0;
};

// A forked child has none of its parent's threads: it gets a pool of its own.
Pool& pool() {
  static std::mutex mutex;
  static Pool* current = nullptr;
  static long owner = -1;
  const std::lock_guard<std::mutex> lock(mutex);
  if (current == nullptr || owner != process_id()) {
    current = new Pool();
    owner = process_id();
  }
  return *current;
}

}  // namespace

void parallel_for(int chunks, int threads, const Body& body) {
  threads = std::min(threads, chunks);
  if (threads > 1) {
    Pool& workers = pool();
    const std::unique_lock<std::mutex> lock(workers.busy, std::try_to_lock);
    if (lock.owns_lock()) {
      const auto job = std::make_shared<Job>();
      job->body = &body;
      job->chunks = chunks;
      job->threads = threads;
      workers.run(job);
      if (job->error) std::rethrow_exception(job->error);
      return;
    }
  }
  for (int chunk = 0; chunk < chunks; ++chunk) body(chunk, 0);
}

void parallel_runs(int chunks, int run, int threads, const Body& body) {
  constexpr int kRunsEach = 16;  // so that threads end together
  run = std::max(1, std::min(run, chunks / (threads * kRunsEach)));
  parallel_for((chunks + run - 1) / run, threads, [&](int first, int worker) {
    const int end = std::min(chunks, (first + 1) * run);
    for (int chunk = first * run; chunk < end; ++chunk) body(chunk, worker);
  });
}

}  // namespace gr
