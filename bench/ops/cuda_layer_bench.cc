// The operations of a decode step of llama-3-8b as one graph, and the same with some left out: what
// each adds to the chain, beside the time in which the weights can be read. "One op":
// attention does the work of QKV as well; the step has what the engine would choose.
//
// Usage: cuda_layer_bench [int4] [kv8] [context:LENGTH, default 256]
//                         [sequences, default 1 4 8 16 32 64]
//
// With int4 the layers' weights have 4 bits (groups of 128) and the head has 16. With kv8 the KV
// pool is int8.
// Four layers' weights take turns, so that none is in the L2 cache when it is needed.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <vector>

#include <cuda_runtime_api.h>

#include "graph_timing.h"
#include "int4_weights.h"
#include "linear/int4_layout.h"
#include "ops_cuda.h"

namespace treadle::cuda {
namespace {

constexpr int kLayers = 32;
constexpr int kCopies = 4;
constexpr int kHidden = 4096;
constexpr int kInner = 14336;
constexpr int kHeads = 32;
constexpr int kKvHeads = 8;
constexpr int kHeadDim = 128;
constexpr int kFeatures = (kHeads + 2 * kKvHeads) * kHeadDim;
constexpr int kVocab = 128256;
constexpr int kMaxTokens = 256;

struct Layer {
  ops::LinearWeight qkv, o, gate_up, down;
};

/// Whether attention does the work of QKV (kOne) or there are two operations.
enum class Qkv : uint8_t { kAsInEngine, kOne, kTwo };

/// Which operations of a layer run.
struct Parts {
  const char* name;
  bool products, split, attention, head;
  Qkv qkv = Qkv::kAsInEngine;
};

class Model {
 public:
  Model(const ops::Ops& ops, cudaStream_t stream, bool four_bits, ops::DType kv, int context)
      : ops_(ops), stream_(stream) {
    for (Layer& layer : layers_) {
      layer.qkv = weight(kFeatures, kHidden, false, four_bits);
      layer.o = weight(kHidden, kHeads * kHeadDim, false, four_bits);
      layer.gate_up = weight(2 * kInner, kHidden, true, four_bits);
      layer.down = weight(kHidden, kInner, false, four_bits);
    }
    head_ = weight(kVocab, kHidden, false, false);
    residual_ = alloc(size_t{kMaxTokens} * kHidden * 2);
    qkv_ = alloc(size_t{kMaxTokens} * kFeatures * 2);
    q_ = alloc(size_t{kMaxTokens} * kHidden * 2);
    attended_ = alloc(size_t{kMaxTokens} * kHidden * 2);
    gated_ = alloc(size_t{kMaxTokens} * kInner * 2);
    logits_ = alloc(size_t{kMaxTokens} * kVocab * 4);
    norm_ = upload(std::vector<float>(kHidden, 1.0F));
    cos_sin_ = upload(std::vector<float>(size_t{kMaxTokens} * kHeadDim, 0.5F));
    const std::vector<uint16_t> x = random_halves(size_t{kMaxTokens} * kHidden);
    ops.upload(ops.self, residual_, x.data(), x.size() * 2, {});
    make_batch(kv, context);
    ops.synchronize(ops.self, {});
  }
  ~Model() {
    for (Layer& layer : layers_) {
      for (ops::LinearWeight* w : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) {
        ops_.release_linear(ops_.self, w);
      }
    }
    ops_.release_linear(ops_.self, &head_);
    for (void* memory : memory_) ops_.release(ops_.self, memory);
  }
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  double seconds(int tokens, const Parts& parts) {
    return graph_seconds(stream_, 1, [&](int) { step(tokens, parts); });
  }

