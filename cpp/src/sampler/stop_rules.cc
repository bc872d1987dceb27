#include "sampler/stop_rules.h"

#include <algorithm>
#include <map>
#include <utility>

namespace treadle::sampler {

StopTable::StopTable(const SamplingParams& params, std::span<const int32_t> eos_token_ids)
    : min_new_tokens_(params.min_new_tokens),
      max_new_tokens_(params.max_new_tokens),
      end_tokens_(params.stop_token_ids) {
  if (!params.ignore_eos) {
    end_tokens_.insert(end_tokens_.end(), eos_token_ids.begin(), eos_token_ids.end());
  }
  std::sort(end_tokens_.begin(), end_tokens_.end());

  // The trie. Children get higher numbers than their parents, but not breadth first.
  std::map<std::pair<int32_t, int32_t>, int32_t> trie;
  nodes_.emplace_back();
  for (const auto& word : params.stop_words) {
    int32_t node = 0;
    for (const int32_t token : word) {
      const auto [it, added] = trie.try_emplace({node, token}, static_cast<int32_t>(nodes_.size()));
      if (added) nodes_.emplace_back();
      node = it->second;
    }
    nodes_[node].matched = static_cast<int32_t>(word.size());
  }
  edges_.reserve(trie.size());
  for (const auto& [from, to] : trie) edges_.push_back({from.first, from.second, to});

  // Breadth first, so that a node's suffixes, which are shorter, are ready before it.
  std::vector<std::pair<int32_t, int32_t>> level{{0, 0}};  // (node, length of its prefix)
  for (size_t i = 0; i < level.size(); ++i) {
    const auto [node, length] = level[i];
    const auto first = std::lower_bound(edges_.begin(), edges_.end(), node,
                                        [](const Edge& e, int32_t n) { return e.node < n; });
    for (auto e = first; e != edges_.end() && e->node == node; ++e) {
      Node& to = nodes_[e->child];
      if (node != 0) to.fail = next(nodes_[node].fail, e->token);
      if (to.matched == 0) to.matched = nodes_[to.fail].matched;
      level.emplace_back(e->child, length + 1);
    }
    const bool inner = first != edges_.end() && first->node == node;
    nodes_[node].held = inner ? length : nodes_[nodes_[node].fail].held;
  }
}

bool StopTable::is_end_token(int32_t token) const {
  return std::binary_search(end_tokens_.begin(), end_tokens_.end(), token);
}

int32_t StopTable::child(int32_t node, int32_t token) const {
  const auto e = std::lower_bound(edges_.begin(), edges_.end(), std::pair{node, token},
                                  [](const Edge& a, const auto& b) {
                                    return std::pair{a.node, a.token} < b;
                                  });
  return e != edges_.end() && e->node == node && e->token == token ? e->child : -1;
}

int32_t StopTable::next(int32_t node, int32_t token) const {
  if (edges_.empty()) return 0;
  for (;;) {
    const int32_t to = child(node, token);
    if (to >= 0) return to;
    if (node == 0) return 0;
    node = nodes_[node].fail;
  }
}

StopRules::StopRules(std::shared_ptr<const StopTable> table) : table_(std::move(table)) {}

StopDecision StopRules::feed(int32_t token) {
  const bool may_stop = generated_ >= table_->min_new_tokens();
  ++generated_;
  ++pending_;
  node_ = table_->next(node_, token);

  StopDecision decision;
  if (may_stop && table_->is_end_token(token)) {
    decision = {pending_ - 1, FinishReason::kStop};
  } else if (may_stop && table_->matched(node_) > 0) {
    decision = {pending_ - table_->matched(node_), FinishReason::kStop};
  } else if (generated_ >= table_->max_new_tokens()) {
    decision = {pending_, FinishReason::kLength};
  } else {
    decision = {pending_ - table_->held(node_), FinishReason::kNone};
  }
  pending_ = decision.finish == FinishReason::kNone ? table_->held(node_) : 0;
  return decision;
}

int32_t StopRules::flush() {
  node_ = 0;  // what is shown cannot be part of a stop word any more
  return std::exchange(pending_, 0);
}

}  // namespace treadle::sampler
