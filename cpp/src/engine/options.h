// From EngineConfig and a model to what is really used: checks, defaults and sizes.
#pragma once

#include <cstdint>

#include "model/model_spec.h"
#include "ops/ops.h"
#include "treadle/config.h"

namespace treadle {

/// Throws Error that names the field, its value and what would be right.
void check_config(const EngineConfig& config);

/// EngineConfig::dtype for the KV cache; "auto" is that of the weights.
ops::DType kv_dtype(const EngineConfig& config, ops::DType weights);

/// Context length asked for, before the pool limits it.
int32_t wanted_session_len(const EngineConfig& config, const model::ModelSpec& spec);

/// Blocks of the KV pool. `free_bytes`: what is left after weights and workspace. Throws
/// kOutOfMemory with the numbers when not even one block fits.
int32_t pool_blocks(const EngineConfig& config, const ops::KvPool& shape, int32_t session_len,
                    size_t free_bytes);

}  // namespace treadle
