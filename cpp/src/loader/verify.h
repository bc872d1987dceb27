// Compares a checkpoint with what the configuration promises, before any weight is used.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "loader/checkpoint.h"
#include "loader/tensor_names.h"
#include "model/model_spec.h"

namespace treadle::loader {

/// Compares a checkpoint's tensors with the `expected` ones; others are unexpected where
/// `tolerated` does not say that they carry nothing. Throws Error(kInvalidModel) that lists missing
/// and unexpected tensors and wrong shapes, or Error(kUnsupported) for an element type that cannot
/// be a weight. Returns the bytes of all the tensors that will be used.
int64_t verify_tensors(const Checkpoint& checkpoint, const model::ModelSpec& spec,
                       const std::vector<ExpectedTensor>& expected,
                       const std::function<bool(const std::string&)>& tolerated);

/// The same for a checkpoint as it was published.
int64_t verify_checkpoint(const Checkpoint& checkpoint, const model::ModelSpec& spec,
                          const ModelNames& names);

}  // namespace treadle::loader
