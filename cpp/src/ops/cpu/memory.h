// The backend's memory: zeroed, aligned, in huge pages where the system has them.
#pragma once

#include <cstddef>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace treadle::ops::cpu {

/// Thread-safe.
class Memory {
 public:
  Memory() = default;
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  /// Zeroed and aligned to 64 bytes; pages are committed when first touched. Throws
  /// Error(kOutOfMemory). 0 bytes give a valid pointer.
  void* allocate(size_t bytes);

  /// Null is allowed; other pointers must come from allocate().
  void release(void* ptr);

 private:
  // A mapping: one large allocation, or many small ones cut from it in order and never reused, so
  // that they share huge pages and stay zeroed.
  struct Region {
    char* base = nullptr;
    size_t size = 0;
    size_t used = 0;
    size_t live = 0;
  };

  Region map(size_t bytes);

  std::mutex mutex_;
  std::vector<Region> regions_;
  std::unordered_map<void*, char*> region_of_;  // allocation -> Region::base
};

/// Bytes that this process can still allocate: what the system has available, less where a cgroup
/// allows less.
size_t available_memory();

/// Bytes of memory that this process could have if it were alone.
size_t total_memory();

}  // namespace treadle::ops::cpu
