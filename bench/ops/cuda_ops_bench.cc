// Speed of the CUDA table's operations beside the limit of the memory they read: products of a few
// tokens (and cuBLASLt's for the same), elementwise operations, upload of weights.
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
#include "graph_timing.h"
#include "linear/matmul.h"
#include "ops_cuda.h"

namespace treadle::cuda {
namespace {

struct Shape {
  const char* name;
  int n, k;
  bool silu, norm, add;
};

void bench_linear(const ops::Ops& ops, cudaStream_t stream, ops::DType act) {
  const Shape shapes[] = {{"qkv", 6144, 4096, false, true, false},
                          {"o", 4096, 4096, false, false, true},
                          {"gate_up", 28672, 4096, true, true, false},
                          {"gate_up plain", 28672, 4096, false, false, false},
                          {"down", 4096, 14336, false, false, true},
                          {"head", 128256, 4096, false, true, false}};
  const std::vector<float> ones(4096, 1.0F);
  auto* norm = static_cast<float*>(ops.alloc(ops.self, ones.size() * 4));
  ops.upload(ops.self, norm, ones.data(), ones.size() * 4, {});
  Matmul matmul(act);
  std::printf("\n%s products: microseconds (share of %.1f TB/s)\n", ops::dtype_name(act),
              kReadLimit * 1e-12);
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
      std::printf("    %7.2f (%3.0f%%)", seconds * 1e6, 100.0 * bytes / seconds / kReadLimit);
    };
    const auto op = [&](int m) {
      return graph_seconds(stream, launches, [&](int i) {
        ops.linear(ops.self,
                   {.x = x,
                    .weight = &weights[size_t(i % copies)],
                    .norm = s.norm ? norm : nullptr,
                    .y = y,
                    .num_tokens = m,
                    .silu_mul = s.silu,
                    .add = s.add,
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
  ops.release(ops.self, norm);
}

void bench_many_tokens(const ops::Ops& ops, cudaStream_t stream, ops::DType act) {
  const Shape shapes[] = {{"qkv", 6144, 4096, false, true, false},
                          {"o", 4096, 4096, false, false, true},
                          {"gate_up", 28672, 4096, true, true, false},
                          {"down", 4096, 14336, false, false, true}};
  const int counts[] = {512, 1024, 2048, 8192};
  std::printf("\n%s layers of many tokens, norm and activation included: TFLOP/s\n%-14s",
              ops::dtype_name(act), "");
  for (const int m : counts) std::printf(" %7d", m);
  for (const Shape& s : shapes) {
    const std::vector<uint16_t> host = random_halves(size_t(s.n) * size_t(s.k));
    const ops::WeightPiece piece{host.data(), act, s.n};
    ops::LinearWeight weight = ops.make_linear(ops.self, &piece, 1, s.k, nullptr, s.silu);
    const size_t most = 8192;
    const std::vector<uint16_t> input = random_halves(most * size_t(s.k));
    void* x = ops.alloc(ops.self, input.size() * 2);
    void* y = ops.alloc(ops.self, most * size_t(s.n) * 2);
    const std::vector<float> ones(size_t(s.k), 1.0F);
    auto* norm = static_cast<float*>(ops.alloc(ops.self, ones.size() * 4));
    ops.upload(ops.self, x, input.data(), input.size() * 2, {});
    ops.upload(ops.self, norm, ones.data(), ones.size() * 4, {});
    ops.synchronize(ops.self, {});
    std::printf("\n%-14s", s.name);
    for (const int m : counts) {
      const double seconds = graph_seconds(stream, 4, [&](int) {
        ops.linear(ops.self,
                   {.x = x,
                    .weight = &weight,
                    .norm = s.norm ? norm : nullptr,
                    .y = y,
                    .num_tokens = m,
                    .silu_mul = s.silu,
                    .add = s.add},
                   {stream});
      });
      std::printf(" %7.0f", 2.0 * m * s.n * s.k / seconds * 1e-12);
    }
    ops.release_linear(ops.self, &weight);
    for (void* memory : {x, y, static_cast<void*>(norm)}) ops.release(ops.self, memory);
  }
  std::printf("\n");
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
                  100.0 * 2 * double(tokens * elements) / seconds / kReadLimit);
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
    gpu::bench_many_tokens(table, stream.get(), act);
    if (act == ops::DType::kF16) {
      gpu::bench_elementwise(table, stream.get(), act);
      gpu::bench_upload(table);
    }
    table.destroy(table.self);
  }
  return 0;
}
