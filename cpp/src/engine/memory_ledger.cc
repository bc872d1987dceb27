#include "engine/memory_ledger.h"

namespace treadle {

std::string MemoryLedger::text(const ops::Ops& ops) const {
  const auto mebibytes = [](auto bytes) { return std::to_string(bytes >> 20); };
  return std::string(ops.name) + " has " + mebibytes(ops.free_memory(ops.self)) + " of " +
         mebibytes(ops.total_memory(ops.self)) + " MiB free; weights " + mebibytes(weights) +
         ", workspace " + mebibytes(workspace) + ", KV pool " + mebibytes(kv_pool) + " MiB";
}

}  // namespace treadle
