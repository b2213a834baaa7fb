#include "thread_pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <system_error>
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

// The chunks that nobody has begun of those of one worker, who takes them from the front; others, when
// they have none left, from the back.
class alignas(64) Range {  // a line of the caches: taking one's own is not felt by others
 public:
  void set(int begin, int end) { left_.store(pack(begin, end)); }
  int take_first() {  // -1: none is left
    return take([](int& begin, int&) { return begin++; });
  }
  int take_last() {
    return take([](int&, int& end) { return --end; });
  }

 private:
  static std::uint64_t pack(int begin, int end) {
    return std::uint64_t(std::uint32_t(end)) << 32 | std::uint32_t(begin);
  }

  template <typename Choose>
  int take(const Choose& choose) {
    std::uint64_t seen = left_.load();
    for (;;) {
      int begin = static_cast<int>(seen & 0xffffffffu), end = static_cast<int>(seen >> 32);
      if (begin >= end) return -1;
      const int chunk = choose(begin, end);
      if (left_.compare_exchange_weak(seen, pack(begin, end))) return chunk;
    }
  }

  std::atomic<std::uint64_t> left_{0};
};

// One parallel loop. Workers hold it by shared_ptr, so a late one finds no chunk left, no more.
struct Job {
  Job(const Body& body_, int chunks_, int threads_)
      : body(body_), chunks(chunks_), threads(threads_), ranges(new Range[threads_]) {
    const auto begin = [&](int w) { return static_cast<int>(std::int64_t(chunks) * w / threads); };
    for (int w = 0; w < threads; ++w) ranges[w].set(begin(w), begin(w + 1));
  }

  void work(int worker) {
    int done = 0;
    const auto run = [&](int chunk) {
      ++done;
      try {
        body(chunk, worker);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(error_mutex);
        error = std::current_exception();
      }
    };
    for (int chunk; (chunk = ranges[worker].take_first()) >= 0;) run(chunk);
    for (int other = 1; other < threads; ++other) {
      Range& range = ranges[(worker + other) % threads];
      for (int chunk; (chunk = range.take_last()) >= 0;) run(chunk);
    }
    finished.fetch_add(done);
  }

  const Body& body;  // not to be called when all is finished
  const int chunks, threads;
  const std::unique_ptr<Range[]> ranges;
  std::atomic<int> finished{0};
  std::mutex error_mutex;
  std::exception_ptr error;
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
  // Where the system grants no more threads there are fewer workers: who has time takes the shares of
  // those that there are not.
  void ensure_workers(int count) {
    try {
      for (; started_ < count; ++started_) {
        std::thread([this, worker = started_ + 1] { loop(worker); }).detach();
      }
    } catch (const std::system_error&) {
    }
  }

  // A thread is the same worker in all loops, so that what it has in its caches serves the next.
  [[noreturn]] void loop(int worker) {
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
      const auto job = std::make_shared<Job>(body, chunks, threads);
      workers.run(job);
      if (job->error) std::rethrow_exception(job->error);
      return;
    }
  }
  for (int chunk = 0; chunk < chunks; ++chunk) body(chunk, 0);
}

}  // namespace gr
