// A fixed team of threads for the short parallel regions of a forward pass.
//
// One thread at a time (the engine's) calls parallel_for; it takes part in the work. Indices are
// handed out one by one, so a thread that the system has suspended holds up at most the index it is
// working on. Between regions the workers spin for some tens of microseconds and then sleep: an
// idle pool uses no CPU.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

namespace treadle::ops::cpu {

/// Cores this process may run on: its affinity mask, less what a cgroup CPU quota takes away.
int available_threads();

class ThreadPool {
 public:
  /// `num_threads` includes the caller; 0 = available_threads().
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }

  /// Calls fn(index, thread) once for every index in [0, count), in any order and on any thread,
  /// and returns when all calls have. `thread` in [0, num_threads()) names the scratch space a call
  /// may use. fn must not throw and must not call parallel_for. count <= 2^30. Indices are handed
  /// out in order, so the longest should come first.
  template <typename Fn>
  void parallel_for(int64_t count, Fn&& fn) {
    if (num_threads_ == 1 || count <= 1) {
      for (int64_t i = 0; i < count; ++i) fn(i, 0);
      return;
    }
    using Body = std::remove_reference_t<Fn>;
    run(count, const_cast<void*>(static_cast<const void*>(&fn)),
        [](void* body, int64_t index, int thread) { (*static_cast<Body*>(body))(index, thread); });
  }

  /// Calls fn(begin, end, thread) over [0, count) cut into pieces of at least `grain`, a few for
  /// each thread.
  template <typename Fn>
  void parallel_ranges(int64_t count, int64_t grain, Fn&& fn) {
    if (count <= 0) return;
    const int64_t wanted = num_threads_ == 1 ? 1 : int64_t{4} * num_threads_;
    int64_t piece = (count + wanted - 1) / wanted;
    if (piece < grain) piece = grain;
    const int64_t pieces = (count + piece - 1) / piece;
    parallel_for(pieces, [&](int64_t i, int thread) {
      const int64_t begin = i * piece;
      fn(begin, begin + piece < count ? begin + piece : count, thread);
    });
  }

 private:
  using Call = void (*)(void* body, int64_t index, int thread);

  void run(int64_t count, void* body, Call call);
  void work(int thread);
  void worker_loop(int thread);
  bool wait_for_work();

  // High half: number of indices of the region; low half: the next one to hand out. One word, so
  // that a late worker can never pair an index of one region with the size of another.
  alignas(128) std::atomic<uint64_t> ticket_{0};
  alignas(128) std::atomic<int64_t> done_{0};  // indices of the region that are finished
  alignas(128) std::atomic<uint32_t> wake_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};

  // The region being worked on. Written by the caller while no index is out, published by ticket_.
  void* body_ = nullptr;
  Call call_ = nullptr;

  const int num_threads_;
  std::vector<std::thread> workers_;
};

}  // namespace treadle::ops::cpu
