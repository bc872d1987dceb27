// Fills the seam's table; the one file that chooses between alternative kernels.
#include "ops_cuda.h"

#include <cstring>
#include <memory>
#include <string>

#include "attention_decode/attention_decode.h"
#include "attention_prefill/attention_prefill.h"
#include "backend.h"
#include "common/dispatch.h"
#include "elementwise/elementwise.h"

namespace treadle::cuda {
namespace {

// Left to the driver, to cuBLASLt and to workspaces that grow with use.
constexpr size_t kReserveBytes = size_t{512} << 20;

Backend& backend(void* self) {
  Backend& b = *static_cast<Backend*>(self);
  b.make_current();
  return b;
}

std::string device_name(int32_t device) { return "cuda:" + std::to_string(device); }

[[noreturn]] void out_of_memory(const Backend& b, size_t bytes) {
  throw Error(ErrorCode::kOutOfMemory,
              b.name + " cannot allocate " + std::to_string(bytes >> 20) + " MiB");
}

void* allocate(Backend& b, size_t bytes) {
  void* ptr = nullptr;
  const size_t size = bytes > 0 ? bytes : 1;
  ++device_memory_epoch();
  const cudaError_t status = cudaMalloc(&ptr, size);
  if (status == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();  // the error is not sticky, but it is remembered
    out_of_memory(b, bytes);
  }
  check(status, "allocate device memory");
  check(cudaMemsetAsync(ptr, 0, size, b.own_stream.get()), "clear memory");
  return ptr;
}

size_t free_memory(Backend& /*b*/) {
  size_t free = 0;
  size_t total = 0;
  check(cudaMemGetInfo(&free, &total), "ask for free memory");
  return free > kReserveBytes ? free - kReserveBytes : 0;
}

size_t total_memory(Backend& /*b*/) {
  size_t free = 0;
  size_t total = 0;
  check(cudaMemGetInfo(&free, &total), "ask for memory");
  return total;
}

void upload(Backend& b, void* dst, const void* host, size_t bytes, cudaStream_t stream) {
  constexpr size_t kBulk = size_t{4} << 20;
  if (bytes < kBulk) return b.uploads.upload(dst, host, bytes, stream);
  const auto* from = static_cast<const char*>(host);
  b.weights.upload(dst, bytes, 1, stream, [from](size_t first, size_t count, char* to) {
    std::memcpy(to, from + first, count);
  });
}

// Destructors call these: a broken device must not end the process. Its error shows up in the next
// operation that can report it.
void release(void* ptr) noexcept { (void)cudaFree(ptr); }

}  // namespace

void Scratch::reserve(size_t wanted, cudaStream_t stream) {
  if (bytes >= wanted) return;
  memory = DeviceMemory();
  bytes = 0;
  memory = make_device_memory(wanted);
  bytes = wanted;
  check(cudaMemsetAsync(memory.get(), 0, wanted, stream), "clear memory");
}

Backend::Backend(int32_t device_index, ops::DType act_dtype)
    : device(device_index),
      act(act_dtype),
      name(device_name(device_index)),
      own_stream(make_stream()),
      matmul(act_dtype) {}

Backend::~Backend() {
  (void)cudaSetDevice(device);
  (void)cudaStreamSynchronize(own_stream.get());
}

/// One operation instead of two saves a start. But beside the small QKV operation attention would
/// find its work and ask for its first keys, and it cannot beside every product: not before one of
/// cuBLASLt's ends, as there are for more sequences than these, nor beside those of 4 bits for few.
bool attention_makes_qkv(const Backend& b, const ops::QkvParams& p,
                         const ops::LinearWeight& projection) {
  const int least = projection.format == ops::WeightFormat::kInt4Group ? 17 : 1;
  constexpr int kMost = 96;
  const int sequences = p.batch.num_decode;
  return sequences == p.batch.num_tokens && sequences >= least && sequences <= kMost &&
         supports_attention_qkv(p, b.act);
}

void attention(Backend& b, const ops::AttentionParams& p, cudaStream_t stream) {
  if (p.batch.num_decode > 0) {
    if (!supports_attention_decode(p)) {
      throw_unsupported("attention of head_dim " + std::to_string(p.head_dim) + " with " +
                        std::to_string(p.heads) + "/" + std::to_string(p.kv_heads) + " heads");
    }
    // Rounded up, so that a growing batch does not reallocate at every step.
    int32_t sequences = 64;
    while (sequences < p.batch.num_decode) sequences *= 2;
    b.decode_scratch.reserve(decode_workspace_bytes(sequences, p.heads, p.kv_heads, p.head_dim),
                             stream);
    DecodeWorkspace workspace{b.decode_scratch.memory.get(), b.decode_scratch.bytes};
    attention_decode(p, b.act, workspace, stream);
  }
  if (p.batch.num_sequences > p.batch.num_decode) {
    if (p.qkv != nullptr) throw Error(ErrorCode::kInternal, "attention: qkv of prompt tokens");
    if (!supports_attention_prefill(p)) {
      throw_unsupported("attention of head_dim " + std::to_string(p.head_dim));
    }
    b.prefill_scratch.reserve(prefill_workspace_bytes(), stream);
    PrefillWorkspace workspace{b.prefill_scratch.memory.get(), b.prefill_scratch.bytes};
    attention_prefill(p, b.act, workspace, stream);
  }
}

namespace {

/// The table's entry for an operation that needs nothing but its parameters and the act type.
template <class Params, void (*Function)(const Params&, ops::DType, cudaStream_t)>
void call(void* self, const Params& params, ops::Stream stream) {
  Backend& b = backend(self);
  Function(params, b.act, b.stream_of(stream));
}

/// The same with the backend.
template <class Params, void (*Function)(Backend&, const Params&, cudaStream_t)>
void call_with_backend(void* self, const Params& params, ops::Stream stream) {
  Backend& b = backend(self);
  Function(b, params, b.stream_of(stream));
}

template <class Params, void (*Function)(const Params&, cudaStream_t)>
void call_plain(void* self, const Params& params, ops::Stream stream) {
  Function(params, backend(self).stream_of(stream));
}

void check_device(int32_t device) {
  const ops::GpuReport report = ops::cuda_gpus();
  if (report.gpus.empty()) throw_unsupported(report.problem);
  if (device < 0 || device >= static_cast<int32_t>(report.gpus.size())) {
    throw_unsupported("there is no device " + std::to_string(device) + ": the driver offers " +
                      std::to_string(report.gpus.size()) + ", counted from 0");
  }
  const ops::Gpu& gpu = report.gpus[static_cast<size_t>(device)];
  if (!gpu.problem.empty()) throw_unsupported(gpu.name + " " + gpu.problem);
  check(cudaSetDevice(device), "choose device");
  if (!has_code_for_device()) {
    throw_unsupported(gpu.name + " cannot run this build's kernels; the driver may be too old");
  }
}

std::unique_ptr<Backend> make_backend(int32_t device, ops::DType act_dtype) {
  try {
    check_device(device);
    return std::make_unique<Backend>(device, act_dtype);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kOutOfMemory) throw;
    size_t free = 0;
    size_t total = 0;
    (void)cudaGetLastError();
    (void)cudaMemGetInfo(&free, &total);
    throw Error(ErrorCode::kOutOfMemory, device_name(device) +
                                             " is full: " + std::to_string(free >> 20) + " of " +
                                             std::to_string(total >> 20) + " MiB are free");
  }
}

}  // namespace
}  // namespace treadle::cuda

