// What must hold whatever the input was.
#pragma once

#include <cstdlib>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "treadle/error.h"

namespace treadle::fuzz {

/// Ends the process where the fuzzer (or the replay) sees it, in every build type.
inline void require(bool holds) {
  if (!holds) std::abort();
}

/// A message begins as it should, is short enough to be shown and is valid UTF-8.
inline void check_message(const Error& error, std::string_view prefix) {
  const std::string_view message = error.what();
  require(message.starts_with(prefix));
  require(!message.empty() && message.size() < 4000);
  // Strict serialisation throws for anything that is not UTF-8.
  require(!nlohmann::json(std::string(message)).dump().empty());
}

}  // namespace treadle::fuzz
