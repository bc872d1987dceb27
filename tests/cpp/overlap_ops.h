// The CPU backend behaving as a device does: results of a step arrive when it is waited for, steps
// can be queued behind a running one, and attention of decode tokens does the QKV operation's work.
#pragma once

#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "ops/ops.h"
#include "treadle/error.h"

namespace treadle::testing {

/// What download() took and wait() has not brought yet, by backend.
struct Downloads {
  struct Copy {
    void* to;
    std::vector<char> bytes;
  };
  uint64_t open = 1;
  std::map<uint64_t, std::vector<Copy>> batches;
  ops::Ops cpu;

  void arrive(uint64_t mark) {
    while (!batches.empty() && batches.begin()->first <= mark) {
      for (const Copy& copy : batches.begin()->second) {
        std::memcpy(copy.to, copy.bytes.data(), copy.bytes.size());
      }
      batches.erase(batches.begin());
    }
  }
};

/// Of one backend; each is used by one thread at a time.
inline Downloads& downloads(void* self, bool forget = false) {
  static std::mutex mutex;
  static std::map<void*, Downloads> all;
  static Downloads gone;
  const std::lock_guard lock(mutex);
  if (!forget) return all[self];
  all.erase(self);
  return gone;
}

inline ops::Ops overlap_ops(int32_t num_threads) {
  ops::Ops table = ops::cpu_ops(num_threads);
  downloads(table.self).cpu = table;
  table.download = [](void* self, void* to, const void* from, size_t bytes, ops::Stream) {
    Downloads& all = downloads(self);
    const char* begin = static_cast<const char*>(from);
    all.batches[all.open].push_back({to, std::vector<char>(begin, begin + bytes)});
    std::memset(to, 0x7f, bytes);  // to be noticed when read too early
  };
  table.mark = [](void* self, ops::Stream) { return downloads(self).open++; };
  table.wait = [](void* self, uint64_t mark) { downloads(self).arrive(mark); };
  table.synchronize = [](void* self, ops::Stream) {
    Downloads& all = downloads(self);
    all.arrive(all.open++);
  };
  table.attention_makes_qkv = [](void*, const ops::QkvParams& p, const ops::LinearWeight&) {
    return p.batch.num_decode == p.batch.num_tokens;
  };
  table.attention = [](void* self, const ops::AttentionParams& p, ops::Stream stream) {
    const ops::Ops& cpu = downloads(self).cpu;
    ops::AttentionParams rest = p;
    rest.qkv = nullptr;
    if (p.qkv != nullptr) {
      if (p.batch.num_decode != p.batch.num_tokens) {
        throw Error(ErrorCode::kInternal, "overlap_ops: prompt tokens with AttentionParams::qkv");
      }
      rest.q = p.qkv->q_out;
      cpu.qkv(self, *p.qkv, stream);
    } else if (p.batch.num_decode == p.batch.num_tokens) {
      throw Error(ErrorCode::kInternal, "overlap_ops: a decode step without AttentionParams::qkv");
    }
    cpu.attention(self, rest, stream);
  };
  table.destroy = [](void* self) {
    const ops::Ops cpu = downloads(self).cpu;
    downloads(self, true);
    cpu.destroy(self);
  };
  return table;
}

}  // namespace treadle::testing
