// Linear layers of common models: the streaming product at decode batches and the tiled one at more
// tokens, each beside cuBLASLt (with the gated activation as its second kernel), the former beside
// the time in which the weights can be read, too.
//
// Times are medians of replayed graphs, each of launches that rotate over weights past the L2 cache
// and follow each other without a pause, as in a model.
#include <algorithm>
#include <cstdio>
#include <vector>

#include <cuda_runtime_api.h>

#include "elementwise/elementwise.h"
#include "graph_timing.h"
#include "linear/matmul.h"
#include "linear/stream_linear.h"
#include "linear/tile_linear.h"

namespace treadle::cuda {
namespace {

struct Shape {
  const char* name;
  int n, k;
  bool gated, add;
};

constexpr Shape kShapes[] = {
    {"8b qkv", 6144, 4096, false, false},     {"8b o", 4096, 4096, false, true},
    {"8b gate_up", 28672, 4096, true, false}, {"8b down", 4096, 14336, false, true},
    {"8b head", 128256, 4096, false, false},  {"7b qkv", 12288, 4096, false, false},
    {"7b gate_up", 22016, 4096, true, false}, {"7b down", 4096, 11008, false, true},
    {"0.5b qkv", 1152, 896, false, false},    {"0.5b o", 896, 896, false, true},
    {"0.5b gate_up", 9728, 896, true, false}, {"0.5b down", 896, 4864, false, true},
};
constexpr int kTokens[] = {12, 16, 32, 64, 128};
constexpr int kManyTokens[] = {96, 128, 192, 256, 384, 512, 640, 1024, 2048, 8192};

DeviceMemory upload(const std::vector<uint16_t>& host, size_t count) {
  DeviceMemory memory = make_device_memory(count * 2);
  check(cudaMemcpy(memory.get(), host.data(), count * 2, cudaMemcpyHostToDevice), "upload");
  return memory;
}

class Layer {
 public:
  Layer(const Shape& shape, int most_tokens)
      : s(shape),
        copies(static_cast<int>(std::clamp<size_t>((size_t{200} << 20) / bytes(), 2, 64))),
        float_output(s.n > 100000),
        y(make_device_memory(size_t(most_tokens) * s.n * (float_output ? 4 : 2))),
        both(make_device_memory(size_t(most_tokens) * s.n * 2)) {
    const std::vector<uint16_t> host =
        random_halves(std::max(bytes() / 2, size_t(most_tokens) * s.k));
    x = upload(host, size_t(most_tokens) * s.k);
    for (int i = 0; i < copies; ++i) {
      memory.push_back(upload(host, bytes() / 2));
      ops::LinearWeight& w = weights.emplace_back();
      w.data = memory.back().get();
      w.out_features = s.n;
      w.in_features = s.k;
      w.dtype = ops::DType::kF16;
    }
  }
  size_t bytes() const { return size_t(s.n) * s.k * 2; }
  ops::LinearParams params(int m, int i) const {
    return {.x = x.get(),
            .weight = &weights[size_t(i % copies)],
            .y = y.get(),
            .num_tokens = m,
            .silu_mul = s.gated,
            .add = s.add,
            .float_output = float_output};
  }

  /// Seconds of cuBLASLt, with the activation; in the pieces that fit its L2 cache.
  double cublas(Matmul& matmul, int m, int launches, cudaStream_t stream) const {
    constexpr int kPiece = 2048;
    return graph_seconds(stream, launches, [&](int i) {
      for (int begin = 0; begin < m; begin += kPiece) {
        const int count = std::min(kPiece, m - begin);
        void* to = s.gated ? both.get() : y.get();
        matmul.run({.x = static_cast<const char*>(x.get()) + size_t(begin) * s.k * 2,
                    .w = weights[size_t(i % copies)].data,
                    .y = to,
                    .m = count,
                    .n = s.n,
                    .k = s.k,
                    .float_output = float_output,
                    .add = s.add},
                   stream);
        if (s.gated) silu_mul(to, y.get(), count, s.n / 2, ops::DType::kF16, stream);
      }
    });
  }

  const Shape s;
  const int copies;
  const bool float_output;
  std::vector<DeviceMemory> memory;
  std::vector<ops::LinearWeight> weights;
  DeviceMemory x;
  DeviceMemory y;
  DeviceMemory both;  // gates and ups
};

void bench_few(const Shape& s, Matmul& matmul, const StreamWorkspace& workspace,
               cudaStream_t stream) {
  const Layer layer(s, kTokens[std::size(kTokens) - 1]);
  const int launches = std::max(layer.copies, 8);
  std::printf("%-13s %6d x %5d %8.1f", s.name, s.n, s.k, double(layer.bytes()) * 1e6 / kReadLimit);
  for (const int m : kTokens) {
    const double lt = layer.cublas(matmul, m, launches, stream);
    const double streamed = graph_seconds(stream, launches, [&](int i) {
      stream_linear(layer.params(m, i), ops::DType::kF16, workspace, stream);
    });
    std::printf("   %6.1f %6.1f", lt * 1e6, streamed * 1e6);
  }
  std::printf("\n");
}

void bench_many(const Shape& s, Matmul& matmul, cudaStream_t stream) {
  const Layer layer(s, kManyTokens[std::size(kManyTokens) - 1]);
  std::printf("%-13s %6d x %5d", s.name, s.n, s.k);
  for (const int m : kManyTokens) {
    const int launches = m > 2048 ? 2 : 6;
    const double lt = layer.cublas(matmul, m, launches, stream);
    const double tiled = graph_seconds(stream, launches, [&](int i) {
      tile_linear(layer.params(m, i), ops::DType::kF16, stream);
    });
    std::printf("   %6.1f %6.1f", lt * 1e6, tiled * 1e6);
  }
  std::printf("\n");
}

}  // namespace
}  // namespace treadle::cuda

int main() {
  namespace gpu = treadle::cuda;
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0 || !gpu::stream::built()) {
    std::printf("no GPU, or a build without wgmma\n");
    return 77;
  }
  const gpu::StreamHandle stream = gpu::make_stream();
  gpu::Matmul matmul(treadle::ops::DType::kF16);
  const gpu::StreamWorkspace workspace;
  std::printf("microseconds; %-17s%8s", "N x K", "floor");
  for (const int m : gpu::kTokens) std::printf("   %3d lt   own", m);
  std::printf("\n");
  for (const gpu::Shape& s : gpu::kShapes) gpu::bench_few(s, matmul, workspace, stream.get());
  std::printf("\n%-31s", "gated, tiled; microseconds");
  for (const int m : gpu::kManyTokens) std::printf("  %4d lt   own", m);
  std::printf("\n");
  for (const gpu::Shape& s : gpu::kShapes) {
    if (s.gated) gpu::bench_many(s, matmul, stream.get());
  }
  return 0;
}
