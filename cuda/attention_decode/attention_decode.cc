#include "attention_decode/attention_decode.h"

#include <algorithm>
#include <string>

#include "attention_decode/launches.h"
#include "attention_decode/params.h"
#include "common/device.h"

namespace treadle::cuda {
namespace {

using decode::kMaxBlocksPerSm;
constexpr int kMaxStages = 6;

bool supports_heads(int heads, int kv_heads, int d) {
  return (d == 64 || d == 80 || d == 96 || d == 128 || d == 256) && kv_heads > 0 &&
         heads % kv_heads == 0 && heads / kv_heads <= 16;
}

size_t counter_bytes(int32_t sequences, int32_t kv_heads) {
  return (size_t(sequences) * kv_heads * sizeof(int32_t) + 255) / 256 * 256;
}

/// As many blocks on a multiprocessor as may be where their rings of at least two stages fit.
decode::LaunchPlan plan_launch(const ops::AttentionParams& p) {
  const DeviceInfo& device = device_info();
  const int group = p.heads / p.kv_heads;
  const int element = p.kv.dtype == ops::DType::kI8 ? 1 : 2;
  const int stage = decode::stage_bytes(p.head_dim, element);
  // Also where nothing is parked, so that both ways to the same result have the same plan.
  const bool parks = element == 1 && p.head_dim == decode::kMakingInt8Dim;
  const int parking = parks ? decode::kParkingBytes : 0;
  for (int per_sm = decode::blocks_per_sm(p.head_dim, element); per_sm > 0; --per_sm) {
    const int grid = per_sm * device.sms;
    const int fixed =
        decode::fixed_bytes(group, p.head_dim, grid, p.batch.num_decode) + 128 + parking;
    const int room = (device.shared_bytes + 1024) / per_sm - 1024 - fixed;
    const int stages = std::min(kMaxStages, room / stage);
    if (stages >= (per_sm == 1 ? 1 : 2)) return {grid, stages, stages * stage + fixed};
  }
  throw Error(ErrorCode::kUnsupported, "attention_decode: " + std::to_string(p.batch.num_decode) +
                                           " sequences do not fit into shared memory");
}

}  // namespace

size_t decode_workspace_bytes(int32_t max_sequences, int32_t heads, int32_t kv_heads,
                              int32_t head_dim) {
  const size_t slots = size_t{2} * kMaxBlocksPerSm * device_info().sms;
  return counter_bytes(max_sequences, kv_heads) +
         slots * (heads / kv_heads) * (head_dim + 2) * sizeof(float);
}

bool supports_attention_decode(const ops::AttentionParams& p) {
  return supports_heads(p.heads, p.kv_heads, p.head_dim) &&
         (p.kv.dtype == ops::DType::kF16 || p.kv.dtype == ops::DType::kBF16 ||
          p.kv.dtype == ops::DType::kI8);
}

bool supports_attention_qkv(const ops::QkvParams& p, ops::DType act) {
  const bool pool =
      p.kv.dtype == act || (p.kv.dtype == ops::DType::kI8 && p.head_dim == decode::kMakingInt8Dim);
  return supports_heads(p.heads, p.kv_heads, p.head_dim) && pool && p.rotary_dim == p.head_dim &&
         p.logn_len == 0;
}

void attention_decode(const ops::AttentionParams& p, ops::DType act, DecodeWorkspace& workspace,
                      cudaStream_t stream) {
  if (p.batch.num_decode == 0) return;
  const bool int8 = p.kv.dtype == ops::DType::kI8;
  if (!supports_attention_decode(p) || (!int8 && p.kv.dtype != act)) {
    throw Error(ErrorCode::kUnsupported,
                "attention_decode: head_dim " + std::to_string(p.head_dim) + ", " +
                    std::to_string(p.heads) + "/" + std::to_string(p.kv_heads) +
                    " heads or this KV type is not supported");
  }
  if (p.qkv != nullptr && !supports_attention_qkv(*p.qkv, act)) {
    throw Error(ErrorCode::kUnsupported, "attention_decode: this QKV operation is one of its own");
  }
  const decode::LaunchPlan plan = plan_launch(p);
  const size_t needed = decode_workspace_bytes(p.batch.num_decode, p.heads, p.kv_heads, p.head_dim);
  if (workspace.bytes < needed) {
    throw Error(ErrorCode::kInternal, "attention_decode: workspace has " +
                                          std::to_string(workspace.bytes) + " bytes, needs " +
                                          std::to_string(needed));
  }
  const int group = p.heads / p.kv_heads;
  decode::Params params = {};
  params.q = p.q;
  if (p.qkv != nullptr) {
    params.q = p.qkv->qkv;
    params.making = {p.qkv->cos_sin, p.qkv->q_norm, p.qkv->k_norm, p.qkv->norm_eps};
  }
  params.out = p.out;
  params.kv = p.kv.base;
  params.context_len = p.batch.context_len;
  params.block_tables = p.batch.block_tables;
  params.counters = static_cast<int32_t*>(workspace.data);
  // The parts end where the workspace does, so that the counters' place never depends on the batch.
  auto* end = static_cast<uint8_t*>(workspace.data) + workspace.bytes / 16 * 16;
  const size_t slots = size_t{2} * kMaxBlocksPerSm * device_info().sms;
  params.part_stats = reinterpret_cast<float*>(end - slots * group * 2 * sizeof(float));
  params.parts = params.part_stats - slots * group * p.head_dim;
  params.scale_log2 = p.scale * 1.4426950408889634F;
  params.window = p.window;
  params.heads = p.heads;
  params.kv_heads = p.kv_heads;
  params.layer = p.layer;
  params.num_layers = p.kv.num_layers;
  params.block_stride = static_cast<int32_t>(p.kv.block_bytes() / 512);
  params.scales_begin = static_cast<int32_t>(p.kv.scales_begin() / 512);
  params.scales_stride = static_cast<int32_t>(p.kv.scales_stride() / 512);
  params.num_decode = p.batch.num_decode;
  params.block_table_stride = p.batch.block_table_stride;
  params.stages = plan.stages;
  params.few_owners = std::min(plan.grid, 2 * device_info().sms);
  if (p.qkv == nullptr) {
    (int8 ? decode::launch_int8 : decode::launch_16bit)(act, p.head_dim, params, plan, stream);
  } else if (int8) {
    decode::launch_making_int8(act, params, plan, stream);
  } else {
    decode::launch_making_16bit(act, p.head_dim, params, plan, stream);
  }
}

}  // namespace treadle::cuda
