#include "ops/cpu/memory.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>
#include <string_view>

#include <treadle/error.h>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace treadle::ops::cpu {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kSharedRegion = size_t{32} << 20;
constexpr size_t kOwnRegionFrom = size_t{8} << 20;

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

[[noreturn]] void out_of_memory(size_t bytes) {
  throw Error(ErrorCode::kOutOfMemory, "cannot allocate " + std::to_string(bytes) +
                                           " bytes: " + std::to_string(available_memory()) +
                                           " bytes are available");
}

/// The number in a file, or `missing` when there is none ("max").
size_t read_number(const char* path, size_t missing) {
  std::ifstream file(path);
  size_t value = 0;
  return file >> value ? value : missing;
}

constexpr size_t kUnlimited = std::numeric_limits<size_t>::max();

/// A line of /proc/meminfo in bytes, kUnlimited where there is none.
size_t meminfo(std::string_view wanted) {
  std::ifstream file("/proc/meminfo");
  std::string key;
  size_t kib = 0;
  std::string unit;
  while (file >> key >> kib) {
    std::getline(file, unit);
    if (key == wanted) return kib * 1024;
  }
  return kUnlimited;
}

size_t physical_memory() {
#if defined(_SC_PHYS_PAGES)
  return static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
#else
  return kUnlimited;
#endif
}

// A control group's limit and what is used of it.
constexpr const char* kGroups[][2] = {
    {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"},
    {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"},
};

}  // namespace

size_t available_memory() {
  size_t available = meminfo("MemAvailable:");
  if (available == kUnlimited) available = physical_memory() / 2;
  for (const auto& [limit_path, usage_path] : kGroups) {
    const size_t limit = read_number(limit_path, kUnlimited);
    if (limit == kUnlimited) continue;
    const size_t usage = read_number(usage_path, 0);
    available = std::min(available, limit > usage ? limit - usage : 0);
  }
  return available;
}

size_t total_memory() {
  size_t total = std::min(meminfo("MemTotal:"), physical_memory());
  for (const auto& [limit_path, usage_path] : kGroups) {
    total = std::min(total, read_number(limit_path, kUnlimited));
  }
  return total;
}

#if defined(__SANITIZE_ADDRESS__) || !(defined(__unix__) || defined(__APPLE__))

// One heap block for each allocation, so that AddressSanitizer sees its ends.
void* Memory::allocate(size_t bytes) {
  const size_t size = round_up(std::max(bytes, size_t{1}), kAlignment);
  void* ptr =
      size < bytes || size > available_memory() ? nullptr : std::aligned_alloc(kAlignment, size);
  if (ptr == nullptr) out_of_memory(bytes);
  std::memset(ptr, 0, size);
  const std::lock_guard lock(mutex_);
  region_of_[ptr] = nullptr;
  return ptr;
}

void Memory::release(void* ptr) {
  if (ptr == nullptr) return;
  const std::lock_guard lock(mutex_);
  if (region_of_.erase(ptr) == 1) std::free(ptr);
}

Memory::~Memory() {
  for (const auto& [ptr, base] : region_of_) std::free(ptr);
}

#else

Memory::~Memory() {
  for (const Region& region : regions_) munmap(region.base, region.size);
}

Memory::Region Memory::map(size_t bytes) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t size = round_up(bytes, page);
  // Pages are committed on first touch, so mmap itself seldom fails: without this check a pool that
  // does not fit would end in the system killing the process.
  if (bytes >= kOwnRegionFrom && size > available_memory()) out_of_memory(bytes);
  const size_t reserved = size + kHugePage;
  void* mapped =
      mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) out_of_memory(bytes);
  char* first = static_cast<char*>(mapped);
  const auto address = reinterpret_cast<uintptr_t>(first);
  char* base = first + (round_up(address, kHugePage) - address);
  if (base != first) munmap(first, static_cast<size_t>(base - first));
  char* end = first + reserved;
  if (base + size != end) munmap(base + size, static_cast<size_t>(end - (base + size)));
#if defined(MADV_HUGEPAGE)
  madvise(base, size, MADV_HUGEPAGE);  // only advice: small pages do as well
#endif
  return {base, size, 0, 0};
}

void* Memory::allocate(size_t bytes) {
  const std::lock_guard lock(mutex_);
  if (bytes > std::numeric_limits<size_t>::max() / 2) out_of_memory(bytes);
  const size_t size = round_up(std::max(bytes, size_t{1}), kAlignment);
  auto region = regions_.end();
  if (size < kOwnRegionFrom) {
    region = std::find_if(regions_.begin(), regions_.end(), [size](const Region& r) {
      return r.size == kSharedRegion && r.size - r.used >= size;
    });
  }
  if (region == regions_.end()) {
    regions_.reserve(regions_.size() + 1);
    regions_.push_back(map(size < kOwnRegionFrom ? kSharedRegion : size));
    region = regions_.end() - 1;
  }
  void* ptr = region->base + region->used;
  region_of_[ptr] = region->base;
  region->used += size;
  ++region->live;
  return ptr;
}

void Memory::release(void* ptr) {
  if (ptr == nullptr) return;
  const std::lock_guard lock(mutex_);
  const auto owner = region_of_.find(ptr);
  if (owner == region_of_.end()) return;
  const auto region = std::find_if(regions_.begin(), regions_.end(),
                                   [&](const Region& r) { return r.base == owner->second; });
  region_of_.erase(owner);
  if (--region->live > 0) return;
  munmap(region->base, region->size);
  regions_.erase(region);
}

#endif

}  // namespace treadle::ops::cpu
