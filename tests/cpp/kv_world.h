// A small world around KvCache for random tests: sequences, sessions and the content that a device
// would hold, all kept naively, with everything checked after every step.
//
// What a position's KV holds depends on every token up to it, so a slot's content is a hash of that
// prefix: a block that is reused for the wrong tokens, or overwritten while somebody else still
// needs it, shows at once.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kv/kv_cache.h"

namespace treadle::kv {

/// One step of a script. `op` chooses what happens, the others whom it happens to; all are taken
/// modulo what there is, so every script means something.
struct ScriptStep {
  uint16_t op, who, how_many, what;
};

class KvWorld {
 public:
  struct Options {
    int32_t num_blocks = 12;
    bool private_roots = false;  // as with enable_prefix_caching = false
    int32_t share_limit = std::numeric_limits<int32_t>::max();
  };

  explicit KvWorld(Options options);

  /// Runs a script; empty, or what went wrong and after which step.
  std::string run(std::span<const ScriptStep> script);
  /// Releases and forgets everything; empty, or what was left over.
  std::string finish();

  uint64_t num_reused() const { return num_reused_; }
  const KvCache& cache() const { return cache_; }

 private:
  struct Live {
    SequenceKv kv;
    std::vector<int32_t> ids;
    ContentKey root = kSharedRoot;
    SessionTail tail;
    int session = -1;
    bool keeps_history = false;
  };
  struct Conversation {
    std::vector<int32_t> ids;
    SessionTail tail;
    ContentKey root = kSharedRoot;
    bool busy = false;
  };
  using Prefix = std::pair<ContentKey, std::vector<int32_t>>;  // root, tokens up to a block's end

  void step(const ScriptStep& s);
  void start(const ScriptStep& s);
  void admit(std::unique_ptr<Live> live);
  bool compute(Live& live, int32_t count);  // false when it had to give way itself
  bool append(Live& live, int32_t token);
  void fork(const Live& parent);
  void preempt(Live& live);
  void end(Live& live);
  std::unique_ptr<Live> take(const Live& live);
  void rollback(Conversation& session, int32_t step);
  void forget(Conversation& session);

  // No sequence is longer than what fits when it is alone, as session_len sees to it.
  int32_t max_tokens() const { return options_.num_blocks * ops::kBlockTokens - 1; }
  bool make_room(Live& live, int32_t num_tokens);
  int32_t expected_match(const Live& live) const;
  bool tail_is_good(const Live& live, int32_t full) const;
  void check(const char* after);
  void fail(const std::string& what);

  const Options options_;
  KvCache cache_;
  std::vector<std::array<uint64_t, ops::kBlockTokens>> content_;  // [block][slot]
  std::vector<std::unique_ptr<Live>> live_;
  std::array<Conversation, 3> sessions_;
  std::map<Prefix, std::pair<BlockId, ContentKey>> known_;  // what the index ought to find
  uint64_t num_reused_ = 0;
  std::string failure_;
};

}  // namespace treadle::kv
