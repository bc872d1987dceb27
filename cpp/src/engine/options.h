// From EngineConfig and a model to what is really used: checks, defaults and sizes.
#pragma once

#include <cstdint>

#include "model/decoder.h"
#include "model/model_spec.h"
#include "ops/ops.h"
#include "treadle/config.h"

namespace treadle {

/// Throws Error that names the field, its value and what would be right.
void check_config(const EngineConfig& config);

/// The options with what they leave open filled in: max_batch_size, max_prefill_token_num and
/// session_len (as asked for, before the pool limits it).
EngineConfig with_defaults(EngineConfig config, const model::ModelSpec& spec,
                           const ops::Defaults& defaults);

/// Of with_defaults().
model::DecoderLimits decoder_limits(const EngineConfig& config);

/// Type of the KV cache: what the backend computes in when that is half precision, else
/// EngineConfig::dtype, whose "auto" is that of the weights; `weights`: float32, float16 or
/// bfloat16.
ops::DType kv_dtype(const EngineConfig& config, const ops::Ops& ops, ops::DType weights);

/// Blocks of the KV pool. `config`: of with_defaults(). `free_bytes`: what is left after weights
/// and workspace. Throws kOutOfMemory with the numbers when not even one block fits.
int32_t pool_blocks(const EngineConfig& config, const ops::Defaults& defaults,
                    const ops::KvPool& shape, size_t free_bytes);

}  // namespace treadle
