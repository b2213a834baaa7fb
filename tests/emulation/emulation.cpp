// The scheduler of the emulated GPU: fibres, barriers, warp exchanges, shared memory. This file is
// compiled without sanitizers; what they must know of fibres and barriers is said through their own
// interfaces, which are empty where no sanitizer is loaded.
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <random>
#include <sstream>
#include <vector>

#include "cuda_runtime.h"

extern "C" {
__attribute__((weak)) void* __tsan_get_current_fiber();
__attribute__((weak)) void* __tsan_create_fiber(unsigned flags);
__attribute__((weak)) void __tsan_destroy_fiber(void* fiber);
__attribute__((weak)) void __tsan_switch_to_fiber(void* fiber, unsigned flags);
__attribute__((weak)) void __tsan_acquire(void* address);
__attribute__((weak)) void __tsan_release(void* address);
__attribute__((weak)) void AnnotateIgnoreReadsBegin(const char* file, int line);
__attribute__((weak)) void AnnotateIgnoreReadsEnd(const char* file, int line);
__attribute__((weak)) void AnnotateIgnoreWritesBegin(const char* file, int line);
__attribute__((weak)) void AnnotateIgnoreWritesEnd(const char* file, int line);
__attribute__((weak)) void __sanitizer_start_switch_fiber(void** fake, const void* bottom,
                                                          std::size_t size);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void* fake, const void** bottom,
                                                           std::size_t* size);
}

namespace emulation {
namespace {

constexpr std::size_t kStack = 1024 * 1024;  // touched only as far as used; reports need much
constexpr unsigned kMaxThreads = 1024;
constexpr std::size_t kMaxFibers = 8000;  // ThreadSanitizer's own limit is 8128
constexpr unsigned kNoSync = 1;  // __tsan_switch_to_fiber_no_sync

// ------------------------------------------------------------------------- switching between stacks

struct Context {
  void* stack_pointer = nullptr;
  ucontext_t portable;  // where the assembly below is not for this processor
};

#if defined(__x86_64__)
// Saves the callee-saved registers on the stack of `from` and continues where `to` was saved.
extern "C" void emulation_switch(void** from, void* to);
asm(R"(
.text
.globl emulation_switch
.hidden emulation_switch
.type emulation_switch,@function
emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulation_switch,.-emulation_switch
)");

void switch_context(Context& from, Context& to) {
  emulation_switch(&from.stack_pointer, to.stack_pointer);
}

void prepare(Context& context, char* stack, void (*entry)()) {
  // At entry the stack pointer must be 8 below a multiple of 16, as after a call.
  auto* top = reinterpret_cast<void**>(stack + kStack) - 1;
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context.stack_pointer = top;
}
#else
void switch_context(Context& from, Context& to) { swapcontext(&from.portable, &to.portable); }

void prepare(Context& context, char* stack, void (*entry)()) {
  getcontext(&context.portable);
  context.portable.uc_stack.ss_sp = stack;
  context.portable.uc_stack.ss_size = kStack;
  context.portable.uc_link = nullptr;
  makecontext(&context.portable, entry, 0);
}
#endif

// -------------------------------------------------------------------------------------- the machine

enum class State { kReady, kAtBarrier, kAtWarp, kDone };

struct Thread {
  Context context;
  Coordinates where;
  State state;
  void* fiber = nullptr;  // ThreadSanitizer's
  void* fake_stack = nullptr;  // AddressSanitizer's
};

// A barrier's number decides which of two slots it uses: when a thread reaches the next but one,
// every thread has left this one.
struct Exchange {
  std::uint32_t arrived = 0;
  unsigned generation = 0;
  WarpValues values[2];
  char token[2];
};

struct Machine {
  std::vector<Thread> threads;
  char* stacks = nullptr;
  Context host;
  void* host_fiber = nullptr;
  std::vector<void*> fibers;  // ThreadSanitizer's, of the blocks so far
  void* host_fake_stack = nullptr;
  const void* host_bottom = nullptr;
  std::size_t host_size = 0;
  Thread* running = nullptr;
  unsigned count = 0;  // threads of a block
  unsigned order = 0;
  void (*body)(void*) = nullptr;
  void* closure = nullptr;

