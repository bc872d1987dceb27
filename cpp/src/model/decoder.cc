#include "model/decoder.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace treadle::model {
namespace {

constexpr size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

// Offsets of the buffers in the workspace, in bytes.
struct Decoder::Layout {
  size_t inv_freq, cos_sin, residual, row_residual, qkv_out, q, attended, gated, logits, integers;
  size_t total = 0;
  int32_t max_logit_rows;

  Layout(const ModelSpec& spec, const ops::Ops& ops, const DecoderLimits& limits) {
    const size_t element = ops::dtype_size(ops.act_dtype);
    const auto tokens = static_cast<size_t>(limits.max_tokens);
    const auto rows = static_cast<size_t>(limits.max_rows);
    const auto sequences = static_cast<size_t>(limits.max_sequences);
    const size_t hidden_bytes = static_cast<size_t>(spec.hidden_size) * element;
    const size_t attended_bytes = static_cast<size_t>(spec.num_heads) * spec.head_dim * element;
    const auto vocab_bytes = static_cast<size_t>(spec.vocab_size) * sizeof(float);
    const auto block_table =
        (static_cast<size_t>(limits.session_len) + ops::kBlockTokens - 1) / ops::kBlockTokens + 1;
    // A prompt with prompt_logprobs wants one row per token: they are made in several passes.
    max_logit_rows =
        static_cast<int32_t>(std::clamp<size_t>(ops.defaults.logit_bytes / vocab_bytes, 1, rows));

    const auto take = [this](size_t bytes) { return std::exchange(total, total + aligned(bytes)); };
    const auto half = static_cast<size_t>(spec.rope.rotary_dim) / 2;
    inv_freq = take(half * sizeof(float));
    cos_sin = take(tokens * half * 2 * sizeof(float));
    // Rows of the last layer may outnumber its tokens when a prompt is forked.
    const size_t lines = std::max(tokens, rows);
    residual = take(tokens * hidden_bytes);
    row_residual = take(rows * hidden_bytes);
    qkv_out = take(tokens * static_cast<size_t>(spec.qkv_features()) * element);
    q = take(lines * attended_bytes);
    attended = take(tokens * attended_bytes);
    gated = take(lines * static_cast<size_t>(spec.intermediate_size) * element);
    logits = take(static_cast<size_t>(max_logit_rows) * vocab_bytes);
    integers = take((4 * tokens + rows + sequences * (2 + block_table) + 1) * sizeof(int32_t));
  }
};

size_t Decoder::workspace_bytes(const ModelSpec& spec, const ops::Ops& ops, DecoderLimits limits) {
  return Layout(spec, ops, limits).total;
}

Decoder::Decoder(const ModelSpec& spec, const Weights& weights, const ops::Ops& ops, ops::KvPool kv,
                 DecoderLimits limits)
    : spec_(spec),
      weights_(weights),
      ops_(ops),
      kv_(kv),
      limits_(limits),
      rope_(make_rope_table(spec.rope)) {
  const Layout layout(spec, ops, limits);
  workspace_bytes_ = layout.total;
  max_logit_rows_ = layout.max_logit_rows;
  workspace_ = static_cast<char*>(ops_.alloc(ops_.self, layout.total));
  inv_freq_ = reinterpret_cast<float*>(workspace_ + layout.inv_freq);
  cos_sin_ = reinterpret_cast<float*>(workspace_ + layout.cos_sin);
  residual_ = workspace_ + layout.residual;
  row_residual_ = workspace_ + layout.row_residual;
  qkv_out_ = workspace_ + layout.qkv_out;
  q_ = workspace_ + layout.q;
  attended_ = workspace_ + layout.attended;
  gated_ = workspace_ + layout.gated;
  logits_ = reinterpret_cast<float*>(workspace_ + layout.logits);
  integers_ = reinterpret_cast<int32_t*>(workspace_ + layout.integers);
  ops_.upload(ops_.self, inv_freq_, rope_.inv_freq.data(), rope_.inv_freq.size() * sizeof(float),
              stream_);
  ops_.synchronize(ops_.self, stream_);
}

Decoder::~Decoder() { ops_.release(ops_.self, workspace_); }

void Decoder::load(const DecoderInput& input) {
  // One copy for all index arrays.
  staging_.clear();
  const auto put = [this](std::span<const int32_t> values) {
    const int32_t* at = integers_ + staging_.size();
    staging_.insert(staging_.end(), values.begin(), values.end());
    return at;
  };
  tokens_ = put(input.tokens);
  if (input.device_tokens != nullptr) tokens_ = input.device_tokens;
  rope_len_ = put(input.rope_len);
  logit_rows_ = put(input.logit_rows);
  num_rows_ = static_cast<int32_t>(input.logit_rows.size());
  batch_.num_tokens = static_cast<int32_t>(input.tokens.size());
  batch_.num_sequences = static_cast<int32_t>(input.context_len.size());
  batch_.num_decode = input.num_decode;
  batch_.max_query_len = input.max_query_len;
  batch_.max_context_len = input.max_context_len;
  batch_.query_begin = put(input.query_begin);
  batch_.context_len = put(input.context_len);
  batch_.block_tables = put(input.block_tables);
  batch_.block_table_stride = input.block_table_stride;
  batch_.token_sequence = put(input.token_sequence);
  batch_.positions = put(input.positions);
  ops_.upload(ops_.self, integers_, staging_.data(), staging_.size() * sizeof(int32_t), stream_);
}

ops::QkvParams Decoder::qkv_params(const LayerWeights& layer, int32_t index) const {
  return {.qkv = qkv_out_,
          .q_out = q_,
          .q_norm = layer.q_norm,
          .k_norm = layer.k_norm,
          .cos_sin = cos_sin_,
          .rotary_dim = spec_.rope.rotary_dim,
          .norm_eps = spec_.norm_eps,
          .logn_len = spec_.logn_len,
          .heads = spec_.num_heads,
          .kv_heads = spec_.num_kv_heads,
          .head_dim = spec_.head_dim,
          .layer = index,
          .kv = kv_,
          .batch = batch_};
}

void Decoder::attention_block(const LayerWeights& layer, int32_t index, int32_t num_tokens) {
  ops_.linear(ops_.self,
              {.x = residual_,
               .weight = &layer.qkv,
               .norm = layer.attn_norm,
               .norm_eps = spec_.norm_eps,
               .y = qkv_out_,
               .num_tokens = num_tokens,
               .spare_rows = limits_.max_tokens - num_tokens},
              stream_);
  const ops::QkvParams qkv = qkv_params(layer, index);
  const bool attention_makes_qkv =
      ops_.attention_makes_qkv != nullptr && ops_.attention_makes_qkv(ops_.self, qkv, layer.qkv);
  if (!attention_makes_qkv) ops_.qkv(ops_.self, qkv, stream_);
  const bool windowed =
      spec_.sliding_window > 0 && spec_.layer_uses_window[static_cast<size_t>(index)] != 0;
  ops_.attention(ops_.self,
                 {.q = q_,
                  .out = attended_,
                  .scale = 1.0F / std::sqrt(static_cast<float>(spec_.head_dim)),
                  .window = windowed ? spec_.sliding_window : 0,
                  .heads = spec_.num_heads,
                  .kv_heads = spec_.num_kv_heads,
                  .head_dim = spec_.head_dim,
                  .layer = index,
                  .kv = kv_,
                  .batch = batch_,
                  .qkv = attention_makes_qkv ? &qkv : nullptr},
                 stream_);
}

void Decoder::mlp_block(const LayerWeights& layer, char* residual, int32_t num_tokens,
                        int32_t spare_rows) {
  ops_.linear(ops_.self,
              {.x = residual,
               .weight = &layer.gate_up,
               .norm = layer.mlp_norm,
               .norm_eps = spec_.norm_eps,
               .y = gated_,
               .num_tokens = num_tokens,
               .spare_rows = spare_rows,
               .silu_mul = true},
              stream_);
  add_projection(layer.down, gated_, residual, num_tokens, spare_rows);
}

void Decoder::add_projection(const ops::LinearWeight& weight, const char* x, char* residual,
                             int32_t num_tokens, int32_t spare_rows) {
  ops_.linear(ops_.self,
              {.x = x,
               .weight = &weight,
               .y = residual,
               .num_tokens = num_tokens,
               .spare_rows = spare_rows,
               .add = true},
              stream_);
}

void Decoder::run() {
  const int32_t num_tokens = batch_.num_tokens;
  const auto gather_rows = [&](const char* from, char* to, int32_t width) {
    ops_.gather(
        ops_.self,
        {.in = from, .rows = logit_rows_, .out = to, .num_rows = num_rows_, .hidden = width},
        stream_);
  };

  ops_.embed(ops_.self,
             {.ids = tokens_,
              .table = weights_.embedding,
              .tied = weights_.embedding == nullptr ? &weights_.head : nullptr,
              .table_dtype = weights_.embedding_dtype,
              .out = residual_,
              .num_tokens = num_tokens,
              .hidden = spec_.hidden_size},
             stream_);
  ops_.rope(ops_.self,
            {.positions = batch_.positions,
             .rope_len = rope_.dynamic_base > 0.0 ? rope_len_ : nullptr,
             .inv_freq = inv_freq_,
             .cos_sin = cos_sin_,
             .num_tokens = num_tokens,
             .rotary_dim = spec_.rope.rotary_dim,
             .attention_factor = rope_.attention_factor,
             .dynamic_base = rope_.dynamic_base,
             .dynamic_factor = rope_.dynamic_factor,
             .original_len = rope_.original_len},
            stream_);

  const int32_t last = spec_.num_layers - 1;
  const int32_t spare_rows = limits_.max_tokens - num_tokens;
  for (int32_t i = 0; i < last; ++i) {
    const LayerWeights& layer = weights_.layers[static_cast<size_t>(i)];
    attention_block(layer, i, num_tokens);
    add_projection(layer.o, attended_, residual_, num_tokens, spare_rows);
    mlp_block(layer, residual_, num_tokens, spare_rows);
  }
  // After the last attention only the rows whose logits are wanted matter.
  const LayerWeights& layer = weights_.layers[static_cast<size_t>(last)];
  attention_block(layer, last, num_tokens);
  if (num_rows_ == 0) return;
  gather_rows(residual_, row_residual_, spec_.hidden_size);
  gather_rows(attended_, q_, spec_.num_heads * spec_.head_dim);
  const int32_t spare_of_rows = limits_.max_rows - num_rows_;
  add_projection(layer.o, q_, row_residual_, num_rows_, spare_of_rows);
  mlp_block(layer, row_residual_, num_rows_, spare_of_rows);
}

float* Decoder::logits(int32_t begin, int32_t count) {
  const size_t row_bytes = static_cast<size_t>(spec_.hidden_size) * ops::dtype_size(ops_.act_dtype);
  ops_.linear(ops_.self,
              {.x = row_residual_ + static_cast<size_t>(begin) * row_bytes,
               .weight = &weights_.head,
               .norm = weights_.final_norm,
               .norm_eps = spec_.norm_eps,
               .y = logits_,
               .num_tokens = count,
               .float_output = true},
              stream_);
  return logits_;
}

}  // namespace treadle::model
