#include "ops/cpu/backend.h"

#include <cstring>

#include "ops/cpu/sample.h"

namespace treadle::ops {
namespace cpu {
namespace {

Backend& backend(void* self) { return *static_cast<Backend*>(self); }

/// The table's entry for one of the functions over a parameter struct.
template <typename Params, void (*Function)(Backend&, const Params&)>
void call(void* self, const Params& params, Stream /*stream*/) {
  Function(backend(self), params);
}

void copy(void* /*self*/, void* to, const void* from, size_t bytes, Stream /*stream*/) {
  if (bytes > 0) std::memcpy(to, from, bytes);
}

}  // namespace

void Backend::reserve_scratch(size_t floats_per_thread) {
  // Whole pages, an odd number of cache lines apart: no two threads share a line.
  const size_t wanted = (floats_per_thread + 1023) / 1024 * 1024 + 16;
  if (wanted <= scratch_stride_) return;
  memory.release(scratch_);
  scratch_ = nullptr;
  scratch_stride_ = 0;
  scratch_ =
      static_cast<float*>(memory.allocate(size_t(pool.num_threads()) * wanted * sizeof(float)));
  scratch_stride_ = wanted;
}

Ops make_ops(int num_threads, Isa isa) {
  Ops ops;
  ops.name = "cpu";
  ops.act_dtype = DType::kF32;
  ops.defaults = {.max_batch_size = 64,
                  .prefill_tokens = 512,
                  .pool_fraction = 0.5,
                  .pool_bytes = size_t{4} << 30,
                  .pool_to_need = true,
                  .logit_bytes = size_t{32} << 20};
  auto* made = new Backend(num_threads, isa);
  ops.num_threads = made->pool.num_threads();
  ops.self = made;
  ops.alloc = [](void* self, size_t bytes) { return backend(self).memory.allocate(bytes); };
  ops.release = [](void* self, void* ptr) { backend(self).memory.release(ptr); };
  ops.free_memory = [](void* /*self*/) { return available_memory(); };
  ops.total_memory = [](void* /*self*/) { return total_memory(); };
  ops.upload = copy;
  ops.download = copy;
  ops.synchronize = [](void* /*self*/, Stream /*stream*/) {};
  ops.make_linear = [](void* self, const WeightPiece* pieces, int32_t count, int64_t in_features,
                       const float* bias, bool silu_mul) {
    return make_linear(backend(self), pieces, count, in_features, bias, silu_mul);
  };
  ops.release_linear = [](void* self, LinearWeight* weight) {
    release_linear(backend(self), weight);
  };
  ops.embed = call<EmbedParams, embed>;
  ops.linear = call<LinearParams, linear>;
  ops.rope = call<RopeParams, rope>;
  ops.qkv = call<QkvParams, qkv>;
  ops.attention = call<AttentionParams, attention>;
  ops.gather = call<GatherParams, gather>;
  ops.copy_block = call<CopyBlockParams, copy_block>;
  ops.sample = [](void* self, const SampleParams& params, Stream /*stream*/) {
    sample(backend(self).pool, params);
  };
  ops.destroy = [](void* self) { delete static_cast<Backend*>(self); };
  return ops;
}

}  // namespace cpu

Ops cpu_ops(int32_t num_threads) {
  return cpu::make_ops(num_threads, cpu::supported_isas().back());
}

}  // namespace treadle::ops