  unsigned waiting = 0, done = 0;  // threads at the barrier, threads that have returned
  unsigned generation = 0;
  int sums[2] = {0, 0};
  char barrier_token[2], grid_token, shared_token;
  std::map<std::pair<unsigned, std::uint32_t>, Exchange> exchanges;  // by (warp, mask)
  std::map<std::pair<const char*, int>, void*> shared;  // by place in the source
  std::pair<const char*, int> wanted_key;
  std::size_t wanted_bytes = 0;  // of shared memory, asked for by the running thread
};

Machine machine;
std::mutex one_kernel_at_a_time;

void release(void* token) {
  if (__tsan_release) __tsan_release(token);
}
void acquire(void* token) {
  if (__tsan_acquire) __tsan_acquire(token);
}

// The scheduler's own memory is not the kernels' business: ThreadSanitizer ignores what the host does
// while one of these lives (its interceptors of malloc and memset would take part otherwise).
struct Unwatched {
  Unwatched() {
    if (!AnnotateIgnoreReadsBegin) return;
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unwatched() {
    if (!AnnotateIgnoreReadsBegin) return;
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
};

void to_thread(Thread& thread) {
  Machine& m = machine;
  m.running = &thread;
  const std::size_t index = &thread - m.threads.data();
  if (__sanitizer_start_switch_fiber) {
    __sanitizer_start_switch_fiber(&m.host_fake_stack, m.stacks + index * kStack, kStack);
  }
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(thread.fiber, kNoSync);
  switch_context(m.host, thread.context);
  if (__sanitizer_finish_switch_fiber) {
    __sanitizer_finish_switch_fiber(m.host_fake_stack, nullptr, nullptr);
  }
}

void to_host(bool for_good = false) {
  Machine& m = machine;
  Thread& self = *m.running;
  if (__sanitizer_start_switch_fiber) {
    __sanitizer_start_switch_fiber(for_good ? nullptr : &self.fake_stack, m.host_bottom,
                                   m.host_size);
  }
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(m.host_fiber, kNoSync);
  switch_context(self.context, m.host);
  if (__sanitizer_finish_switch_fiber) {
    __sanitizer_finish_switch_fiber(self.fake_stack, &m.host_bottom, &m.host_size);
  }
}

void thread_main() {
  Machine& m = machine;
  if (__sanitizer_finish_switch_fiber) {
    __sanitizer_finish_switch_fiber(nullptr, &m.host_bottom, &m.host_size);
  }
  m.body(m.closure);
  release(&m.grid_token);
  m.running->state = State::kDone;
  ++m.done;
  to_host(true);
  std::abort();  // a finished fibre is never resumed
}

void open_barrier_if_complete() {
  Machine& m = machine;
  if (m.waiting == 0 || m.waiting + m.done < m.count) return;
  m.waiting = 0;
  ++m.generation;
  m.sums[m.generation % 2] = 0;
  for (unsigned i = 0; i < m.count; ++i) {
    if (m.threads[i].state == State::kAtBarrier) m.threads[i].state = State::kReady;
  }
}

void allocate_shared() {
  Machine& m = machine;
  void* memory = std::malloc(m.wanted_bytes);
  std::memset(memory, 0xff, m.wanted_bytes);
  m.shared[m.wanted_key] = memory;
  m.wanted_bytes = 0;
  release(&m.shared_token);
}

[[noreturn]] void report_deadlock() {
  Machine& m = machine;
  std::ostringstream text;
  text << "the threads of block " << m.threads[0].where.block.x << " wait for each other:";
  unsigned counts[4] = {};
  for (unsigned i = 0; i < m.count; ++i) ++counts[static_cast<int>(m.threads[i].state)];
  text << " " << counts[1] << " at a barrier, " << counts[2] << " at a warp intrinsic, "
       << counts[3] << " returned";
  for (unsigned i = 0; i < m.count; ++i) {
    if (m.threads[i].state == State::kAtWarp) {
      text << "; thread " << i << " is the first at a warp intrinsic";
      break;
    }
  }
  throw std::runtime_error(text.str());
}

void clear_block() {
  Machine& m = machine;
  for (auto& [key, array] : m.shared) std::free(array);
  m.shared.clear();
  m.exchanges.clear();
}

// ThreadSanitizer takes a new fibre that inherits the number of a destroyed one for the same thread,
// which would hide races between blocks: they live until the grid ends, or until it runs out.
void clear_fibers(std::size_t most) {
  std::vector<void*>& fibers = machine.fibers;
  if (!__tsan_destroy_fiber || fibers.size() <= most) return;
  for (void* fiber : fibers) __tsan_destroy_fiber(fiber);
  fibers.clear();
}

// Blocks use the same stacks one after the other, which ThreadSanitizer would call a race between
// their threads: memory that is mapped anew has no past.
void renew_stacks() {
  Machine& m = machine;
  if (!__tsan_create_fiber) return;
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
  if (mmap(m.stacks, kStack * m.count, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED) {
    throw std::runtime_error("no memory for the stacks of the emulation");
  }
}

void start_block(dim3 grid, dim3 block, uint3 at) {
  Machine& m = machine;
  renew_stacks();
  m.waiting = m.done = m.generation = 0;
  m.sums[0] = m.sums[1] = 0;
  for (unsigned i = 0; i < m.count; ++i) {
    Thread& thread = m.threads[i];
    const uint3 index{i % block.x, i / block.x % block.y, i / (block.x * block.y)};
    thread.where = {index, at, block, grid};
    thread.state = State::kReady;
    thread.fake_stack = nullptr;
    if (__tsan_create_fiber) m.fibers.push_back(thread.fiber = __tsan_create_fiber(0));
    prepare(thread.context, m.stacks + i * kStack, thread_main);
  }
}

void run_block(const std::vector<unsigned>& order) {
  Machine& m = machine;
  while (m.done < m.count) {
    bool progress = false;
    for (unsigned i : order) {
      while (m.threads[i].state == State::kReady) {
        progress = true;
        to_thread(m.threads[i]);
        if (m.wanted_bytes == 0) break;
        allocate_shared();
      }
    }
    open_barrier_if_complete();
    if (!progress) report_deadlock();
  }
}

std::vector<unsigned> thread_order() {
  Machine& m = machine;
  std::vector<unsigned> order(m.count);
  for (unsigned i = 0; i < m.count; ++i) order[i] = m.order == 1 ? m.count - 1 - i : i;
  if (m.order > 1) std::shuffle(order.begin(), order.end(), std::mt19937(m.order));
  return order;
}

}  // namespace

const Coordinates& here() { return machine.running->where; }

void set_order(unsigned order) { machine.order = order; }

void run(dim3 grid, dim3 block, void (*body)(void*), void* closure) {
  const std::lock_guard<std::mutex> lock(one_kernel_at_a_time);
  const Unwatched unwatched;
  Machine& m = machine;
  m.count = block.x * block.y * block.z;
  if (m.count == 0 || m.count > kMaxThreads) throw std::runtime_error("a block has 1 to 1024 threads");
  if (!m.stacks) {
    void* memory = mmap(nullptr, kStack * kMaxThreads, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("no memory for the stacks of the emulation");
    m.stacks = static_cast<char*>(memory);
    m.threads.resize(kMaxThreads);
  }
  if (__tsan_get_current_fiber) m.host_fiber = __tsan_get_current_fiber();
  m.body = body;
  m.closure = closure;
  const std::vector<unsigned> order = thread_order();
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        clear_fibers(kMaxFibers - kMaxThreads);
        start_block(grid, block, {x, y, z});
        try {
          run_block(order);
        } catch (...) {
          clear_block();
          clear_fibers(0);
          throw;
        }
        clear_block();
      }
  clear_fibers(0);
  acquire(&m.grid_token);
}

int block_barrier(int value) {
  Machine& m = machine;
  const unsigned own = m.generation % 2;
  m.sums[own] += value;
  release(&m.barrier_token[own]);
  ++m.waiting;
  m.running->state = State::kAtBarrier;
  to_host();
  acquire(&m.barrier_token[own]);
  return m.sums[own];
}

WarpValues warp_exchange(std::uint32_t mask, std::uint64_t value, bool orders) {
  Machine& m = machine;
  Thread& self = *m.running;
  const unsigned index = static_cast<unsigned>(&self - m.threads.data());
  const unsigned warp = index / 32, lane = index % 32;
  if (!(mask >> lane & 1u)) throw std::runtime_error("a warp intrinsic without its own lane");
  const std::uint32_t real = m.count - warp * 32 >= 32 ? ~0u : (1u << (m.count - warp * 32)) - 1;
  mask &= real;  // lanes beyond a block that is no multiple of the warp do not exist
  Exchange& e = m.exchanges[{warp, mask}];
  const unsigned own = e.generation % 2;
  e.values[own].lane[lane] = value;
  if (orders) release(&e.token[own]);
  e.arrived |= 1u << lane;
  if (e.arrived == mask) {
    e.arrived = 0;
    ++e.generation;
    for (unsigned i = 0; i < 32; ++i) {
      if ((mask >> i & 1u) && i != lane) m.threads[warp * 32 + i].state = State::kReady;
    }
  } else {
    self.state = State::kAtWarp;
    to_host();
  }
  if (orders) acquire(&e.token[own]);
  return e.values[own];
}

void* shared_bytes(const char* file, int line, std::size_t bytes) {
  Machine& m = machine;
  const std::pair<const char*, int> key(file, line);
  auto found = m.shared.find(key);
  if (found == m.shared.end()) {
    // The host makes it: to ThreadSanitizer, what a fibre allocates is written by that fibre.
    m.wanted_key = key;
    m.wanted_bytes = bytes;
    to_host();
    found = m.shared.find(key);
  }
  acquire(&m.shared_token);
  return found->second;
}

}  // namespace emulation

// For callers that have only the loaded library: see emulated.py.
extern "C" __attribute__((visibility("default"))) void emulation_set_order(unsigned order) {
  emulation::set_order(order);
}
