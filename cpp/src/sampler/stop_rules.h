// When a continuation ends, and which of its tokens may be shown before that.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "treadle/request.h"

namespace treadle::sampler {

/// A request's stop conditions as an Aho-Corasick automaton over token ids (Aho and Corasick,
/// 1975), built once and shared by its n continuations. Immutable.
class StopTable {
 public:
  /// `params` has passed validate(). `eos_token_ids`: the model's own end tokens, not used with
  /// ignore_eos.
  StopTable(const SamplingParams& params, std::span<const int32_t> eos_token_ids);

  int32_t min_new_tokens() const { return min_new_tokens_; }
  int32_t max_new_tokens() const { return max_new_tokens_; }
  bool is_end_token(int32_t token) const;

  /// Nodes are prefixes of stop words; node 0 is the empty one.
  int32_t next(int32_t node, int32_t token) const;
  /// Length of the longest stop word that ends the text read, 0 when none does.
  int32_t matched(int32_t node) const { return nodes_[node].matched; }
  /// Length of the longest end of the text read that could still grow into a stop word.
  int32_t held(int32_t node) const { return nodes_[node].held; }

 private:
  struct Node {
    int32_t fail = 0;  // the longest proper suffix that is a node, too
    int32_t matched = 0;
    int32_t held = 0;
  };
  struct Edge {
    int32_t node, token, child;
  };
  int32_t child(int32_t node, int32_t token) const;  // -1 when there is none

  int32_t min_new_tokens_ = 0;
  int32_t max_new_tokens_ = 0;
  std::vector<int32_t> end_tokens_;  // sorted
  std::vector<Node> nodes_;
  std::vector<Edge> edges_;  // sorted by (node, token)
};

struct StopDecision {
  /// How many of the pending tokens, oldest first, may go out now.
  int32_t emit_count = 0;
  /// kNone, kStop or kLength. Unless kNone, pending tokens beyond emit_count are the stop token or
  /// sequence itself and are dropped.
  FinishReason finish = FinishReason::kNone;
};

/// The stop rules of one continuation. The caller keeps the pending tokens, those not shown yet:
///
///     pending.push_back(token);
///     StopDecision d = rules.feed(token);
///     // show the first d.emit_count of pending and remove them; end when d.finish says so
///
/// The output ends with kStop at an end token or as soon as a stop word is complete (the longest of
/// those that end there), else with kLength at max_new_tokens, when everything pending goes out.
/// Stop words match within the output only. A token that comes while fewer than min_new_tokens were
/// generated before it never ends the output with kStop. Copyable, so that a continuation can fork.
class StopRules {
 public:
  explicit StopRules(std::shared_ptr<const StopTable> table);

  /// Takes the next generated token. Not to be called again once it finished.
  StopDecision feed(int32_t token);

  /// For an end that comes from outside (session_len, cancel, deadline): how many pending tokens
  /// there are; all of them may go out. Pending is empty afterwards.
  int32_t flush();

  int32_t pending() const { return pending_; }
  int32_t generated() const { return generated_; }  ///< tokens fed, the stop token included
  /// Tokens that may still be fed.
  int32_t remaining() const { return table_->max_new_tokens() - generated_; }

 private:
  std::shared_ptr<const StopTable> table_;
  int32_t node_ = 0;
  int32_t pending_ = 0;
  int32_t generated_ = 0;
};

}  // namespace treadle::sampler
