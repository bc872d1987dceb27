#include "request/inbox.h"

#include <utility>

#include "request/output_channel.h"

namespace treadle {

void Inbox::enter_line() {
  std::lock_guard lock(mutex_);
  if (closed_code_ != ErrorCode::kOk) throw Error(closed_code_, closed_cause_);
  if (waiting_ >= max_waiting_) {
    throw Error(ErrorCode::kQueueFull, "queue full: " + std::to_string(waiting_) +
                                           " requests are waiting and max_queue_size is " +
                                           std::to_string(max_waiting_) + "; try again later");
  }
  ++waiting_;
}

void Inbox::left_line() {
  std::lock_guard lock(mutex_);
  --waiting_;
}

int32_t Inbox::waiting() const {
  std::lock_guard lock(mutex_);
  return waiting_;
}

void Inbox::push(Submission submission) {
  {
    std::lock_guard lock(mutex_);
    if (finished_) throw Error(closed_code_, closed_cause_);
    submission.order = next_order_++;
    submissions_.push_back(std::move(submission));
  }
  arrived_.notify_one();
}

void Inbox::poke() {
  {
    std::lock_guard lock(mutex_);
    poked_ = true;
  }
  arrived_.notify_one();
}

void Inbox::close(ErrorCode code, std::string cause) {
  {
    std::lock_guard lock(mutex_);
    if (closed_code_ == ErrorCode::kOk) {
      closed_code_ = code;
      closed_cause_ = std::move(cause);
    }
    poked_ = true;
  }
  arrived_.notify_one();
}

std::vector<Submission> Inbox::finish() {
  std::lock_guard lock(mutex_);
  finished_ = true;
  return std::exchange(submissions_, {});
}

Inbox::Taken Inbox::take(bool may_sleep, Clock::time_point deadline) {
  std::unique_lock lock(mutex_);
  if (may_sleep) {
    // Once closed there is nothing to wait for: the loop ends when its last request has.
    const auto something = [this] {
      return poked_ || !submissions_.empty() || closed_code_ != ErrorCode::kOk;
    };
    if (deadline == Clock::time_point::max()) {
      arrived_.wait(lock, something);
    } else {
      arrived_.wait_until(lock, deadline, something);
    }
  }
  Taken taken{.submissions = std::exchange(submissions_, {}),
              .poked = std::exchange(poked_, false),
              .closed = closed_code_ != ErrorCode::kOk};
  return taken;
}

}  // namespace treadle