 private:
  ops::LinearWeight weight(int n, int k, bool silu, bool four_bits) {
    if (four_bits) {
      const RandomInt4 numbers(n, k);
      const ops::WeightPiece piece = numbers.piece();
      return ops_.make_linear(ops_.self, &piece, 1, k, nullptr, silu);
    }
    const std::vector<uint16_t> host = random_halves(size_t(n) * size_t(k));
    const ops::WeightPiece piece{host.data(), ops_.act_dtype, n};
    return ops_.make_linear(ops_.self, &piece, 1, k, nullptr, silu);
  }
  void* alloc(size_t bytes) { return memory_.emplace_back(ops_.alloc(ops_.self, bytes)); }
  template <class T>
  T* upload(const std::vector<T>& host) {
    T* to = static_cast<T*>(alloc(host.size() * sizeof(T)));
    ops_.upload(ops_.self, to, host.data(), host.size() * sizeof(T), {});
    return to;
  }

  /// kMaxTokens sequences of one token each.
  void make_batch(ops::DType kv, int context) {
    const int blocks = (context + ops::kBlockTokens - 1) / ops::kBlockTokens;
    pool_ = {.dtype = kv,
             .num_blocks = kMaxTokens * blocks,
             .num_layers = kLayers,
             .kv_heads = kKvHeads,
             .head_dim = kHeadDim};
    pool_.base = alloc(pool_.block_bytes() * size_t(pool_.num_blocks));
    std::vector<int32_t> tables;
    std::vector<int32_t> sequences;
    std::vector<int32_t> begins;
    for (int i = 0; i < kMaxTokens; ++i) {
      for (int b = 0; b < blocks; ++b) tables.push_back(i * blocks + b);
      sequences.push_back(i);
      begins.push_back(i);
    }
    begins.push_back(kMaxTokens);
    batch_.max_query_len = 1;
    batch_.max_context_len = context;
    batch_.query_begin = upload(begins);
    batch_.context_len = upload(std::vector<int32_t>(kMaxTokens, context));
    batch_.block_tables = upload(tables);
    batch_.block_table_stride = blocks;
    batch_.token_sequence = upload(sequences);
    batch_.positions = upload(std::vector<int32_t>(kMaxTokens, context - 1));
  }

  void linear(const ops::LinearWeight& w, const void* x, void* y, int tokens, bool norm,
              bool silu_mul, bool add, bool float_output = false) {
    ops_.linear(ops_.self,
                {.x = x,
                 .weight = &w,
                 .norm = norm ? norm_ : nullptr,
                 .y = y,
                 .num_tokens = tokens,
                 .silu_mul = silu_mul,
                 .add = add,
                 .float_output = float_output},
                {stream_});
  }

  void step(int tokens, const Parts& parts) {
    batch_.num_tokens = batch_.num_sequences = batch_.num_decode = tokens;
    for (int i = 0; i < kLayers; ++i) {
      const Layer& layer = layers_[i % kCopies];
      if (parts.products) linear(layer.qkv, residual_, qkv_, tokens, true, false, false);
      const ops::QkvParams qkv{.qkv = qkv_,
                               .q_out = q_,
                               .cos_sin = cos_sin_,
                               .rotary_dim = kHeadDim,
                               .heads = kHeads,
                               .kv_heads = kKvHeads,
                               .head_dim = kHeadDim,
                               .layer = i,
                               .kv = pool_,
                               .batch = batch_};
      const bool one =
          parts.split && parts.attention && parts.qkv != Qkv::kTwo &&
          (parts.qkv == Qkv::kOne || ops_.attention_makes_qkv(ops_.self, qkv, layer.qkv));
      if (parts.split && !one) ops_.qkv(ops_.self, qkv, {stream_});
      if (parts.attention) {
        ops_.attention(ops_.self,
                       {.q = q_,
                        .out = attended_,
                        .scale = 0.09F,
                        .heads = kHeads,
                        .kv_heads = kKvHeads,
                        .head_dim = kHeadDim,
                        .layer = i,
                        .kv = pool_,
                        .batch = batch_,
                        .qkv = one ? &qkv : nullptr},
                       {stream_});
      }
      if (!parts.products) continue;
      linear(layer.o, attended_, residual_, tokens, false, false, true);
      linear(layer.gate_up, residual_, gated_, tokens, true, true, false);
      linear(layer.down, gated_, residual_, tokens, false, false, true);
    }
    if (parts.head) linear(head_, residual_, logits_, tokens, true, false, false, true);
  }

