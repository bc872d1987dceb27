// What the engine's thread touches when an output arrives: a list of ids, a condition variable for
// a waiting thread and, on request, a file descriptor for an event loop. Never the GIL.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <vector>

namespace treadle::python {

class ReadySignal {
 public:
  /// With `with_fd`, fileno() becomes readable while ids are waiting. Throws Error when the system
  /// has no descriptor left.
  explicit ReadySignal(bool with_fd);
  ~ReadySignal();
  ReadySignal(const ReadySignal&) = delete;
  ReadySignal& operator=(const ReadySignal&) = delete;

  void post(uint64_t id) noexcept;
  /// True as soon as an id is waiting, false at `until`.
  bool wait_until(std::chrono::steady_clock::time_point until);
  /// Takes all waiting ids and makes fileno() unreadable.
  std::vector<uint64_t> take();
  int fileno() const { return read_fd_; }

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::vector<uint64_t> ready_;
  int read_fd_ = -1;  // the same descriptor as write_fd_ where eventfd exists
  int write_fd_ = -1;
};

}  // namespace treadle::python
