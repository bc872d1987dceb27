// The engine's end of a Stream. Outputs that the reader has not taken yet are merged, so a slow
// reader costs memory only for its own tokens and never holds up the loop.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "request/inbox.h"
#include "treadle/request.h"

namespace treadle {

class OutputChannel {
 public:
  /// `continuations` outputs with a finish reason end the stream.
  OutputChannel(int32_t continuations, std::shared_ptr<Inbox> inbox)
      : inbox_(std::move(inbox)), unfinished_(continuations) {}

  // Engine thread.
  void push(Output output);
  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }

  // Any thread; what Stream offers.
  std::optional<Output> next(std::optional<Clock::time_point> deadline);
  std::optional<Output> try_next();
  bool done() const;
  void cancel();
  void on_ready(std::function<void()> callback);

 private:
  std::optional<Output> pop_locked();

  const std::shared_ptr<Inbox> inbox_;
  std::atomic<bool> cancelled_{false};
  std::atomic<bool> finished_{false};  // unfinished_ == 0, for those who must not wait for the lock

  mutable std::mutex mutex_;
  std::condition_variable arrived_;
  int32_t readers_waiting_ = 0;
  std::vector<Output> unread_;  // at most one per continuation
  int32_t unfinished_;
  std::function<void()> callback_;
};

}  // namespace treadle
