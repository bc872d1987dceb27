#include "treadle/version.h"

namespace treadle {

const char* version() noexcept { return TREADLE_VERSION; }

}  // namespace treadle
