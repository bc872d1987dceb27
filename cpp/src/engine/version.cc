#include "treadle/version.h"

namespace treadle {

const char* version() noexcept { return TREADLE_VERSION; }

const char* backends() noexcept {
#if defined(TREADLE_WITH_CUDA)
  return "cpu,cuda";
#else
  return "cpu";
#endif
}

}  // namespace treadle
