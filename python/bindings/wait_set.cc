#include "wait_set.h"

#include <atomic>

namespace treadle::python {

WaitSet::~WaitSet() {
  for (auto& [id, stream] : streams_) stream->on_ready({});
}

uint64_t WaitSet::add(std::shared_ptr<Stream> stream) {
  std::lock_guard lock(mutex_);
  const uint64_t id = next_id_++;
  arm_locked(id, *stream);
  streams_.emplace(id, std::move(stream));
  return id;
}

void WaitSet::remove(uint64_t id) {
  std::shared_ptr<Stream> stream;  // let go after the lock: the last reference cancels the request
  std::lock_guard lock(mutex_);
  auto found = streams_.find(id);
  if (found == streams_.end()) return;
  stream = std::move(found->second);
  streams_.erase(found);
  stream->on_ready({});
}

void WaitSet::arm(uint64_t id) {
  std::lock_guard lock(mutex_);
  auto found = streams_.find(id);
  if (found != streams_.end()) arm_locked(id, *found->second);
}

void WaitSet::arm_announced() {
  std::lock_guard lock(mutex_);
  for (uint64_t id : std::exchange(announced_, {})) {
    auto found = streams_.find(id);
    if (found != streams_.end()) arm_locked(id, *found->second);
  }
}

std::vector<WaitSet::Event> WaitSet::take() {
  std::vector<Event> events;
  std::lock_guard lock(mutex_);
  for (uint64_t id : signal_->take()) {
    auto found = streams_.find(id);
    if (found == streams_.end()) continue;
    Stream& stream = *found->second;
    while (auto output = stream.try_next()) events.emplace_back(id, std::move(*output));
    if (stream.done()) {
      stream.on_ready({});
      streams_.erase(found);
    } else {
      announced_.push_back(id);
    }
  }
  return events;
}

size_t WaitSet::size() const {
  std::lock_guard lock(mutex_);
  return streams_.size();
}

void WaitSet::arm_locked(uint64_t id, Stream& stream) {
  stream.on_ready([signal = signal_, id, armed = std::make_shared<std::atomic<bool>>(true)] {
    if (armed->exchange(false)) signal->post(id);
  });
}

}  // namespace treadle::python
