// Rows of the sampling op, with all they point to, in one block of memory for one upload.
#pragma once

#include <cstddef>
#include <span>

#include "ops/sample_params.h"

namespace treadle::sampler {

/// Bytes of the block of `rows`.
size_t packed_bytes(std::span<const ops::SampleRow> rows);

/// Writes packed_bytes(rows) bytes to `block`: the rows, then what they point to, with pointers
/// that hold once the block has been copied to `base`, which is aligned to 16 bytes. Only the part
/// of a history that a penalty reads is taken along.
void pack_rows(std::span<const ops::SampleRow> rows, char* block, const void* base);

}  // namespace treadle::sampler
