// Speed of the CUDA table's operations beside the limit of the memory they read: products of a few
// tokens (and cuBLASLt's for the same), sampling, elementwise operations, upload of weights.
//
// Times are medians of replayed graphs, each of launches that rotate over weights past the L2
// cache.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <random>
#include <vector>

#include <cuda_runtime_api.h>

#include "common/handles.h"
#include "elementwise/elementwise.h"
#include "linear/matmul.h"
#include "ops_cuda.h"

namespace treadle::cuda {
namespace {

constexpr double kLimit = 4.2e12;  // bytes per second that a read-only reduction reaches on an H200

/// Seconds of one launch among `launches` captured ones.
double graph_seconds(cudaStream_t stream, int launches, const std::function<void(int)>& launch) {
  for (int i = 0; i < launches; ++i) launch(i);
  check(cudaStreamSynchronize(stream), "warm up");
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < launches; ++i) launch(i);
  check(cudaStreamEndCapture(stream, &graph), "capture");
  const GraphHandle owned_graph(graph);
  check(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
  const GraphExecHandle owned_exec(exec);
  const EventHandle begin = make_event(true);
  const EventHandle end = make_event(true);
  std::vector<float> times;
  for (int i = 0; i < 12; ++i) {
    check(cudaEventRecord(begin.get(), stream), "record");
    check(cudaGraphLaunch(exec, stream), "replay");
    check(cudaEventRecord(end.get(), stream), "record");
    check(cudaEventSynchronize(end.get()), "wait");
    float ms = 0.0F;
    check(cudaEventElapsedTime(&ms, begin.get(), end.get()), "time");
    if (i >= 2) times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2] * 1e-3 / launches;
}

/// Seconds of one call, by events around a run of calls.
double call_seconds(cudaStream_t stream, int calls, const std::function<void()>& call) {
  const EventHandle begin = make_event(true);
  const EventHandle end = make_event(true);
  std::vector<float> times;
  for (int i = 0; i < 7; ++i) {
    check(cudaEventRecord(begin.get(), stream), "record");
    for (int c = 0; c < calls; ++c) call();
    check(cudaEventRecord(end.get(), stream), "record");
    check(cudaEventSynchronize(end.get()), "wait");
    float ms = 0.0F;
    check(cudaEventElapsedTime(&ms, begin.get(), end.get()), "time");
    if (i >= 2) times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2] * 1e-3 / calls;
}

std::vector<uint16_t> random_halves(size_t n) {
  std::vector<uint16_t> v(n);
  uint32_t state = 1;
  for (uint16_t& x : v) {  // +-[0.0156, 0.03)
    state = state * 1664525U + 1013904223U;
    x = static_cast<uint16_t>(0x2400U | (state >> 22) | ((state >> 6) & 0x8000U));
  }
  return v;
}

struct Shape {
  const char* name;
  int n, k;
  bool silu;
};

void bench_linear(const ops::Ops& ops, cudaStream_t stream, ops::DType act) {
  const Shape shapes[] = {{"qkv", 6144, 4096, false},     {"o", 4096, 4096, false},
                          {"gate_up", 28672, 4096, true}, {"gate_up plain", 28672, 4096, false},
                          {"down", 4096, 14336, false},   {"head", 128256, 4096, false}};
  Matmul matmul(act);
  std::printf("\n%s products: microseconds (share of %.1f TB/s)\n", ops::dtype_name(act),
              kLimit * 1e-12);
  std::printf("%-14s %16s %18s %18s %18s %18s %14s\n", "", "N x K", "M=1", "M=4", "M=8",
              "cuBLASLt M=1", "M=16");
  for (const Shape& s : shapes) {
    const size_t elements = size_t(s.n) * size_t(s.k);
    const std::vector<uint16_t> host = random_halves(elements);
    const ops::WeightPiece piece{host.data(), act, s.n};
    const int copies =
        static_cast<int>(std::clamp<size_t>((size_t{400} << 20) / (elements * 2), 2, 12));
    std::vector<ops::LinearWeight> weights;
    for (int i = 0; i < copies; ++i) {
      weights.push_back(ops.make_linear(ops.self, &piece, 1, s.k, nullptr, s.silu));
    }
    void* x = ops.alloc(ops.self, size_t(16) * s.k * 2);
    void* y = ops.alloc(ops.self, size_t(16) * s.n * 4);
    ops.upload(ops.self, x, host.data(), size_t(16) * s.k * 2, {});
    ops.synchronize(ops.self, {});
    const int launches = copies * (copies < 6 ? 4 : 2);
    const double bytes = double(elements) * 2;
    std::printf("%-14s %8d x %5d", s.name, s.n, s.k);
    const auto show = [&](double seconds) {
      std::printf("    %7.2f (%3.0f%%)", seconds * 1e6, 100.0 * bytes / seconds / kLimit);
    };
    const auto op = [&](int m) {
      return graph_seconds(stream, launches, [&](int i) {
        ops.linear(ops.self,
                   {.x = x,
                    .weight = &weights[size_t(i % copies)],
                    .y = y,
                    .num_tokens = m,
                    .silu_mul = s.silu,
                    .float_output = s.n > 100000},
                   {stream});
      });
    };
    for (const int m : {1, 4, 8}) show(op(m));
    show(graph_seconds(stream, launches, [&](int i) {
      matmul.run({.x = x,
                  .w = weights[size_t(i % copies)].data,
                  .y = y,
                  .m = 1,
                  .n = s.n,
                  .k = s.k,
                  .float_output = s.n > 100000},
                 stream);
    }));
    show(op(16));
    std::printf("\n");
    for (ops::LinearWeight& w : weights) ops.release_linear(ops.self, &w);
    ops.release(ops.self, x);
    ops.release(ops.self, y);
  }
}

struct Sampling {
  const char* name;
  float temperature, top_p;
  int32_t top_k;
  float sigma;
};

void bench_sample(const ops::Ops& ops, cudaStream_t stream) {
  const int32_t vocab = 152064;
  const Sampling cases[] = {{"greedy", 0.0F, 1.0F, 0, 3.0F},
                            {"top-k 50", 1.0F, 1.0F, 50, 3.0F},
                            {"top-k 50, top-p 0.9", 1.0F, 0.9F, 50, 3.0F},
                            {"top-p 0.9, peaked", 0.7F, 0.9F, 0, 6.0F},
                            {"top-p 0.9, flat", 1.0F, 0.9F, 0, 1.0F},
                            {"top-k 1000", 1.0F, 1.0F, 1000, 3.0F},
                            {"plain", 1.0F, 1.0F, 0, 3.0F}};
  std::printf("\nsampling, vocabulary %d, microseconds\n%-22s %8s %8s %8s\n", vocab, "", "1 row",
              "64 rows", "256 rows");
  const size_t elements = size_t{256} * vocab;
  float* logits = static_cast<float*>(ops.alloc(ops.self, elements * 4));
  auto* tokens = static_cast<int32_t*>(ops.alloc(ops.self, 256 * 4));
  std::vector<float> host(elements);
  std::vector<float> normal(1 << 20);
  std::mt19937 rng(1);
  std::normal_distribution<float> gauss(0.0F, 1.0F);
  for (float& x : normal) x = gauss(rng);
  for (const Sampling& c : cases) {
    for (size_t i = 0; i < elements; ++i) {
      host[i] = c.sigma * normal[(i + i / vocab * 7919) & (normal.size() - 1)];
    }
    ops.upload(ops.self, logits, host.data(), elements * 4, {});
    ops.synchronize(ops.self, {});
    std::printf("%-22s", c.name);
    for (const int32_t count : {1, 64, 256}) {
      std::vector<ops::SampleRow> rows(static_cast<size_t>(count));
      for (size_t i = 0; i < rows.size(); ++i) {
        rows[i].temperature = c.temperature;
        rows[i].top_p = c.top_p;
        rows[i].top_k = c.top_k;
        rows[i].seed = i;
      }
      const size_t row_bytes = rows.size() * sizeof(ops::SampleRow);
      void* device_rows = ops.alloc(ops.self, row_bytes);
      ops.upload(ops.self, device_rows, rows.data(), row_bytes, {stream});
      const ops::SampleParams p{.logits = logits,
                                .rows = static_cast<ops::SampleRow*>(device_rows),
                                .num_rows = count,
                                .vocab = vocab,
                                .tokens = tokens};
      std::printf(" %8.1f",
                  1e6 * call_seconds(stream, 20, [&] { ops.sample(ops.self, p, {stream}); }));
      ops.release(ops.self, device_rows);
    }
    std::printf("\n");
  }
  ops.release(ops.self, logits);
  ops.release(ops.self, tokens);
}

void bench_elementwise(const ops::Ops& ops, cudaStream_t stream, ops::DType act) {
  std::printf("\nelementwise, llama-3-8b: microseconds (bytes moved / 4.2 TB/s)\n");
  const int64_t widest = 2 * 14336;
  for (const int64_t tokens : {1, 64, 4096, 8192}) {
    void* in = ops.alloc(ops.self, size_t(tokens * widest) * 2);
    void* out = ops.alloc(ops.self, size_t(tokens * widest) * 2);
    auto* weight = static_cast<float*>(ops.alloc(ops.self, 4096 * 4));
    const auto show = [&](const char* name, int64_t elements, const std::function<void(int)>& op) {
      const double seconds = graph_seconds(stream, 20, op);
      std::printf("  %s %8.2f (%3.0f%%)", name, seconds * 1e6,
                  100.0 * 2 * double(tokens * elements) / seconds / kLimit);
    };
    std::printf("%6lld tokens", static_cast<long long>(tokens));
    show("norm", 2 * 4096, [&](int) {
      rms_norm({.x = in, .weight = weight, .eps = 1e-5F, .out = out, .rows = tokens, .width = 4096},
               act, stream);
    });
    show("silu_mul", 3 * 14336,
         [&](int) { silu_mul(in, out, static_cast<int32_t>(tokens), 14336, act, stream); });
    std::printf("\n");
    ops.release(ops.self, in);
    ops.release(ops.self, out);
    ops.release(ops.self, weight);
  }
}

void bench_upload(const ops::Ops& ops) {
  const int n = 28672;
  const int k = 4096;
  std::vector<uint16_t> host = random_halves(size_t(n) * k);
  const ops::WeightPiece piece{host.data(), ops::DType::kF16, n};
  double seconds = 0.0;
  const int rounds = 10;
  for (int i = -2; i < rounds; ++i) {
    const auto start = std::chrono::steady_clock::now();
    ops::LinearWeight w = ops.make_linear(ops.self, &piece, 1, k, nullptr, false);
    ops.synchronize(ops.self, {});
    if (i >= 0) {
      seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }
    ops.release_linear(ops.self, &w);
  }
  std::printf("\nupload of weights: %.1f GB/s\n", double(n) * k * 2 * rounds / seconds * 1e-9);
}

}  // namespace
}  // namespace treadle::cuda

int main() {
  namespace gpu = treadle::cuda;
  namespace ops = treadle::ops;
  if (ops::cuda_device_count() == 0) {
    std::printf("no GPU\n");
    return 77;
  }
  const gpu::StreamHandle stream = [] {
    gpu::check(cudaSetDevice(0), "choose device");
    return gpu::make_stream();
  }();
  for (const ops::DType act : {ops::DType::kF16, ops::DType::kBF16}) {
    const ops::Ops table = ops::cuda_ops(0, act);
    gpu::bench_linear(table, stream.get(), act);
    if (act == ops::DType::kF16) {
      gpu::bench_sample(table, stream.get());
      gpu::bench_elementwise(table, stream.get(), act);
      gpu::bench_upload(table);
    }
    table.destroy(table.self);
  }
  return 0;
}
