// Philox4x32-10, the counter-based generator of Salmon et al., "Parallel Random Numbers: As Easy as
// 1, 2, 3" (SC'11). A draw is a pure function of its key and counter, on the host and on a device.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define TREADLE_HOST_DEVICE __host__ __device__
#else
#define TREADLE_HOST_DEVICE
#endif

namespace treadle::ops {

struct PhiloxBlock {
  uint32_t v[4];
};

/// The ten-round bijection of `counter` under the key (key0, key1).
TREADLE_HOST_DEVICE constexpr PhiloxBlock philox4x32_10(PhiloxBlock counter, uint32_t key0,
                                                        uint32_t key1) {
  constexpr uint32_t kMul0 = 0xD2511F53U;
  constexpr uint32_t kMul1 = 0xCD9E8D57U;
  constexpr uint32_t kWeyl0 = 0x9E3779B9U;
  constexpr uint32_t kWeyl1 = 0xBB67AE85U;
  PhiloxBlock c = counter;
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{kMul0} * c.v[0];
    const uint64_t p1 = uint64_t{kMul1} * c.v[2];
    c = {{static_cast<uint32_t>(p1 >> 32) ^ c.v[1] ^ key0, static_cast<uint32_t>(p1),
          static_cast<uint32_t>(p0 >> 32) ^ c.v[3] ^ key1, static_cast<uint32_t>(p0)}};
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return c;
}

/// The draw of a sampling row: uniform in [0, 1) with 53 random bits. The key is the seed, the
/// counter is (position, 0, stream, 0).
TREADLE_HOST_DEVICE constexpr double sample_uniform(uint64_t seed, uint32_t stream,
                                                    uint32_t position) {
  const PhiloxBlock r = philox4x32_10({{position, 0, stream, 0}}, static_cast<uint32_t>(seed),
                                      static_cast<uint32_t>(seed >> 32));
  const uint64_t bits = (uint64_t{r.v[1]} << 32) | r.v[0];
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace treadle::ops
