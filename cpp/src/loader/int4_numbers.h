// Packed 4-bit numbers of checkpoints, brought to one order: a large model has billions of them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace treadle::loader {

/// Both give `out` [n][k / 2] bytes, column 2 i in the low half of byte i, from little-endian words
/// of eight numbers; `words` need not be aligned. k and n are multiples of 8. Several threads work.

/// GPTQ: words [k / 8][n], eight columns of a row each, in order from the lowest bits up.
void gptq_numbers(const std::byte* words, int64_t n, int64_t k, uint8_t* out);
/// AutoAWQ: words [k][n / 8], a column of eight rows each: 0, 2, 4, 6, 1, 3, 5, 7.
void awq_numbers(const std::byte* words, int64_t n, int64_t k, uint8_t* out);

}  // namespace treadle::loader
