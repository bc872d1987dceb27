// The sessions: their histories, who is busy with them, and when they are forgotten.
//
// Thread safe. Callers look sessions up when they submit; the engine thread begins and ends their
// requests. What needs the KV cache (freeing a forgotten session's blocks) is left for the engine
// thread in take_forgotten().
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "kv/kv_cache.h"
#include "request/inbox.h"
#include "treadle/engine.h"

namespace treadle {

struct Session {
  uint64_t id = 0;
  std::vector<int32_t> ids;  // history: everything that was fed or generated
  kv::SessionTail tail;
  kv::ContentKey root = kv::kSharedRoot;
  bool has_root = false;
  bool ended = false;      // by a request with end_session, while others were in line behind it
  bool forgotten = false;  // not in the table any more; lives on while a request holds it
  std::vector<std::weak_ptr<OutputChannel>> requests;  // submitted and not ended
  int32_t num_requests = 0;
  // Engine thread only.
  bool running = false;
  std::list<Submission> behind;  // wait for the running one, in submission order
  // Place among the idle sessions, longest idle first, while num_requests == 0.
  std::list<std::shared_ptr<Session>>::iterator idle;
  Clock::time_point idle_since{};
};

class SessionTable {
 public:
  SessionTable(int32_t max_sessions, double ttl_s, int32_t session_len)
      : max_sessions_(max_sessions), ttl_s_(ttl_s), session_len_(session_len) {}

  /// Finds or creates the request's session and counts the request in. Throws Error:
  /// kUnknownSession, kInvalidArgument (step), kTooLong, kQueueFull (every session is busy).
  /// What depends on requests still running is checked by begin() instead.
  std::shared_ptr<Session> enter(const Request& request,
                                 const std::shared_ptr<OutputChannel>& channel);

  /// Engine thread, when a request of the session starts: applies session_mode and step, and
  /// returns history + input_ids. Throws Error as enter() does.
  std::vector<int32_t> begin(Session& session, const Request& request, kv::KvCache& kv);

  /// Engine thread, when a request of the session has ended: keeps `ids` and `tail` as its history
  /// (nothing changes when ids is empty), and forgets the session when asked to.
  void end(const std::shared_ptr<Session>& session, const OutputChannel* channel,
           std::vector<int32_t> ids, kv::SessionTail tail, bool forget);

  bool cancel(uint64_t id);
  bool forget(uint64_t id);
  std::optional<SessionInfo> info(uint64_t id) const;
  int32_t size() const;

  /// Forgets what is idle for longer than the TTL; returns when the next one will be.
  Clock::time_point expire(Clock::time_point now);
  /// Forgotten sessions whose blocks the engine thread must give back. Each is returned once.
  std::vector<std::shared_ptr<Session>> take_forgotten();

 private:
  void check_fits(const Session* session, const Request& request) const;
  void forget_locked(std::shared_ptr<Session> session);

  const int32_t max_sessions_;
  const double ttl_s_;
  const int32_t session_len_;
  mutable std::mutex mutex_;
  std::unordered_map<uint64_t, std::shared_ptr<Session>> sessions_;
  std::list<std::shared_ptr<Session>> idle_;
  std::vector<std::shared_ptr<Session>> forgotten_;
};

/// Throws kTooLong unless history_len + prompt_len < session_len (one token must still fit).
void check_prompt_fits(int64_t history_len, int64_t prompt_len, int32_t session_len);

}  // namespace treadle
