// A generation request and the stream of its output.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "treadle/error.h"
#include "treadle/export.h"

namespace treadle {

/// How tokens are chosen and when to stop. The defaults are plain sampling from the model.
struct SamplingParams {
  int32_t max_new_tokens = 512;  ///< at least 1
  int32_t min_new_tokens = 0;    ///< end tokens and stop sequences are barred before this many

  float temperature = 1.0F;  ///< >= 0; 0 is greedy
  int32_t top_k = 0;         ///< keep the k most likely tokens; 0 = all, 1 is greedy
  float top_p = 1.0F;        ///< (0, 1]: smallest set of tokens whose probability reaches top_p
  float min_p = 0.0F;        ///< [0, 1]: drop tokens below min_p times the most likely one

  float repetition_penalty = 1.0F;  ///< > 0; over prompt and output (CTRL, arXiv:1909.05858)
  float presence_penalty = 0.0F;    ///< subtracted once for a token already in the output
  float frequency_penalty = 0.0F;   ///< subtracted per earlier occurrence in the output

  std::vector<std::pair<int32_t, float>> logit_bias;  ///< (token id, added to its logit)
  std::vector<std::vector<int32_t>> bad_words;        ///< token sequences that are never completed
  std::vector<std::vector<int32_t>> stop_words;       ///< token sequences that end the output
  std::vector<int32_t> stop_token_ids;                ///< end the output, besides the model's own
  bool ignore_eos = false;                            ///< do not end at the model's own end tokens

  int32_t logprobs = -1;         ///< -1 none, 0 of the chosen token, n also of the top n (<= 64)
  int32_t prompt_logprobs = -1;  ///< the same for the prompt's tokens; bars prefix reuse
  int32_t n = 1;                 ///< continuations that share the prompt, 1..max_batch_size

  /// Same seed, same tokens, whatever else runs. Continuation i uses stream i of the seed.
  std::optional<uint64_t> seed;
};

/// Whether a request begins its session or goes on with it.
enum class SessionMode : uint8_t {
  kAuto,      ///< go on where the session exists, else begin it
  kStart,     ///< begin afresh: an older history under the same id is dropped
  kContinue,  ///< go on; ErrorCode::kUnknownSession when there is none
};

struct Request {
  /// Session to run in; empty = a request of its own that leaves nothing but shareable blocks.
  std::optional<uint64_t> session_id;
  /// Only the new tokens: a session's history is kept in the engine. Never empty.
  std::vector<int32_t> input_ids;
  SamplingParams sampling;
  SessionMode session_mode = SessionMode::kAuto;
  /// Drop the session when this request ends, however it ends.
  bool end_session = false;
  /// First roll the session's history back to this many tokens (0..its length).
  std::optional<int32_t> step;
  /// Higher goes first; first come first served within one priority.
  int32_t priority = 0;
  /// Seconds from submission to a kDeadlineExceeded end; 0 = none.
  double timeout_s = 0.0;
};

enum class FinishReason : uint8_t {
  kNone,       ///< still running
  kStop,       ///< an end token, a stop token or a stop sequence
  kLength,     ///< max_new_tokens or session_len reached
  kCancelled,  ///< cancelled by the caller
  kError,      ///< see Output::error
};

/// "", "stop", "length", "cancelled" or "error".
TREADLE_API const char* finish_reason_name(FinishReason reason) noexcept;

struct TokenLogprob {
  int32_t token_id = 0;
  float logprob = 0.0F;  ///< natural logarithm, of the distribution after penalties and bias,
                         ///< before temperature and truncation
};

/// Log-probabilities at one position: the token that stands there, then the top ones, best first.
struct PositionLogprobs {
  TokenLogprob chosen;
  std::vector<TokenLogprob> top;
};

struct Usage {
  int32_t prompt_tokens = 0;    ///< history + input_ids of the request
  int32_t cached_tokens = 0;    ///< of those, taken from KV blocks that were already there
  int32_t computed_tokens = 0;  ///< of those, run through the model (recomputation included)
  int32_t output_tokens = 0;    ///< generated so far by this continuation
};

/// What has happened to one continuation since the last Output of it.
struct Output {
  int32_t index = 0;  ///< which of the n continuations
  std::vector<int32_t>
      token_ids;  ///< new tokens; the stop token or sequence itself is not among them
  std::vector<PositionLogprobs> logprobs;         ///< one per new token when asked for
  std::vector<PositionLogprobs> prompt_logprobs;  ///< once, with index 0: for prompt tokens 1..
  FinishReason finish_reason = FinishReason::kNone;
  ErrorCode error = ErrorCode::kOk;  ///< the cause when finish_reason is kError
  std::string error_message;
  Usage usage;
};

class OutputChannel;

/// The receiving end of a request. Movable; one reader at a time. Letting go of it cancels the
/// request. Slow readers lose nothing: outputs that were not read yet are merged.
class TREADLE_API Stream {
 public:
  explicit Stream(std::shared_ptr<OutputChannel> channel);
  Stream(Stream&&) noexcept;
  Stream& operator=(Stream&&) noexcept;
  ~Stream();

  /// Waits for the next output; empty once every continuation has finished.
  std::optional<Output> next();
  /// The same, but gives up after `seconds`: then empty while done() is false.
  std::optional<Output> next_for(double seconds);
  /// An output that is already there, else empty.
  std::optional<Output> try_next();
  /// True when next() has nothing more to give.
  bool done() const;
  /// Ends the request soon; its continuations finish with kCancelled. Safe from any thread.
  void cancel();
  /// Called whenever an output arrives, on the engine's thread: must be quick and must not throw
  /// nor call the engine. Called at once when one is waiting. Empty removes it; after the removal
  /// returns the callback is not running any more.
  void on_ready(std::function<void()> callback);

 private:
  std::shared_ptr<OutputChannel> channel_;
};

}  // namespace treadle
