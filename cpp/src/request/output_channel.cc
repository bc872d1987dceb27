#include "request/output_channel.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace treadle {
namespace {

template <typename T>
void append(std::vector<T>& to, std::vector<T>&& from) {
  to.insert(to.end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
}

void merge(Output& into, Output&& later) {
  append(into.token_ids, std::move(later.token_ids));
  append(into.logprobs, std::move(later.logprobs));
  append(into.prompt_logprobs, std::move(later.prompt_logprobs));
  into.finish_reason = later.finish_reason;
  into.error = later.error;
  into.error_message = std::move(later.error_message);
  into.usage = later.usage;
}

}  // namespace

void OutputChannel::push(Output output) {
  std::lock_guard lock(mutex_);
  if (output.finish_reason != FinishReason::kNone && --unfinished_ == 0) finished_ = true;
  const auto unread = std::ranges::find(unread_, output.index, &Output::index);
  if (unread == unread_.end()) {
    unread_.push_back(std::move(output));
  } else {
    merge(*unread, std::move(output));
  }
  if (readers_waiting_ > 0) arrived_.notify_all();
  // Under the lock, so that on_ready({}) waits for a callback that is running.
  if (!callback_) return;
  try {
    callback_();
  } catch (...) {
    // It must not throw; when it does all the same, that is nothing the other requests should feel.
  }
}

std::optional<Output> OutputChannel::pop_locked() {
  if (unread_.empty()) return std::nullopt;
  std::optional<Output> output(std::move(unread_.front()));
  unread_.erase(unread_.begin());
  return output;
}

std::optional<Output> OutputChannel::next(std::optional<Clock::time_point> deadline) {
  std::unique_lock lock(mutex_);
  const auto ready = [this] { return !unread_.empty() || unfinished_ == 0; };
  ++readers_waiting_;
  if (deadline) {
    arrived_.wait_until(lock, *deadline, ready);
  } else {
    arrived_.wait(lock, ready);
  }
  --readers_waiting_;
  return pop_locked();
}

std::optional<Output> OutputChannel::try_next() {
  std::lock_guard lock(mutex_);
  return pop_locked();
}

bool OutputChannel::done() const {
  std::lock_guard lock(mutex_);
  return unfinished_ == 0 && unread_.empty();
}

void OutputChannel::cancel() {
  if (finished_.load()) return;  // letting go of a finished stream wakes nobody
  if (!cancelled_.exchange(true)) inbox_->poke();
}

void OutputChannel::on_ready(std::function<void()> callback) {
  std::lock_guard lock(mutex_);
  callback_ = std::move(callback);
  if (callback_ && (!unread_.empty() || unfinished_ == 0)) callback_();
}

Stream::Stream(std::shared_ptr<OutputChannel> channel) : channel_(std::move(channel)) {}
Stream::Stream(Stream&&) noexcept = default;

Stream& Stream::operator=(Stream&& other) noexcept {
  if (this != &other) {
    if (channel_) channel_->cancel();
    channel_ = std::move(other.channel_);
  }
  return *this;
}

Stream::~Stream() {
  if (!channel_) return;
  channel_->on_ready({});
  channel_->cancel();
}

std::optional<Output> Stream::next() { return channel_->next(std::nullopt); }

std::optional<Output> Stream::next_for(double seconds) {
  // Ten years: far from where time points overflow. Not a number is no time at all.
  const double bounded = seconds > 0.0 ? std::min(seconds, 3.2e8) : 0.0;
  return channel_->next(Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                           std::chrono::duration<double>(bounded)));
}

std::optional<Output> Stream::try_next() { return channel_->try_next(); }
bool Stream::done() const { return channel_->done(); }
void Stream::cancel() { channel_->cancel(); }
void Stream::on_ready(std::function<void()> callback) { channel_->on_ready(std::move(callback)); }

}  // namespace treadle
