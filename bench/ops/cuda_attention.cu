// Times attention on the GPU the way the reference figures were taken: a captured graph whose
// launches walk through layers, so that no launch finds its keys in L2. Prints microseconds and the
// rate beside FlashAttention 3's (vLLM 0.24, one H200; docs/design/cuda-attention.md).
//
//   cuda_attention decode|mha|short|short_mha|prefill|mma [batch length]
//   cuda_attention qkv
//
// short and short_mha are decode and mha of many short sequences; lengths marked ~ are ragged, of
// this mean: from an eighth of it to almost twice.
// With an 8 behind the word (decode8) the pool is int8, with 8s of static scales. Its bytes are
// those of each token's scales, too. `qkv` is the operation before attention: from the projection
// to Q and the pool; with an 8 also with static ranges, one for each head, in place of a range for
// each token.
#include <cstdio>
#include <cstring>
#include <numeric>
#include <string>

#include "attention_decode/attention_decode.h"
#include "attention_prefill/attention_prefill.h"
#include "attention_problem.cuh"
#include "elementwise/elementwise.h"

using namespace treadle::cuda;           // NOLINT: a bench program
using namespace treadle::cuda::testing;  // NOLINT
using treadle::ops::AttentionParams;

namespace {

constexpr treadle::ops::DType kType = treadle::ops::DType::kF16;

/// Median microseconds of one launch; `run` is captured for each layer in turn.
template <class Run>
double time_layers(int layers, Run run) {
  StreamHandle stream = make_stream();
  cudaGraph_t raw = nullptr;
  for (int i = 0; i < layers; ++i) run(i, stream.get());  // loads the kernel
  check(cudaStreamSynchronize(stream.get()), "warm up");
  check(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < layers; ++i) run(i, stream.get());
  check(cudaStreamEndCapture(stream.get(), &raw), "capture");
  GraphHandle graph(raw);
  cudaGraphExec_t exec = nullptr;
  check(cudaGraphInstantiate(&exec, graph.get(), 0), "instantiate");
  GraphExecHandle owner(exec);
  EventHandle a = make_event(true);
  EventHandle b = make_event(true);
  std::vector<float> times;
  for (int i = 0; i < 12; ++i) {
    check(cudaEventRecord(a.get(), stream.get()), "event");
    check(cudaGraphLaunch(exec, stream.get()), "replay");
    check(cudaEventRecord(b.get(), stream.get()), "event");
    check(cudaStreamSynchronize(stream.get()), "replay");
    float ms = 0.0F;
    check(cudaEventElapsedTime(&ms, a.get(), b.get()), "event");
    if (i >= 2) times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2] * 1000.0 / layers;
}

struct Column {
  int batch, length;
  double peer = 0;  // microseconds or TFLOP/s of FlashAttention 3, 0 where it was not measured
  bool ragged = false;
};

/// Lengths of a ragged batch, from length / 8 to 2 * length - length / 8, evenly, in no order.
std::vector<SequenceShape> decode_lengths(const Column& c) {
  std::vector<SequenceShape> sequences;
  for (int i = 0; i < c.batch; ++i) {
    const int place = static_cast<int>(int64_t{i} * 7919 % c.batch);  // a prime: each place once
    const int least = c.length / 8;
    const int span = 2 * (c.length - least);
    sequences.push_back({1, c.ragged ? least + (2 * place + 1) * span / (2 * c.batch) : c.length});
  }
  return sequences;
}

void decode(int heads, int kv_heads, bool int8, bool static_scales,
            const std::vector<Column>& columns) {
  std::printf("decode %d/%d heads, head_dim 128, fp16%s%s\n%10s %9s %8s %9s\n", heads, kv_heads,
              int8 ? ", int8 pool" : "", static_scales ? " with static scales" : "", "batch x ctx",
              "us", "TB/s", "FA3 us");
  for (const Column& c : columns) {
    ProblemShape shape;
    shape.sequences = decode_lengths(c);
    double keys = 0;
    for (const SequenceShape& sequence : shape.sequences) keys += sequence.context_len;
    const double bytes = keys * kv_heads * 2 * (static_scales ? 128 : int8 ? 128 + 8 : 128 * 2);
    shape.num_decode = c.batch;
    shape.heads = heads;
    shape.kv_heads = kv_heads;
    shape.num_layers = std::clamp(static_cast<int>(1e9 / bytes), 2, 64);
    shape.int8 = int8;
    shape.static_scales = static_scales;
    shape.poison = false;
    Problem<__half> problem(shape);
    const size_t need = decode_workspace_bytes(c.batch, heads, kv_heads, 128);
    DeviceMemory memory = make_device_memory(need);
    check(cudaMemset(memory.get(), 0, need), "zero");
    DecodeWorkspace workspace{memory.get(), need};
    const double us = time_layers(shape.num_layers, [&](int layer, cudaStream_t stream) {
      AttentionParams p = problem.params();
      p.layer = layer;
      attention_decode(p, kType, workspace, stream);
    });
    std::printf("%4dx%s%-6d %9.1f %8.2f", c.batch, c.ragged ? "~" : "", c.length, us,
                bytes / us * 1e-6);
    if (c.peer > 0) std::printf(" %9.1f", c.peer);
    std::printf("\n");
  }
}

void prefill(bool mma, bool int8, const std::vector<Column>& columns) {
  std::printf("prefill %s, causal, 32/8 heads, head_dim 128, fp16%s\n%10s %9s %8s %9s\n",
              mma ? "mma.sync" : "best", int8 ? ", int8 pool" : "", "batch x len", "us", "TFLOP/s",
              "FA3");
  for (const Column& c : columns) {
    ProblemShape shape;
    shape.sequences.assign(c.batch, {c.length, c.length});
    shape.num_layers = 2;
    shape.int8 = int8;
    shape.poison = false;
    Problem<__half> problem(shape);
    DeviceMemory memory = make_device_memory(prefill_workspace_bytes());
    check(cudaMemset(memory.get(), 0, prefill_workspace_bytes()), "zero");
    PrefillWorkspace workspace{memory.get(), prefill_workspace_bytes()};
    const double us = time_layers(2 * 5, [&](int layer, cudaStream_t stream) {
      AttentionParams p = problem.params();
      p.layer = layer % 2;
      if (mma) {
        attention_prefill_mma(p, kType, stream);
      } else {
        attention_prefill(p, kType, workspace, stream);
      }
    });
    const double flop = 4.0 * c.batch * 32 * 128 * (double(c.length) * (c.length + 1) / 2);
    std::printf("%4dx%-6d %9.1f %8.0f %9.0f\n", c.batch, c.length, us, flop / us * 1e-6, c.peer);
  }
}

/// One prompt of llama-3-8b's heads at a time: microseconds of one launch.
double qkv_us(int tokens, bool int8, bool static_scales) {
  constexpr int kLayers = 8;
  constexpr int kKvHeads = 8;
  constexpr int kFeatures = (32 + 2 * kKvHeads) * 128;
  ProblemShape shape;
  shape.sequences = {{tokens, tokens}};
  shape.num_layers = kLayers;
  shape.int8 = int8;
  shape.static_scales = static_scales;
  shape.poison = false;
  Problem<__half> problem(shape);
  const size_t elements = size_t{kFeatures} * tokens;
  DeviceMemory projected = make_device_memory(elements * kLayers * sizeof(__half));
  fill_normal<<<1024, 256>>>(static_cast<__half*>(projected.get()), elements * kLayers, 3, 1.0F);
  DeviceMemory angles = make_device_memory(size_t(tokens) * 128 * sizeof(float));
  DeviceMemory sequence = make_device_memory(size_t(tokens) * 4);  // all are sequence 0
  check(cudaMemset(angles.get(), 0, size_t(tokens) * 128 * sizeof(float)), "zero");
  check(cudaMemset(sequence.get(), 0, size_t(tokens) * 4), "zero");
  std::vector<int32_t> counted(tokens);
  std::iota(counted.begin(), counted.end(), 0);
  DeviceMemory positions = make_device_memory(counted.size() * 4);
  check(cudaMemcpy(positions.get(), counted.data(), counted.size() * 4, cudaMemcpyHostToDevice),
        "upload");
  treadle::ops::QkvParams p{.rotary_dim = 128, .heads = 32, .kv_heads = kKvHeads, .head_dim = 128};
  p.q_out = const_cast<void*>(problem.params().q);
  p.cos_sin = static_cast<const float*>(angles.get());
  p.kv = problem.params().kv;
  p.batch = problem.params().batch;
  p.batch.token_sequence = static_cast<const int32_t*>(sequence.get());
  p.batch.positions = static_cast<const int32_t*>(positions.get());
  return time_layers(kLayers, [&](int layer, cudaStream_t stream) {
    p.layer = layer;
    p.qkv = static_cast<const __half*>(projected.get()) + elements * layer;
    treadle::cuda::qkv(p, kType, stream);
  });
}

void qkv(bool int8) {
  std::printf("qkv 32/8 heads, head_dim 128, fp16%s\n%10s %9s %8s%s\n", int8 ? ", int8 pool" : "",
              "tokens", "us", "TB/s", int8 ? " static us" : "");
  for (const int tokens : {1, 64, 128, 256, 1024, 2048, 8192}) {
    const double us = qkv_us(tokens, int8, false);
    const double bytes =
        double(tokens) * 2 * (48 * 128 + 32 * 128) + double(tokens) * 8 * 2 * (int8 ? 136 : 256);
    std::printf("%10d %9.1f %8.2f", tokens, us, bytes / us * 1e-6);
    if (int8) std::printf(" %9.1f", qkv_us(tokens, true, true));
    std::printf("\n");
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::string what = argc > 1 ? argv[1] : "decode";
  const bool static_scales = what.ends_with("8s");
  if (static_scales) what.pop_back();
  const bool int8 = what.ends_with('8');
  if (int8) what.pop_back();
  std::vector<Column> decode_columns = {
      {1, 1024, 10.5}, {1, 8192, 17.3}, {1, 65536, 72.4}, {8, 4096, 41.1}, {16, 4096, 69.8},
      {32, 4096, 131}, {64, 2048, 136}, {64, 4096, 253},  {256, 512, 151}, {256, 2048, 514}};
  std::vector<Column> mha_columns = {{1, 2048}, {1, 8192}, {8, 4096}, {64, 2048}};
  std::vector<Column> short_columns = {
      {8, 160},   {16, 160},  {32, 160},  {64, 160},  {128, 160},          {145, 160},
      {192, 160}, {256, 160}, {128, 256}, {256, 256}, {128, 256, 0, true}, {256, 256, 0, true},
      {256, 384}};
  std::vector<Column> short_mha_columns = {{32, 160},  {128, 160}, {256, 160},         {32, 256},
                                           {128, 256}, {256, 256}, {128, 256, 0, true}};
  std::vector<Column> prefill_columns = {{32, 512, 204}, {16, 1024, 337}, {8, 2048, 450},
                                         {4, 4096, 518}, {2, 8192, 549},  {1, 16384, 535}};
  if (argc > 3) {
    decode_columns = mha_columns = short_columns = short_mha_columns =
        prefill_columns = {{std::stoi(argv[2]), std::stoi(argv[3])}};
  }
  const auto run = [&](int kv_heads, const std::vector<Column>& columns) {
    decode(32, kv_heads, int8, static_scales, columns);
  };
  if (what == "decode") run(8, decode_columns);
  if (what == "mha") run(32, mha_columns);
  if (what == "short") run(8, short_columns);
  if (what == "short_mha") run(32, short_mha_columns);
  if (what == "prefill" || what == "mma") prefill(what == "mma", int8, prefill_columns);
  if (what == "qkv") qkv(int8);
  return 0;
}
