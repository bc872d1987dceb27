// WaitSet: waits on the streams of many requests at once, from a thread or from an event loop.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include <treadle/request.h>

#include "ready_signal.h"

namespace treadle::python {

/// A stream is armed when its next output shall be announced. Announcing disarms it, so that a
/// reader that takes its time is not woken for every token: unread outputs are merged meanwhile.
class WaitSet {
 public:
  using Event = std::pair<uint64_t, Output>;

  explicit WaitSet(bool with_fd) : signal_(std::make_shared<ReadySignal>(with_fd)) {}
  ~WaitSet();

  /// Watches a stream, armed; the id names it in events.
  uint64_t add(std::shared_ptr<Stream> stream);
  /// Stops watching. Does not cancel. Unknown ids are ignored.
  void remove(uint64_t id);
  void arm(uint64_t id);
  /// Arms every stream that was announced since the last call.
  void arm_announced();
  /// Outputs of all announced streams, in order of announcement. Streams that are done leave the
  /// set.
  std::vector<Event> take();
  size_t size() const;

  ReadySignal& signal() { return *signal_; }

 private:
  void arm_locked(uint64_t id, Stream& stream);

  std::shared_ptr<ReadySignal> signal_;  // shared with the callbacks on the engine's thread
  mutable std::mutex mutex_;
  uint64_t next_id_ = 0;
  std::unordered_map<uint64_t, std::shared_ptr<Stream>> streams_;
  std::vector<uint64_t> announced_;
};

}  // namespace treadle::python
