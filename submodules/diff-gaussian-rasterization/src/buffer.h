// Grow-only scratch memory: uninitialised, 64-byte aligned, reused from call to call.
#pragma once

#include <cstddef>
#include <cstring>
#include <new>
#include <utility>

#include "native/isa.h"

namespace gr {

template <typename T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  NATIVE_INLINE Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  NATIVE_INLINE Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(capacity_, other.capacity_);
    return *this;
  }
  NATIVE_INLINE ~Buffer() { release(); }

  // Sets the size; the contents are undefined afterwards.
  NATIVE_INLINE void resize(std::size_t size) {
    if (size > capacity_) {
      release();
      const std::size_t wanted = size + size / 4;
      data_ = static_cast<T*>(::operator new(wanted * sizeof(T), std::align_val_t(64)));
      capacity_ = wanted;
    }
    size_ = size;
  }
  NATIVE_INLINE void zero() {
    if (size_ != 0) std::memset(static_cast<void*>(data_), 0, size_ * sizeof(T));
  }
  NATIVE_INLINE T* data() { return data_; }
  NATIVE_INLINE const T* data() const { return data_; }
  NATIVE_INLINE std::size_t size() const { return size_; }
  NATIVE_INLINE T& operator[](std::size_t i) { return data_[i]; }
  NATIVE_INLINE const T& operator[](std::size_t i) const { return data_[i]; }

 private:
  NATIVE_INLINE void release() {
    if (data_ != nullptr) ::operator delete(data_, std::align_val_t(64));
    data_ = nullptr;
    size_ = capacity_ = 0;
  }
  T* data_ = nullptr;
  std::size_t size_ = 0, capacity_ = 0;
};

}  // namespace gr
