// The decoder's forward pass: one flat batch of tokens through every layer, by way of the seam.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "model/model_spec.h"
#include "model/rope.h"
#include "model/weights.h"
#include "ops/ops.h"

namespace treadle::model {

/// A step's arrays, in host memory (batch/step_input.h says what they hold). T tokens, S sequences.
struct DecoderInput {
  std::span<const int32_t> tokens;          // [T]
  std::span<const int32_t> positions;       // [T]
  std::span<const int32_t> rope_len;        // [T]
  std::span<const int32_t> token_sequence;  // [T]
  std::span<const int32_t> query_begin;     // [S + 1]
  std::span<const int32_t> context_len;     // [S]
  std::span<const int32_t> block_tables;    // [S][block_table_stride]
  std::span<const int32_t> logit_rows;      // [R] tokens whose logits are wanted
  const int32_t* device_tokens = nullptr;   // [T] the ids in the backend's memory, if there already
  int32_t block_table_stride = 0;
  int32_t num_decode = 0;
  int32_t max_query_len = 0;
  int32_t max_context_len = 0;
};

struct DecoderLimits {
  int32_t max_tokens = 0;     // T
  int32_t max_rows = 0;       // R
  int32_t max_sequences = 0;  // S
  int32_t session_len = 0;    // longest context
};

/// Borrows spec, weights and ops; owns its workspace, whose size is fixed at construction.
class Decoder {
 public:
  Decoder(const ModelSpec& spec, const Weights& weights, const ops::Ops& ops, ops::KvPool kv,
          DecoderLimits limits);
  ~Decoder();
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  /// Brings a step's arrays to the backend.
  void load(const DecoderInput& input);

  /// Runs the loaded step: writes the tokens' K and V and leaves the final hidden states of
  /// logit_rows for logits(). Nothing but operations, the same for every step with arrays of the
  /// same sizes, so that it may be part of what Ops::replay() records.
  void run();

  /// Logits of rows [begin, begin + count) of the last run's logit_rows: [count][vocab] in the
  /// backend's memory, valid until the next call. count <= max_logit_rows().
  float* logits(int32_t begin, int32_t count);
  int32_t max_logit_rows() const { return max_logit_rows_; }
  const DecoderLimits& limits() const { return limits_; }

  size_t workspace_bytes() const { return workspace_bytes_; }
  /// What the constructor will allocate.
  static size_t workspace_bytes(const ModelSpec& spec, const ops::Ops& ops, DecoderLimits limits);

 private:
  struct Layout;
  ops::QkvParams qkv_params(const LayerWeights& layer, int32_t index) const;
  void attention_block(const LayerWeights& layer, int32_t index, int32_t num_tokens);
  void mlp_block(const LayerWeights& layer, char* residual, int32_t num_tokens, int32_t spare_rows);
  void add_projection(const ops::LinearWeight& weight, const char* x, char* residual,
                      int32_t num_tokens, int32_t spare_rows);

  const ModelSpec& spec_;
  const Weights& weights_;
  const ops::Ops& ops_;
  const ops::KvPool kv_;
  const DecoderLimits limits_;
  const RopeTable rope_;
  ops::Stream stream_;
  int32_t max_logit_rows_ = 0;
  size_t workspace_bytes_ = 0;

  char* workspace_ = nullptr;  // everything below lies in it
  float* inv_freq_ = nullptr;
  float* cos_sin_ = nullptr;      // [T][rotary_dim / 2][2]
  char* residual_ = nullptr;      // [T][hidden]: the sum of the embedding and all blocks' outputs
  char* row_residual_ = nullptr;  // [R][hidden] instead of it after the last attention
  char* qkv_out_ = nullptr;       // [T][qkv_features]
  char* q_ = nullptr;            // [T][heads * head_dim]; [R] of attended_ after the last attention
  char* attended_ = nullptr;     // [T][heads * head_dim]
  char* gated_ = nullptr;        // [max(T, R)][intermediate]
  float* logits_ = nullptr;      // [max_logit_rows][vocab]
  int32_t* integers_ = nullptr;  // the step's index arrays

  ops::SequenceBatch batch_;  // points into integers_
  const int32_t* tokens_ = nullptr;
  const int32_t* rope_len_ = nullptr;
  const int32_t* logit_rows_ = nullptr;
  int32_t num_rows_ = 0;
  std::vector<int32_t> staging_;
};

}  // namespace treadle::model
