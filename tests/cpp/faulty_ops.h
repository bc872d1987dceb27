// The CPU backend with faults: any of its operations can be made to throw, or logits to be damaged.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <string>

#include "engine/factory.h"
#include "engine_testing.h"
#include "ops/ops.h"
#include "treadle/error.h"

namespace treadle::testing {

/// What goes wrong, and when. One at a time: the table's functions have nowhere else to look.
struct Faults {
  enum class Kind { kDevice, kOutOfMemory, kBadAlloc, kUnknown };

  std::atomic<int64_t> calls{0};              // of operations, so far
  std::atomic<int64_t> fail_at{0};            // the call that throws; 0 = none
  std::atomic<const char*> fail_in{nullptr};  // every call of this operation throws
  std::atomic<bool> sticky{false};            // so does every call after one that has
  std::atomic<bool> broken{false};            // one has
  std::atomic<Kind> kind{Kind::kDevice};
  std::atomic<size_t> most_bytes{SIZE_MAX};  // of one allocation; more throws kOutOfMemory
  std::atomic<uint64_t> nan_seed{0};  // rows of requests with this seed get no finite logit ...
  std::atomic<uint32_t> nan_from{0};  // ... from this output token on
  std::atomic<int32_t> nan_prompt_token{-1};  // so do those that ask for this prompt token
  std::atomic<int> alive{0};                  // backends that were not destroyed yet

  void reset() {
    calls = 0;
    fail_at = 0;
    fail_in = nullptr;
    sticky = false;
    broken = false;
    kind = Kind::kDevice;
    most_bytes = SIZE_MAX;
    nan_seed = 0;
    nan_from = 0;
    nan_prompt_token = -1;
  }

  void count(const char* operation) {
    const char* in = fail_in;
    const bool here = in != nullptr && std::strcmp(in, operation) == 0;
    if (++calls != fail_at && !here && !(sticky && broken)) return;
    broken = true;
    switch (kind) {
      case Kind::kDevice:
        throw Error(ErrorCode::kDevice, "the test's device fell off the bus");
      case Kind::kOutOfMemory:
        throw Error(ErrorCode::kOutOfMemory, "the test's device is full");
      case Kind::kBadAlloc:
        throw std::bad_alloc();
      case Kind::kUnknown:
        throw 42;  // NOLINT(hicpp-exception-baseclass): on purpose
    }
  }
};

inline Faults faults;        // NOLINT
inline ops::Ops real_table;  // NOLINT: what works

/// An operation's name as a template argument.
template <size_t N>
struct Name {
  constexpr Name(const char (&name)[N]) { std::copy_n(name, N, text); }  // NOLINT: implicit
  char text[N];
};

template <Name kName, auto Member, typename Params>
void count_and_call(void* self, const Params& params, ops::Stream stream) {
  faults.count(kName.text);
  (real_table.*Member)(self, params, stream);
}

/// `self` is the CPU backend's own, so everything that is not replaced works as it is.
inline ops::Ops faulty_ops(int32_t num_threads = 1) {
  using ops::Ops;
  real_table = backend(num_threads);
  Ops table = real_table;
  ++faults.alive;
  table.destroy = [](void* self) {
    real_table.destroy(self);
    --faults.alive;
  };
  table.alloc = [](void* self, size_t bytes) {
    faults.count("alloc");
    if (bytes > faults.most_bytes) {
      throw Error(ErrorCode::kOutOfMemory, "cannot allocate " + std::to_string(bytes) + " bytes");
    }
    return real_table.alloc(self, bytes);
  };
  table.upload = [](void* self, void* to, const void* from, size_t bytes, ops::Stream stream) {
    faults.count("upload");
    real_table.upload(self, to, from, bytes, stream);
  };
  table.download = [](void* self, void* to, const void* from, size_t bytes, ops::Stream stream) {
    faults.count("download");
    real_table.download(self, to, from, bytes, stream);
  };
  table.synchronize = [](void* self, ops::Stream stream) {
    faults.count("synchronize");
    real_table.synchronize(self, stream);
  };
  table.make_linear = [](void* self, const ops::WeightPiece* pieces, int32_t count,
                         int64_t in_features, const float* bias, bool silu_mul) {
    faults.count("make_linear");
    return real_table.make_linear(self, pieces, count, in_features, bias, silu_mul);
  };
  if (table.wait != nullptr) {
    table.wait = [](void* self, uint64_t mark) {
      faults.count("wait");
      real_table.wait(self, mark);
    };
  }
  table.embed = count_and_call<"embed", &Ops::embed, ops::EmbedParams>;
  table.linear = count_and_call<"linear", &Ops::linear, ops::LinearParams>;
  table.rope = count_and_call<"rope", &Ops::rope, ops::RopeParams>;
  table.qkv = count_and_call<"qkv", &Ops::qkv, ops::QkvParams>;
  table.attention = count_and_call<"attention", &Ops::attention, ops::AttentionParams>;
  table.gather = count_and_call<"gather", &Ops::gather, ops::GatherParams>;
  table.copy_block = count_and_call<"copy_block", &Ops::copy_block, ops::CopyBlockParams>;
  table.sample = [](void* self, const ops::SampleParams& params, ops::Stream stream) {
    faults.count("sample");
    for (int32_t r = 0; r < params.num_rows; ++r) {
      const ops::SampleRow& asked = params.rows[r];
      const bool forced = asked.forced_token >= 0;
      const bool hit = forced ? asked.forced_token == faults.nan_prompt_token
                              : faults.nan_seed != 0 && asked.seed == faults.nan_seed &&
                                    asked.position >= faults.nan_from;
      if (!hit) continue;
      float* row = params.logits + static_cast<ptrdiff_t>(r) * params.vocab;
      row[params.vocab / 2] = std::numeric_limits<float>::quiet_NaN();
    }
    real_table.sample(self, params, stream);
  };
  return table;
}

}  // namespace treadle::testing
