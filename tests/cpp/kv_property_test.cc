// Searches for a script of KV cache steps that breaks a promise, and shrinks what it finds.
// More scripts: RC_PARAMS="max_success=10000".
#include <vector>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "kv_world.h"

namespace treadle::kv {
namespace {

void hold(const std::vector<std::array<uint16_t, 4>>& steps, KvWorld::Options options) {
  std::vector<ScriptStep> script;
  for (const auto& [op, who, how_many, what] : steps) script.push_back({op, who, how_many, what});
  KvWorld world(options);
  RC_ASSERT(world.run(script) == "");
  RC_ASSERT(world.finish() == "");
}

std::vector<std::array<uint16_t, 4>> script() {
  // Plain numbers of the whole range: rapidcheck's own ones stay small while it warms up.
  return *rc::gen::resize(
      100, rc::gen::container<std::vector<std::array<uint16_t, 4>>>(
               rc::gen::container<std::array<uint16_t, 4>>(rc::gen::inRange<uint16_t>(0, 4096))));
}

RC_GTEST_PROP(KvProperties, TinyPool, ()) { hold(script(), {.num_blocks = 4}); }

RC_GTEST_PROP(KvProperties, SmallPool, ()) { hold(script(), {.num_blocks = 11}); }

RC_GTEST_PROP(KvProperties, PrivateRoots, ()) {
  hold(script(), {.num_blocks = 9, .private_roots = true});
}

RC_GTEST_PROP(KvProperties, ShareLimit, ()) {
  hold(script(), {.num_blocks = 9, .share_limit = *rc::gen::inRange(0, 300)});
}

}  // namespace
}  // namespace treadle::kv
