// The thread-safe door of the engine: submissions go in, the engine thread takes them out.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "treadle/request.h"

namespace treadle {

class OutputChannel;
struct Session;

using Clock = std::chrono::steady_clock;

/// A request that passed validation, on its way to the engine thread.
struct Submission {
  Request request;
  std::shared_ptr<OutputChannel> channel;
  std::shared_ptr<Session> session;  // null for requests without one
  Clock::time_point submitted{};
  uint64_t order = 0;  // submission order, the tie-break within a priority
};

class Inbox {
 public:
  explicit Inbox(int32_t max_waiting) : max_waiting_(max_waiting) {}

  /// Takes a place in the waiting line. Throws Error: kQueueFull with the numbers, or the cause the
  /// inbox was closed with. The place is given back by left_line() once the request runs or ends.
  void enter_line();
  void left_line();
  int32_t waiting() const;

  /// Throws the closing cause when the engine thread is gone.
  void push(Submission submission);
  /// Something outside the submissions changed (a cancellation, a session's end): the engine looks.
  void poke();
  /// No more submissions: enter_line() throws this from now on. The first cause stays.
  void close(ErrorCode code, std::string cause);

  /// What still came in after close(); afterwards push() throws. The engine thread's last call.
  std::vector<Submission> finish();

  struct Taken {
    std::vector<Submission> submissions;
    bool poked = false;
    bool closed = false;
  };
  /// What came since the last call. Sleeps until there is something, or until `deadline`, when
  /// `may_sleep`.
  Taken take(bool may_sleep, Clock::time_point deadline);

 private:
  const int32_t max_waiting_;
  mutable std::mutex mutex_;
  std::condition_variable arrived_;
  std::vector<Submission> submissions_;
  int32_t waiting_ = 0;
  uint64_t next_order_ = 0;
  bool poked_ = false;
  bool finished_ = false;
  ErrorCode closed_code_ = ErrorCode::kOk;
  std::string closed_cause_;
};

}  // namespace treadle
