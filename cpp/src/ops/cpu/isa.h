// Which instruction set the kernels are built from.
#pragma once

#include <cstdint>
#include <vector>

namespace treadle::ops::cpu {

enum class Isa : uint8_t { kPlain, kAvx2, kAvx512 };

/// "plain", "avx2" or "avx512".
const char* isa_name(Isa isa);

/// Those that are built in and that this processor and system run, best last.
std::vector<Isa> supported_isas();

}  // namespace treadle::ops::cpu
