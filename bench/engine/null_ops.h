// A backend that computes nothing: what is left of a step is the host's work.
#pragma once

#include <sys/mman.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <set>
#include <stdexcept>

#include "ops/ops.h"

namespace treadle::bench {

/// Stops the engine at a chosen step, so that its counters can be read at exactly that point.
class Gate {
 public:
  /// Stops in the n-th of the following steps that choose `rows` tokens.
  void stop_at(int32_t rows, int n) {
    const std::lock_guard lock(mutex_);
    rows_ = rows;
    left_ = n;
    stopped_ = false;
    changed_.notify_all();
  }
  void open() { stop_at(-1, 0); }
  void wait_until_stopped() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return stopped_; });
  }
  /// Time spent stopped, all in all.
  double seconds() {
    const std::lock_guard lock(mutex_);
    return seconds_;
  }

  void pass(int32_t rows) {
    std::unique_lock lock(mutex_);
    if (rows != rows_ || --left_ > 0) return;
    const auto begin = std::chrono::steady_clock::now();
    stopped_ = true;
    changed_.notify_all();
    changed_.wait(lock, [&] { return !stopped_; });
    seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int32_t rows_ = -1;
  int left_ = 0;
  bool stopped_ = false;
  double seconds_ = 0;
};

/// Large memory is address space only, so a pool may be larger than the machine. Every chosen token
/// is 5.
inline ops::Ops null_ops(Gate& gate) {
  constexpr static size_t kLarge = size_t{64} << 20;
  constexpr static size_t kPage = 4096;
  static ops::Ops cpu;           // its backend does what is not replaced
  static std::set<void*> large;  // allocations
  static Gate* the_gate = nullptr;
  the_gate = &gate;
  cpu = ops::cpu_ops(1);
  ops::Ops ops = cpu;
  ops.free_memory = [](void*) { return size_t{1} << 46; };
  ops.total_memory = [](void*) { return size_t{1} << 46; };
  ops.alloc = [](void* self, size_t bytes) -> void* {
    if (bytes < kLarge) return cpu.alloc(self, bytes);
    // A page in front of the memory holds its length.
    void* base = mmap(nullptr, bytes + kPage, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) throw std::runtime_error("mmap failed");
    *static_cast<size_t*>(base) = bytes + kPage;
    return *large.insert(static_cast<char*>(base) + kPage).first;
  };
  ops.release = [](void* self, void* memory) {
    if (large.erase(memory) == 0) return cpu.release(self, memory);
    char* base = static_cast<char*>(memory) - kPage;
    munmap(base, *reinterpret_cast<size_t*>(base));
  };
  const auto nothing = [](void*, const auto&, ops::Stream) {};
  ops.embed = nothing;
  ops.linear = nothing;
  ops.rope = nothing;
  ops.qkv = nothing;
  ops.attention = nothing;
  ops.gather = nothing;
  ops.copy_block = nothing;
  ops.sample = [](void*, const ops::SampleParams& params, ops::Stream) {
    for (int32_t i = 0; i < params.num_rows; ++i) params.tokens[i] = 5;
    the_gate->pass(params.num_rows);
  };
  return ops;
}

}  // namespace treadle::bench
