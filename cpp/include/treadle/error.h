// Errors: one type with a machine-readable code and a message that names the field and the numbers.
#pragma once

#include <stdexcept>
#include <string>

#include "treadle/export.h"

namespace treadle {

enum class ErrorCode : int {
  kOk = 0,
  kInvalidArgument,   // a parameter is out of range or contradicts another one
  kInvalidModel,      // a model directory is damaged, incomplete or inconsistent
  kUnsupported,       // a known thing this build or version does not do
  kNotFound,          // a path that does not exist
  kUnknownSession,    // the session was never started, was ended or has expired
  kTooLong,           // the prompt does not fit session_len or the KV pool
  kQueueFull,         // the waiting line is at max_queue_size
  kCancelled,         // the caller cancelled
  kDeadlineExceeded,  // Request::timeout_s passed
  kShutdown,          // the engine is shutting down
  kOutOfMemory,       // weights, workspace or KV pool do not fit
  kDevice,            // the device failed; the engine must be loaded again
  kInternal,          // a bug in Treadle
};

/// Stable lower-case name of a code, for example "queue_full".
TREADLE_API const char* error_code_name(ErrorCode code) noexcept;

class TREADLE_API Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ~Error() override;

  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace treadle
