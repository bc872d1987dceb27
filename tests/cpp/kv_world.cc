#include "kv_world.h"

#include <algorithm>
#include <set>
#include <utility>

namespace treadle::kv {
namespace {

constexpr int32_t kTokens = ops::kBlockTokens;

// Hashes of all prefixes of `ids`, under a root: what the device would hold at each position.
std::vector<uint64_t> contents(std::span<const int32_t> ids) {
  std::vector<uint64_t> out;
  out.reserve(ids.size());
  uint64_t h = 0x9E3779B97F4A7C15ULL;
  for (const int32_t id : ids) {
    h = (h ^ static_cast<uint64_t>(id + 1)) * 0xD6E8FEB86659FD93ULL;
    h ^= h >> 29;
    out.push_back(h);
  }
  return out;
}

// Prompts share long beginnings and differ soon after: three texts, each with a switch point.
std::vector<int32_t> prompt(uint16_t what, uint16_t how_many) {
  std::vector<int32_t> ids(1 + how_many % (5 * kTokens));
  for (size_t i = 0; i < ids.size(); ++i) {
    const int32_t text = what % 3;
    const bool switched = i >= static_cast<size_t>(what / 3 % 7) * 48;
    ids[i] = switched ? 100 + text : text;
  }
  return ids;
}

}  // namespace

KvWorld::KvWorld(Options options)
    : options_(options),
      cache_(options.num_blocks),
      content_(static_cast<size_t>(options.num_blocks)) {}

void KvWorld::fail(const std::string& what) {
  if (failure_.empty()) failure_ = what;
}

std::string KvWorld::run(std::span<const ScriptStep> script) {
  for (size_t i = 0; i < script.size() && failure_.empty(); ++i) {
    step(script[i]);
    if (!failure_.empty()) failure_ += " (step " + std::to_string(i) + ")";
  }
  return failure_;
}

std::string KvWorld::finish() {
  while (!live_.empty() && failure_.empty()) end(*live_.back());
  for (Conversation& session : sessions_) forget(session);
  check("the end");
  if (cache_.pool().num_active() != 0) fail("blocks are active although nothing runs");
  return failure_;
}

void KvWorld::step(const ScriptStep& s) {
  Live* who = live_.empty() ? nullptr : live_[s.who % live_.size()].get();
  const int op = s.op % 16;
  if (op <= 3) {
    start(s);
  } else if (op == 4) {
    Conversation& session = sessions_[s.who % sessions_.size()];
    const auto length = static_cast<int32_t>(session.ids.size());
    if (!session.busy) rollback(session, s.how_many % (length + 1));
  } else if (op == 5) {
    Conversation& session = sessions_[s.who % sessions_.size()];
    // Nobody runs on a session's own root when the session is forgotten.
    const bool in_use = std::ranges::any_of(live_, [&](const auto& live) {
      return live->root != kSharedRoot && live->root == session.root;
    });
    if (!session.busy && !in_use) forget(session);
  } else if (who == nullptr) {
    return;
  } else if (op <= 8) {
    compute(*who, 1 + s.how_many % (3 * kTokens));
  } else if (op <= 11) {
    for (int i = 0; i < s.how_many % 80; ++i) {
      if (!append(*who, s.what % 2)) break;
    }
  } else if (op == 12) {
    fork(*who);
  } else if (op == 13) {
    preempt(*who);
  } else {
    end(*who);
  }
  check("the step");
}

void KvWorld::start(const ScriptStep& s) {
  auto live = std::make_unique<Live>();
  live->kv.share_limit = options_.share_limit;
  const size_t slot = s.who % (sessions_.size() + 1);
  if (slot < sessions_.size() && !sessions_[slot].busy) {
    Conversation& session = sessions_[slot];
    if (options_.private_roots && session.root == kSharedRoot) {
      session.root = cache_.new_private_root();
    }
    session.busy = true;
    live->session = static_cast<int>(slot);
    live->ids = session.ids;
    live->tail = session.tail;
    live->root = session.root;
  } else if (options_.private_roots) {
    live->root = cache_.new_private_root();
  }
  for (const int32_t id : prompt(s.what, s.how_many)) {
    if (static_cast<int32_t>(live->ids.size()) < max_tokens()) live->ids.push_back(id);
  }
  admit(std::move(live));
}

// Whether the session's tail must serve: it was not evicted and everything before it is there.
bool KvWorld::tail_is_good(const Live& live, int32_t full) const {
  const SessionTail& tail = live.tail;
  return tail.block != kNoBlock && cache_.pool().stamp(tail.block) == tail.stamp &&
         cache_.pool().state(tail.block) != BlockState::kFree &&
         !cache_.index().contains(tail.block) && tail.num_tokens / kTokens == full;
}

int32_t KvWorld::expected_match(const Live& live) const {
  const int32_t limit = std::min(static_cast<int32_t>(live.ids.size()) - 1, live.kv.share_limit);
  int32_t full = 0;
  while ((full + 1) * kTokens <= limit) {
    Prefix prefix{live.root, {live.ids.begin(), live.ids.begin() + (full + 1) * kTokens}};
    if (!known_.contains(prefix)) break;
    ++full;
  }
  if (tail_is_good(live, full))
    return std::max(full * kTokens, std::min(live.tail.num_tokens, limit));
  return full * kTokens;
}

void KvWorld::admit(std::unique_ptr<Live> live) {
  const int32_t expected = expected_match(*live);
  const int32_t found = cache_.match(live->ids, live->root, live->tail, live->kv);
  if (found != expected || found != live->kv.num_tokens) {
    return fail("match found " + std::to_string(found) + " tokens, expected " +
                std::to_string(expected));
  }
  if (found >= static_cast<int32_t>(live->ids.size())) return fail("nothing is left to compute");
  num_reused_ += static_cast<uint64_t>(found);
  if (make_room(*live, static_cast<int32_t>(live->ids.size()))) {
    live_.push_back(std::move(live));
    return;
  }
  if (live_.empty()) return fail("a sequence that is alone does not fit");
  cache_.release(live->kv, live->tail.block == kNoBlock ? nullptr : &live->tail);
  if (live->session >= 0) {
    sessions_[static_cast<size_t>(live->session)].busy = false;
    sessions_[static_cast<size_t>(live->session)].tail = live->tail;
  }
}

bool KvWorld::make_room(Live& live, int32_t num_tokens) {
  const int32_t needed = cache_.blocks_needed(live.kv, num_tokens);
  const int32_t available = cache_.pool().num_available();
  std::vector<BlockCopy> copies;
  const std::vector<BlockId> before = live.kv.blocks;
  const bool done = cache_.reserve(live.kv, num_tokens, copies);
  if (done != (needed <= available)) fail("reserve did not follow blocks_needed");
  if (!done && (live.kv.blocks != before || !copies.empty())) fail("a failed reserve left traces");
  if (done && available - cache_.pool().num_available() > needed) fail("reserve took too much");
  for (const auto& [src, dst] : copies) content_[dst] = content_[src];
  return done;
}

bool KvWorld::compute(Live& live, int32_t count) {
  const int32_t begin = live.kv.num_tokens;
  const int32_t until = std::min(begin + count, static_cast<int32_t>(live.ids.size()));
  if (until == begin) return true;
  while (!make_room(live, until)) {
    if (!failure_.empty()) return false;
    const bool self = &live == live_.back().get();
    end(*live_.back());
    if (self) return false;
  }
  const std::vector<uint64_t> hashes = contents(live.ids);
  for (int32_t p = begin; p < until; ++p) {
    const BlockId block = live.kv.blocks[p / kTokens];
    if (cache_.pool().references(block) != 1) fail("a shared block is written");
    if (cache_.index().contains(block)) fail("an indexed block is written");
    content_[block][p % kTokens] = hashes[p];
  }
  cache_.commit(live.kv, live.ids, until);
  for (int32_t full = 1; full * kTokens <= std::min(until, live.kv.share_limit); ++full) {
    const BlockId block = live.kv.blocks[full - 1];
    if (!cache_.index().contains(block)) fail("a full block is not in the index");
    known_[{live.root, {live.ids.begin(), live.ids.begin() + full * kTokens}}] = {
        block, cache_.index().key(block)};
  }
  return failure_.empty();
}

bool KvWorld::append(Live& live, int32_t token) {
  if (live.kv.num_tokens < static_cast<int32_t>(live.ids.size())) return false;
  if (live.kv.num_tokens >= max_tokens()) return false;
  live.ids.push_back(token);
  return compute(live, 1);
}

void KvWorld::fork(const Live& parent) {
  if (parent.kv.num_tokens == 0 || parent.kv.num_tokens >= max_tokens()) return;
  auto child = std::make_unique<Live>();
  child->ids.assign(parent.ids.begin(), parent.ids.begin() + parent.kv.num_tokens);
  child->root = parent.root;
  cache_.fork(parent.kv, child->kv);
  // It goes its own way, as sampled continuations do.
  child->ids.push_back(static_cast<int32_t>(200 + live_.size()));
  live_.push_back(std::move(child));
}

std::unique_ptr<KvWorld::Live> KvWorld::take(const Live& live) {
  const auto at = std::ranges::find(live_, &live, &std::unique_ptr<Live>::get);
  std::unique_ptr<Live> taken = std::move(*at);
  live_.erase(at);
  return taken;
}

void KvWorld::preempt(Live& which) {
  std::unique_ptr<Live> live = take(which);
  cache_.release(live->kv);
  live->tail = {};
  check("preemption");
  // It comes back at once when there is room, else never.
  if (failure_.empty()) admit(std::move(live));
}

void KvWorld::end(Live& which) {
  const std::unique_ptr<Live> live = take(which);
  const int32_t fed = live->kv.num_tokens;
  const bool keeps_history = live->session >= 0;
  SessionTail tail;
  cache_.release(live->kv, keeps_history ? &tail : nullptr);
  if (keeps_history) {
    Conversation& session = sessions_[static_cast<size_t>(live->session)];
    session.busy = false;
    const auto kept = std::max<size_t>(session.ids.size(), static_cast<size_t>(fed));
    session.ids.assign(live->ids.begin(), live->ids.begin() + static_cast<ptrdiff_t>(kept));
    session.tail = tail;
  }
  check("an end");
  // Nothing was evicted since: all that was computed is found again.
  SequenceKv again;
  again.share_limit = options_.share_limit;
  std::vector<int32_t> ids(live->ids.begin(), live->ids.begin() + fed);
  ids.push_back(7);
  const int32_t found = cache_.match(ids, live->root, tail, again);
  const bool whole = keeps_history && fed <= options_.share_limit;
  const int32_t least = whole ? fed : std::min(fed, options_.share_limit) / kTokens * kTokens;
  if (found < least) {
    fail("only " + std::to_string(found) + " of " + std::to_string(least) + " are found again");
  }
  cache_.release(again, keeps_history ? &tail : nullptr);
}

// What SessionTable::begin does with Request::step.
void KvWorld::rollback(Conversation& session, int32_t step) {
  if (step >= static_cast<int32_t>(session.ids.size())) return;
  session.ids.resize(static_cast<size_t>(step));
  if (step <= session.tail.num_tokens / kTokens * kTokens) {
    cache_.drop_tail(session.tail);
  } else {
    session.tail.num_tokens = std::min(session.tail.num_tokens, step);
  }
}

void KvWorld::forget(Conversation& session) {
  cache_.drop_tail(session.tail);
  if (session.root != kSharedRoot) cache_.drop_private(session.ids, session.root);
  session = {};
}

void KvWorld::check(const char* after) {
  if (!failure_.empty()) return;
  const BlockPool& pool = cache_.pool();
  if (const std::string broken = pool.check_invariants(); !broken.empty()) {
    return fail(broken + " after " + after);
  }
  std::vector<int32_t> holders(static_cast<size_t>(pool.size()), 0);
  for (const std::unique_ptr<Live>& entry : live_) {
    const Live& live = *entry;
    const std::set<BlockId> distinct(live.kv.blocks.begin(), live.kv.blocks.end());
    if (distinct.size() != live.kv.blocks.size()) return fail("a sequence holds a block twice");
    for (const BlockId block : live.kv.blocks) ++holders[block];
    if (static_cast<int32_t>(live.kv.blocks.size()) < blocks_for(live.kv.num_tokens)) {
      return fail("a sequence has fewer blocks than tokens need");
    }
    const std::vector<uint64_t> hashes = contents(live.ids);
    for (int32_t p = 0; p < live.kv.num_tokens; ++p) {
      if (content_[live.kv.blocks[p / kTokens]][p % kTokens] != hashes[p]) {
        return fail("position " + std::to_string(p) + " of a sequence holds something else");
      }
    }
  }
  size_t indexed = 0;
  for (BlockId block = 0; block < pool.size(); ++block) {
    if (pool.references(block) != holders[block]) {
      return fail("block " + std::to_string(block) + " has " +
                  std::to_string(pool.references(block)) + " references and " +
                  std::to_string(holders[block]) + " holders");
    }
    const bool in_index = cache_.index().contains(block);
    indexed += in_index ? 1 : 0;
    if (in_index && pool.state(block) == BlockState::kFree) return fail("a free block is indexed");
  }
  if (cache_.index().size() != indexed) return fail("the index counts wrongly");
  // What was evicted or dropped is not to be found any more; all else is.
  std::erase_if(known_, [&](const auto& entry) {
    const auto& [block, key] = entry.second;
    return !cache_.index().contains(block) || cache_.index().key(block) != key;
  });
  // Deepest first: a block never outlives the one before it.
  for (const auto& [prefix, holder] : known_) {
    const auto& [root, ids] = prefix;
    if (root != kSharedRoot || ids.size() == kTokens) continue;
    if (!known_.contains({root, {ids.begin(), ids.end() - kTokens}})) {
      return fail("block " + std::to_string(holder.first) + " outlived the one before it");
    }
  }
}

}  // namespace treadle::kv
