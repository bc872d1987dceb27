#include "ops/cpu/thread_pool.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <string>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace treadle::ops::cpu {
namespace {

// Long enough to bridge the host work between two steps, short enough not to be noticed elsewhere.
constexpr std::chrono::microseconds kSpin{60};
constexpr int kMaxThreads = 1024;

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

bool has_index(uint64_t ticket) { return static_cast<uint32_t>(ticket) < (ticket >> 32); }

/// Cores that a cgroup quota amounts to, or `limit` when there is none.
int cgroup_cores(int limit) {
  double quota = 0;
  double period = 0;
  std::string first;
  std::ifstream v2("/sys/fs/cgroup/cpu.max");
  if (v2 >> first >> period) {
    if (first == "max") return limit;
    try {
      quota = std::stod(first);
    } catch (const std::exception&) {
      return limit;
    }
  } else {
    std::ifstream v1_quota("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
    std::ifstream v1_period("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
    if (!(v1_quota >> quota) || !(v1_period >> period)) return limit;
  }
  if (!(quota > 0) || !(period > 0)) return limit;
  return std::clamp(static_cast<int>(std::ceil(std::min(quota / period, 1e6))), 1, limit);
}

}  // namespace

int available_threads() {
  int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) cores = std::max(1, CPU_COUNT(&set));
#endif
  return std::min(cgroup_cores(cores), kMaxThreads);
}

ThreadPool::ThreadPool(int num_threads)
    : num_threads_(num_threads > 0 ? std::min(num_threads, kMaxThreads) : available_threads()) {
  workers_.reserve(num_threads_ - 1);
  for (int t = 1; t < num_threads_; ++t) workers_.emplace_back([this, t] { worker_loop(t); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  wake_.fetch_add(1);
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(int64_t count, void* body, Call call) {
  body_ = body;
  call_ = call;
  done_.store(0, std::memory_order_relaxed);
  // Sequentially consistent, as is the read of sleepers_: either a worker that is about to sleep
  // sees this ticket, or this thread sees the sleeper.
  ticket_.store(static_cast<uint64_t>(count) << 32);
  if (sleepers_.load() > 0) {
    wake_.fetch_add(1);
    wake_.notify_all();
  }
  work(0);
  for (int spins = 0; done_.load(std::memory_order_acquire) < count; ++spins) {
    if (spins < 2000) {
      pause();
    } else {
      std::this_thread::yield();  // more threads than free cores: let the worker finish
    }
  }
}

void ThreadPool::work(int thread) {
  while (has_index(ticket_.load(std::memory_order_relaxed))) {
    const uint64_t ticket = ticket_.fetch_add(1, std::memory_order_acquire);
    if (!has_index(ticket)) return;
    // This index is out until done_ counts it, so body_ and call_ cannot change under us.
    call_(body_, static_cast<int64_t>(static_cast<uint32_t>(ticket)), thread);
    done_.fetch_add(1, std::memory_order_release);
  }
}

void ThreadPool::worker_loop(int thread) {
  while (wait_for_work()) work(thread);
}

bool ThreadPool::wait_for_work() {
  const auto start = std::chrono::steady_clock::now();
  do {
    for (int i = 0; i < 64; ++i) {
      if (has_index(ticket_.load(std::memory_order_relaxed))) return true;
      if (stop_.load(std::memory_order_relaxed)) return false;
      pause();
    }
  } while (std::chrono::steady_clock::now() - start < kSpin);

  sleepers_.fetch_add(1);
  const uint32_t seen = wake_.load();
  if (!has_index(ticket_.load()) && !stop_.load()) wake_.wait(seen);
  sleepers_.fetch_sub(1);
  return !stop_.load();
}

}  // namespace treadle::ops::cpu
