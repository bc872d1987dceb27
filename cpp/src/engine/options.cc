#include "engine/options.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "engine/device.h"
#include "kv/kv_cache.h"
#include "treadle/error.h"

namespace treadle {
namespace {

constexpr int32_t kMaxBatchSize = 4096;
// An automatic pool has at most as many blocks: 16 million tokens. More would only cost the host
// memory, where a small model meets a big GPU.
constexpr double kAutoPoolBlocks = 1 << 18;

[[noreturn]] void invalid(const std::string& field, const std::string& value,
                          const std::string& right) {
  throw Error(ErrorCode::kInvalidArgument, field + " = " + value + " must be " + right);
}

template <typename T>
void check_range(const char* field, T value, T low, T high) {
  if (value >= low && value <= high) return;  // false for NaN, too
  const auto text = [](T number) {
    std::string digits = std::to_string(number);
    if (digits.find('.') != std::string::npos) {
      digits.erase(digits.find_last_not_of('0') + 1);
      if (digits.back() == '.') digits.pop_back();
    }
    return digits;
  };
  invalid(field, text(value), "between " + text(low) + " and " + text(high));
}

/// Blocks of small models are less than one.
std::string mebibytes(double bytes) {
  const double value = bytes / (1024.0 * 1024.0);
  std::string text = std::to_string(value);
  return text.substr(0, text.find('.') + (value < 10.0 ? 3 : 0)) + " MiB";
}

}  // namespace

void check_config(const EngineConfig& config) {
  parse_device(config.device);
  if (config.dtype != "auto" && config.dtype != "float16" && config.dtype != "bfloat16" &&
      config.dtype != "float32") {
    invalid("dtype", '"' + config.dtype + '"',
            "\"auto\", \"float16\", \"bfloat16\" or \"float32\"");
  }
  check_range("session_len", config.session_len, 0, 1 << 24);
  check_range("max_batch_size", config.max_batch_size, 0, kMaxBatchSize);
  check_range("max_prefill_token_num", config.max_prefill_token_num, 0, 1 << 20);
  check_range("num_threads", config.num_threads, 0, 1024);
  check_range("max_queue_size", config.max_queue_size, 1, std::numeric_limits<int32_t>::max());
  check_range("max_sessions", config.max_sessions, 1, std::numeric_limits<int32_t>::max());
  // Ten years: far from where time points overflow.
  check_range("session_ttl_s", config.session_ttl_s, 0.001, 3.2e8);
  const double entries = config.cache_max_entry_count;
  check_range("cache_max_entry_count", entries, 0.0, 1e8);
  if (entries > 1.0 && entries != std::floor(entries)) {
    invalid("cache_max_entry_count", std::to_string(entries),
            "a fraction in (0, 1] of the free memory or a whole number of blocks");
  }
  if (config.tp != 1) {
    check_range("tp", config.tp, 1, 1024);
    throw Error(ErrorCode::kUnsupported,
                "tp = " + std::to_string(config.tp) + ": only tp = 1 in this version");
  }
  if (config.quant_policy != -1 && config.quant_policy != 0 && config.quant_policy != 8) {
    throw Error(ErrorCode::kUnsupported, "quant_policy = " + std::to_string(config.quant_policy) +
                                             ": it is 0 (no KV quantisation) or 8 (int8 KV)");
  }
}

EngineConfig with_defaults(EngineConfig config, const model::ModelSpec& spec,
                           const ops::Defaults& defaults) {
  if (config.max_batch_size == 0) config.max_batch_size = defaults.max_batch_size;
  if (config.max_prefill_token_num == 0) config.max_prefill_token_num = defaults.prefill_tokens;
  if (config.session_len == 0) config.session_len = spec.max_position_embeddings;
  return config;
}

model::DecoderLimits decoder_limits(const EngineConfig& config) {
  return {.max_tokens = config.max_prefill_token_num + config.max_batch_size,
          .max_rows = config.max_prefill_token_num + 2 * config.max_batch_size,
          .max_sequences = config.max_batch_size,
          .session_len = config.session_len};
}

ops::DType kv_dtype(const EngineConfig& config, const ops::Ops& ops, ops::DType weights) {
  if (config.quant_policy == 8) return ops::DType::kI8;
  if (ops.act_dtype != ops::DType::kF32) return ops.act_dtype;
  if (config.dtype == "float16") return ops::DType::kF16;
  if (config.dtype == "bfloat16") return ops::DType::kBF16;
  if (config.dtype == "float32") return ops::DType::kF32;
  return weights;
}

int32_t pool_blocks(const EngineConfig& config, const ops::Defaults& defaults,
                    const ops::KvPool& shape, size_t free_bytes) {
  const auto block = static_cast<double>(shape.block_bytes());
  const auto free = static_cast<double>(free_bytes);
  const double entries = config.cache_max_entry_count;
  double blocks = 0;
  if (entries > 1.0) {
    blocks = entries;
  } else if (entries > 0.0) {
    blocks = std::floor(free * entries / block);
  } else {
    const double most =
        std::min(free * defaults.pool_fraction, static_cast<double>(defaults.pool_bytes));
    blocks = std::min(std::floor(most / block), kAutoPoolBlocks);
    const auto need =
        static_cast<double>(kv::blocks_for(config.session_len)) * config.max_batch_size;
    if (defaults.pool_to_need) blocks = std::min(blocks, need);
  }
  if (blocks < 1.0 || blocks * block > free) {
    const double wanted = std::max(blocks, 1.0);
    throw Error(ErrorCode::kOutOfMemory,
                "the KV pool does not fit: " + std::to_string(static_cast<int64_t>(wanted)) +
                    " blocks of " + mebibytes(block) + " need " + mebibytes(wanted * block) + ", " +
                    mebibytes(free) + " are left for it; cache_max_entry_count sets its size");
  }
  return static_cast<int32_t>(std::min(blocks, 2.0e9));
}

}  // namespace treadle