  const ops::Ops& ops_;
  cudaStream_t stream_;
  std::vector<void*> memory_;
  Layer layers_[kCopies];
  ops::LinearWeight head_;
  void* residual_ = nullptr;
  void* qkv_ = nullptr;
  void* q_ = nullptr;
  void* attended_ = nullptr;
  void* gated_ = nullptr;
  void* logits_ = nullptr;
  float* norm_ = nullptr;
  float* cos_sin_ = nullptr;
  ops::KvPool pool_;
  ops::SequenceBatch batch_;
};

/// Bytes of a layer's weight.
double weight_bytes(int n, int k, bool silu, bool four_bits) {
  return four_bits ? static_cast<double>(int4::layout_of(n, k, 128, silu).bytes()) : 2.0 * n * k;
}

void bench(const ops::Ops& ops, cudaStream_t stream, bool four_bits, ops::DType kv, int context,
           const std::vector<int>& counts) {
  Model model(ops, stream, four_bits, kv, context);
  const Parts all{"the step", true, true, true, true};
  const Parts variants[] = {all,
                            {"no head, one op", true, true, true, false, Qkv::kOne},
                            {"no head, two ops", true, true, true, false, Qkv::kTwo},
                            {"no head, attention", true, true, false, false},
                            {"products only", true, false, false, false},
                            {"no products, one op", false, true, true, false, Qkv::kOne},
                            {"no products, two ops", false, true, true, false, Qkv::kTwo}};
  const double layer_bytes = kLayers * (weight_bytes(kFeatures, kHidden, false, four_bits) +
                                        weight_bytes(kHidden, kHeads * kHeadDim, false, four_bits) +
                                        weight_bytes(2 * kInner, kHidden, true, four_bits) +
                                        weight_bytes(kHidden, kInner, false, four_bits));
  const double head_bytes = 2.0 * kHidden * kVocab;
  std::printf("%s, %d layers%s, %s KV: milliseconds\n%-20s %7s", ops::dtype_name(ops.act_dtype),
              kLayers, four_bits ? " of int4 weights" : "", ops::dtype_name(kv), "", "limit");
  for (const int tokens : counts) std::printf(" %5d seq", tokens);
  // Variants in turns, so that a clock that falls is nobody's advantage.
  std::vector<std::vector<double>> seconds(std::size(variants));
  for (const int tokens : counts) {
    for (size_t i = 0; i < std::size(variants); ++i) {
      seconds[i].push_back(model.seconds(tokens, variants[i]));
    }
  }
  for (size_t i = 0; i < std::size(variants); ++i) {
    const Parts& parts = variants[i];
    const double bytes = (parts.products ? layer_bytes : 0.0) + (parts.head ? head_bytes : 0.0);
    std::printf("\n%-20s %7.3f", parts.name, 1e3 * bytes / kReadLimit);
    for (const double s : seconds[i]) std::printf(" %9.3f", 1e3 * s);
  }
  std::printf("\n");
}

}  // namespace
}  // namespace treadle::cuda

int main(int argc, char** argv) {
  namespace gpu = treadle::cuda;
  namespace ops = treadle::ops;
  if (ops::cuda_device_count() == 0) {
    std::printf("no GPU\n");
    return 77;
  }
  gpu::check(cudaSetDevice(0), "choose device");
  const gpu::StreamHandle stream = gpu::make_stream();
  const ops::Ops table = ops::cuda_ops(0, ops::DType::kF16);
  bool four_bits = false;
  ops::DType kv = table.act_dtype;
  int context = 256;
  std::vector<int> counts;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "int4") == 0) {
      four_bits = true;
    } else if (std::strcmp(argv[i], "kv8") == 0) {
      kv = ops::DType::kI8;
    } else if (std::strncmp(argv[i], "context:", 8) == 0) {
      context = std::max(std::atoi(argv[i] + 8), 1);
    } else {
      counts.push_back(std::clamp(std::atoi(argv[i]), 1, gpu::kMaxTokens));
    }
  }
  if (counts.empty()) counts = {1, 4, 8, 16, 32, 64};
  gpu::bench(table, stream.get(), four_bits, kv, context, counts);
  table.destroy(table.self);
  return 0;
}
