// Kernels compiled for several instruction sets, one of which is chosen when the module is loaded.
//
// native_kernels() of NativeIsa.cmake compiles a package's kernels once per level. NATIVE_LEVEL is then
// the namespace that has to hold all they define: the linker keeps one of several inline functions of
// one name, and if that were the one for AVX-512, it would end up on processors without. What levels
// share is NATIVE_INLINE. The build looks at the symbols and fails where this was forgotten.
//
//   namespace package {
//   struct Kernels { void (*forward)(...); };                   // what a level offers
//   NATIVE_EACH_LEVEL(NATIVE_DECLARE)
//   const native::Levels<Kernels>& levels() {
//     static const native::Levels<Kernels> all = {NATIVE_EACH_LEVEL(NATIVE_ENTRY)};
//     return all;
//   }
//   }  // then levels().kernels().forward(...)
#pragma once

#include <cstdlib>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(_MSC_VER)
#define NATIVE_INLINE __forceinline
#else
#define NATIVE_INLINE inline __attribute__((always_inline))
#endif

// The levels of this build, the plainest first.
#if defined(NATIVE_HAS_BASELINE)
#define NATIVE_IF_BASELINE(x) x(baseline)
#else
#define NATIVE_IF_BASELINE(x)
#endif
#if defined(NATIVE_HAS_AVX2)
#define NATIVE_IF_AVX2(x) x(avx2)
#else
#define NATIVE_IF_AVX2(x)
#endif
#if defined(NATIVE_HAS_AVX512)
#define NATIVE_IF_AVX512(x) x(avx512)
#else
#define NATIVE_IF_AVX512(x)
#endif
#define NATIVE_EACH_LEVEL(x) NATIVE_IF_BASELINE(x) NATIVE_IF_AVX2(x) NATIVE_IF_AVX512(x)
#define NATIVE_DECLARE(level) namespace level { extern const Kernels kernels; }
#define NATIVE_ENTRY(level) {#level, native::runs_##level(), &level::kernels},

namespace native {

// Whether processor and operating system know the instructions of a level: those that NativeIsa.cmake
// asks the compiler for.
inline bool runs_baseline() { return true; }
#if defined(NATIVE_HAS_AVX2)
inline bool runs_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}
#endif
#if defined(NATIVE_HAS_AVX512)
inline bool runs_avx512() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
         __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
#endif

// The levels that run here, and the one in use: the last, or what the environment names.
template <typename Kernels>
class Levels {
 public:
  struct Entry {
    const char* name;
    bool runs;
    const Kernels* kernels;
  };

  Levels(std::initializer_list<Entry> built) {
    for (const Entry& entry : built) {
      if (entry.runs) running_.push_back(entry);
    }
    const char* wanted = std::getenv("NATIVE_ISA");
    for (const Entry& entry : running_) {
      if (wanted == nullptr || *wanted == 0 || wanted == std::string(entry.name)) used_ = entry;
    }
    if (used_.kernels == nullptr) refuse(wanted, built);
  }

  const Kernels& kernels() const { return *used_.kernels; }
  std::string name() const { return used_.name; }
  std::vector<std::string> names() const { return names_of(running_); }

 private:
  template <typename Entries>
  static std::vector<std::string> names_of(const Entries& entries) {
    std::vector<std::string> names;
    for (const Entry& entry : entries) names.push_back(entry.name);
    return names;
  }

  template <typename Entries>
  static std::string listed(const Entries& entries) {
    std::string text;
    for (const std::string& name : names_of(entries)) text += (text.empty() ? "" : ", ") + name;
    return text.empty() ? "none" : text;
  }

  [[noreturn]] void refuse(const char* wanted, std::initializer_list<Entry> built) const {
    if (running_.empty()) {
      throw std::runtime_error("this build is for " + listed(built) +
                               ", which this processor lacks; build it with NATIVE_LEVELS=baseline");
    }
    throw std::runtime_error("NATIVE_ISA=" + std::string(wanted) + " cannot be had; this build has " +
                             listed(built) + ", and here run " + listed(running_));
  }

  std::vector<Entry> running_;
  Entry used_ = {nullptr, false, nullptr};
};

}  // namespace native
