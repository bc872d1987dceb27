#include "attention_prefill/attention_prefill.h"

#include <algorithm>
#include <string>

#include "attention_prefill/launches.h"
#include "common/device.h"

namespace treadle::cuda {
namespace prefill {

Params make_params(const ops::AttentionParams& p, int first, int count) {
  Params params = {};
  params.q = p.q;
  params.out = p.out;
  params.kv = p.kv.base;
  params.query_begin = p.batch.query_begin + first;
  params.context_len = p.batch.context_len + first;
  params.block_tables = p.batch.block_tables + int64_t{first} * p.batch.block_table_stride;
  params.scale_log2 = p.scale * 1.4426950408889634F;
  params.window = p.window;
  params.heads = p.heads;
  params.kv_heads = p.kv_heads;
  params.layer = p.layer;
  params.num_layers = p.kv.num_layers;
  params.block_stride = static_cast<int32_t>(p.kv.block_bytes() / 512);
  params.scales_begin = static_cast<int32_t>(p.kv.scales_begin() / 512);
  params.scales_stride = static_cast<int32_t>(p.kv.scales_stride() / 512);
  params.num_sequences = count;
  params.block_table_stride = p.batch.block_table_stride;
  return params;
}

}  // namespace prefill

namespace {

constexpr int kMaxSequences = 256;  // of one launch: their plan lies beside the tiles

void require(bool supported, const ops::AttentionParams& p, ops::DType act) {
  if (supported && (p.kv.dtype == act || p.kv.dtype == ops::DType::kI8)) return;
  throw Error(ErrorCode::kUnsupported, "attention_prefill: head_dim " + std::to_string(p.head_dim) +
                                           ", " + std::to_string(p.heads) + "/" +
                                           std::to_string(p.kv_heads) +
                                           " heads or this KV type is not supported");
}

/// launch(params) for every kMaxSequences chunks.
template <class Launch>
void for_each_part(const ops::AttentionParams& p, Launch launch) {
  for (int first = p.batch.num_decode; first < p.batch.num_sequences; first += kMaxSequences) {
    launch(prefill::make_params(p, first, std::min(kMaxSequences, p.batch.num_sequences - first)));
  }
}

}  // namespace

bool supports_attention_prefill(const ops::AttentionParams& p) {
  const int d = p.head_dim;
  return (d == 64 || d == 80 || d == 96 || d == 128 || d == 256) && p.kv_heads > 0 &&
         p.heads % p.kv_heads == 0 &&
         (p.kv.dtype == ops::DType::kF16 || p.kv.dtype == ops::DType::kBF16 ||
          p.kv.dtype == ops::DType::kI8);
}

bool supports_attention_prefill_wgmma(const ops::AttentionParams& p) {
  return prefill::has_wgmma() && supports_attention_prefill(p) && device_info().capability == 90;
}

void attention_prefill_mma(const ops::AttentionParams& p, ops::DType act, cudaStream_t stream) {
  require(supports_attention_prefill(p), p, act);
  auto* launch = act == ops::DType::kF16 ? prefill::launch_mma_f16 : prefill::launch_mma_bf16;
  for_each_part(p, [&](const prefill::Params& params) { launch(p, params, stream); });
}

void attention_prefill_wgmma(const ops::AttentionParams& p, ops::DType act,
                             PrefillWorkspace& workspace, cudaStream_t stream) {
  require(supports_attention_prefill_wgmma(p), p, act);
  if (workspace.bytes < prefill_workspace_bytes()) {
    throw Error(ErrorCode::kInternal, "attention_prefill: workspace too small");
  }
  auto* launch = act == ops::DType::kF16 ? prefill::launch_wgmma_f16 : prefill::launch_wgmma_bf16;
  for_each_part(p, [&](prefill::Params params) {
    params.counters = static_cast<int32_t*>(workspace.data);
    launch(p, params, stream);
  });
}

void attention_prefill(const ops::AttentionParams& p, ops::DType act, PrefillWorkspace& workspace,
                       cudaStream_t stream) {
  if (supports_attention_prefill_wgmma(p)) {
    attention_prefill_wgmma(p, act, workspace, stream);
  } else {
    attention_prefill_mma(p, act, stream);
  }
}

}  // namespace treadle::cuda