namespace treadle::ops {

int32_t cuda_device_count() noexcept {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

Ops cuda_ops(int32_t device, DType act_dtype) {
  namespace gpu = treadle::cuda;
  if (act_dtype != DType::kF16 && act_dtype != DType::kBF16) {
    gpu::throw_unsupported(std::string("activations of type ") + dtype_name(act_dtype) +
                           "; use float16 or bfloat16");
  }
  std::unique_ptr<gpu::Backend> made = gpu::make_backend(device, act_dtype);
  Ops ops;
  ops.name = made->name.c_str();
  ops.act_dtype = act_dtype;
  ops.defaults = {.max_batch_size = 512,
                  .prefill_tokens = 8192,
                  .mixed_prefill_tokens = 320,
                  .pool_fraction = 0.8,
                  .logit_bytes = size_t{256} << 20};
  ops.alloc = [](void* self, size_t bytes) { return gpu::allocate(gpu::backend(self), bytes); };
  ops.release = [](void* /*self*/, void* ptr) { gpu::release(ptr); };
  ops.free_memory = [](void* self) { return gpu::free_memory(gpu::backend(self)); };
  ops.total_memory = [](void* self) { return gpu::total_memory(gpu::backend(self)); };
  ops.scratch_bytes = [](void* self) { return gpu::backend(self).scratch_bytes(); };
  ops.upload = [](void* self, void* dst, const void* host, size_t bytes, Stream stream) {
    gpu::Backend& b = gpu::backend(self);
    gpu::upload(b, dst, host, bytes, b.stream_of(stream));
  };
  ops.download = [](void* self, void* host, const void* src, size_t bytes, Stream stream) {
    gpu::Backend& b = gpu::backend(self);
    b.downloads.download(host, src, bytes, b.stream_of(stream));
  };
  ops.synchronize = [](void* self, Stream stream) {
    gpu::Backend& b = gpu::backend(self);
    b.downloads.wait(b.downloads.mark(b.stream_of(stream)));
  };
  ops.mark = [](void* self, Stream stream) {
    gpu::Backend& b = gpu::backend(self);
    return b.downloads.mark(b.stream_of(stream));
  };
  ops.wait = [](void* self, uint64_t mark) { gpu::backend(self).downloads.wait(mark); };
  ops.make_linear = [](void* self, const WeightPiece* pieces, int32_t count, int64_t in_features,
                       const float* bias, bool silu_mul) {
    return gpu::make_linear(gpu::backend(self), pieces, count, in_features, bias, silu_mul);
  };
  ops.release_linear = [](void* /*self*/, LinearWeight* weight) {
    gpu::release(weight->data);
    gpu::release(const_cast<float*>(weight->bias));
    gpu::release(weight->group_of);
    *weight = {};
  };
  ops.embed = gpu::call<EmbedParams, gpu::embed>;
  ops.linear = gpu::call_with_backend<LinearParams, gpu::linear>;
  ops.rope = gpu::call_plain<RopeParams, gpu::rope>;
  ops.qkv = gpu::call<QkvParams, gpu::qkv>;
  ops.attention = gpu::call_with_backend<AttentionParams, gpu::attention>;
  ops.attention_makes_qkv = [](void* self, const QkvParams& p, const LinearWeight& projection) {
    return gpu::attention_makes_qkv(gpu::backend(self), p, projection);
  };
  ops.gather = gpu::call<GatherParams, gpu::gather>;
  ops.copy_block = gpu::call_plain<CopyBlockParams, gpu::copy_block>;
  ops.sample = gpu::call_plain<SampleParams, gpu::sample>;
  ops.replay = [](void* self, uint64_t key, void (*body)(void*), void* context, Stream stream) {
    gpu::Backend& b = gpu::backend(self);
    b.graphs.run(key, body, context, b.stream_of(stream));
  };
  ops.destroy = [](void* self) { delete static_cast<gpu::Backend*>(self); };
  ops.self = made.release();
  return ops;
}

}  // namespace treadle::ops
