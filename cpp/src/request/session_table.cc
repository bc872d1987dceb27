#include "request/session_table.h"

#include <algorithm>
#include <string>
#include <utility>

#include "request/output_channel.h"

namespace treadle {
namespace {

[[noreturn]] void throw_unknown(uint64_t id) {
  throw Error(ErrorCode::kUnknownSession,
              "session " + std::to_string(id) +
                  " is unknown: it was never started, was ended or has expired");
}

}  // namespace

void check_prompt_fits(int64_t history_len, int64_t prompt_len, int32_t session_len) {
  if (history_len + prompt_len < session_len) return;
  std::string what = "the prompt is too long: ";
  if (history_len > 0) what += std::to_string(history_len) + " tokens of session history and ";
  what += std::to_string(prompt_len) +
          " in input_ids leave no room for output in session_len = " + std::to_string(session_len);
  throw Error(ErrorCode::kTooLong, what);
}

void SessionTable::check_fits(const Session* session, const Request& request) const {
  int64_t history = session == nullptr || request.session_mode == SessionMode::kStart
                        ? 0
                        : static_cast<int64_t>(session->ids.size());
  if (request.step) {
    if (*request.step < 0 || *request.step > history) {
      throw Error(ErrorCode::kInvalidArgument,
                  "step = " + std::to_string(*request.step) +
                      " must lie between 0 and the length of the session's history, " +
                      std::to_string(history));
    }
    history = *request.step;
  }
  check_prompt_fits(history, static_cast<int64_t>(request.input_ids.size()), session_len_);
}

std::shared_ptr<Session> SessionTable::enter(const Request& request,
                                             const std::shared_ptr<OutputChannel>& channel) {
  const uint64_t id = *request.session_id;
  std::lock_guard lock(mutex_);
  const auto found = sessions_.find(id);
  std::shared_ptr<Session> session = found == sessions_.end() ? nullptr : found->second;
  if (!session && request.session_mode == SessionMode::kContinue) throw_unknown(id);
  if (!session || session->num_requests == 0) check_fits(session.get(), request);
  if (!session) {
    if (static_cast<int32_t>(sessions_.size()) >= max_sessions_) {
      if (idle_.empty()) {
        throw Error(ErrorCode::kQueueFull, "all max_sessions = " + std::to_string(max_sessions_) +
                                               " sessions are busy; try again later");
      }
      forget_locked(idle_.front());
    }
    session = std::make_shared<Session>();
    session->id = id;
    sessions_.emplace(id, session);
  } else if (session->num_requests == 0) {
    idle_.erase(session->idle);
  }
  ++session->num_requests;
  session->requests.push_back(channel);
  return session;
}

std::vector<int32_t> SessionTable::begin(Session& session, const Request& request,
                                         kv::KvCache& kv) {
  std::lock_guard lock(mutex_);
  if (session.ended && request.session_mode == SessionMode::kContinue) throw_unknown(session.id);
  check_fits(&session, request);
  session.ended = false;
  if (request.session_mode == SessionMode::kStart) {
    session.ids.clear();
    kv.drop_tail(session.tail);
  }
  if (request.step && *request.step < static_cast<int32_t>(session.ids.size())) {
    const int32_t step = *request.step;
    session.ids.resize(static_cast<size_t>(step));
    // The tail's first position is that of its block; with nothing left in it, it is of no use.
    if (step <= session.tail.num_tokens / ops::kBlockTokens * ops::kBlockTokens) {
      kv.drop_tail(session.tail);
    } else {
      session.tail.num_tokens = std::min(session.tail.num_tokens, step);
    }
  }
  std::vector<int32_t> ids;
  ids.reserve(session.ids.size() + request.input_ids.size());
  ids = session.ids;
  ids.insert(ids.end(), request.input_ids.begin(), request.input_ids.end());
  return ids;
}

void SessionTable::end(const std::shared_ptr<Session>& session, const OutputChannel* channel,
                       std::vector<int32_t> ids, kv::SessionTail tail, bool forget) {
  std::lock_guard lock(mutex_);
  if (!ids.empty()) {
    session->ids = std::move(ids);
    session->tail = tail;
  }
  std::erase_if(session->requests, [channel](const std::weak_ptr<OutputChannel>& weak) {
    const auto live = weak.lock();
    return !live || live.get() == channel;
  });
  --session->num_requests;
  if (session->forgotten) {
    if (session->num_requests == 0) forgotten_.push_back(session);
    return;
  }
  if (session->num_requests == 0) {
    session->idle_since = Clock::now();
    session->idle = idle_.insert(idle_.end(), session);
  }
  if (!forget) return;
  if (session->num_requests == 0) {
    forget_locked(session);
  } else {  // later requests of the session are in line: they begin afresh
    session->ids.clear();
    session->tail = {};
    session->ended = true;
  }
}

// By value: the caller's pointer may be in the very lists below.
void SessionTable::forget_locked(std::shared_ptr<Session> session) {
  session->forgotten = true;
  sessions_.erase(session->id);
  for (const auto& weak : session->requests) {
    if (const auto channel = weak.lock()) channel->cancel();
  }
  if (session->num_requests == 0) {
    idle_.erase(session->idle);
    forgotten_.push_back(std::move(session));
  }
}

bool SessionTable::cancel(uint64_t id) {
  std::lock_guard lock(mutex_);
  const auto found = sessions_.find(id);
  if (found == sessions_.end()) return false;
  bool any = false;
  for (const auto& weak : found->second->requests) {
    if (const auto channel = weak.lock()) {
      channel->cancel();
      any = true;
    }
  }
  return any;
}

bool SessionTable::forget(uint64_t id) {
  std::lock_guard lock(mutex_);
  const auto found = sessions_.find(id);
  if (found == sessions_.end()) return false;
  forget_locked(found->second);
  return true;
}

std::optional<SessionInfo> SessionTable::info(uint64_t id) const {
  std::lock_guard lock(mutex_);
  const auto found = sessions_.find(id);
  if (found == sessions_.end()) return std::nullopt;
  return SessionInfo{
      .session_id = id, .token_ids = found->second->ids, .busy = found->second->num_requests > 0};
}

int32_t SessionTable::size() const {
  std::lock_guard lock(mutex_);
  return static_cast<int32_t>(sessions_.size());
}

Clock::time_point SessionTable::expire(Clock::time_point now) {
  const auto ttl =
      std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(ttl_s_));
  std::lock_guard lock(mutex_);
  while (!idle_.empty() && idle_.front()->idle_since + ttl <= now) forget_locked(idle_.front());
  return idle_.empty() ? Clock::time_point::max() : idle_.front()->idle_since + ttl;
}

std::vector<std::shared_ptr<Session>> SessionTable::take_forgotten() {
  std::lock_guard lock(mutex_);
  return std::exchange(forgotten_, {});
}

}  // namespace treadle
