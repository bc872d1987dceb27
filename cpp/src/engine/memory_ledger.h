// What an engine takes of its backend's memory, told when it does not suffice.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "ops/ops.h"
#include "treadle/error.h"

namespace treadle {

/// Bytes; what is not known yet is 0.
struct MemoryLedger {
  int64_t weights = 0;
  int64_t workspace = 0;
  int64_t kv_pool = 0;

  /// "cuda:0 has 9216 of 81559 MiB free; weights 15317, workspace 1180, KV pool 64 MiB".
  std::string text(const ops::Ops& ops) const;

  /// step(); an Error(kOutOfMemory) of it is told with the ledger and with what helps.
  template <typename Step>
  auto run(const ops::Ops& ops, const char* advice, Step step) const {
    try {
      return step();
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kOutOfMemory) throw;
      throw Error(ErrorCode::kOutOfMemory,
                  std::string(error.what()) + ". " + text(ops) + ". " + advice);
    }
  }
};

}  // namespace treadle
