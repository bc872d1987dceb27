// Decode attention that does the QKV operation's work against the two operations one after the
// other: pages and output are equal to the bit.
#include <algorithm>
#include <cstdio>
#include <string>

#include "attention_decode/attention_decode.h"
#include "attention_problem.cuh"
#include "elementwise/elementwise.h"

using namespace treadle::cuda;           // NOLINT: a test program
using namespace treadle::cuda::testing;  // NOLINT
using treadle::ops::AttentionParams;
using treadle::ops::QkvParams;

namespace {

struct Shape {
  std::vector<int> lengths;
  int heads = 8, kv_heads = 2, head_dim = 128;
  int window = 0;
  bool norm = false;
  bool int8 = false, static_scales = false;  // the pool
};

/// NaN over the newest row of each sequence's pages, or over its scales, or (static scales) some
/// number over its int8: what is there before the step is of no use.
template <class T>
__global__ void poison_newest(AttentionParams p) {
  const int s = blockIdx.x;
  const int key = p.batch.context_len[s] - 1;
  if (key < 0) return;
  const int dim = p.head_dim;
  const int64_t block = p.batch.block_tables[int64_t{s} * p.batch.block_table_stride + key / 64];
  char* base = static_cast<char*>(p.kv.base) + block * int64_t(p.kv.block_bytes());
  const int pages = p.kv.num_layers * 2 * p.kv_heads;
  if (p.kv.static_scales) {
    for (int i = threadIdx.x; i < pages * dim; i += blockDim.x) {
      base[(int64_t{i} / dim * 64 + key % 64) * dim + i % dim] = 0x55;
    }
    return;
  }
  if (p.kv.dtype == treadle::ops::DType::kI8) {
    auto* scales = reinterpret_cast<treadle::ops::KvScale*>(base + p.kv.scales_begin());
    for (int i = threadIdx.x; i < pages; i += blockDim.x) scales[i * 64 + key % 64] = {NAN, NAN};
    return;
  }
  for (int i = threadIdx.x; i < pages * dim; i += blockDim.x) {
    reinterpret_cast<T*>(base)[(int64_t{i} / dim * 64 + key % 64) * dim + i % dim] = T(NAN);
  }
}

template <class Value>
DeviceMemory upload(const std::vector<Value>& from) {
  const size_t bytes = from.size() * sizeof(Value);
  DeviceMemory to = make_device_memory(bytes);
  check(cudaMemcpy(to.get(), from.data(), bytes, cudaMemcpyHostToDevice), "upload");
  return to;
}

template <class T>
DeviceMemory random_memory(size_t count, unsigned seed) {
  DeviceMemory memory = make_device_memory(count * sizeof(T));
  fill_normal<<<1024, 256>>>(static_cast<T*>(memory.get()), count, seed, 1.0F);
  return memory;
}

/// *first = the first word that differs.
__global__ void compare_words(const uint32_t* a, const uint32_t* b, size_t count,
                              unsigned long long* first) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count;
       i += size_t{gridDim.x} * blockDim.x) {
    if (a[i] != b[i]) atomicMin(first, static_cast<unsigned long long>(i));
  }
}

/// The first byte, of four at a time, where the two differ, or `bytes`, a multiple of four.
size_t first_difference(const void* a, const void* b, size_t bytes) {
  std::vector<unsigned long long> first = {bytes / 4};
  const DeviceMemory found = upload(first);
  auto* at = static_cast<unsigned long long*>(found.get());
  compare_words<<<2048, 256>>>(static_cast<const uint32_t*>(a), static_cast<const uint32_t*>(b),
                               bytes / 4, at);
  check(cudaMemcpy(first.data(), at, sizeof(*at), cudaMemcpyDeviceToHost), "download");
  return first[0] * 4;
}

template <class T>
class Test {
 public:
  Test() : memory_(make_device_memory(kBytes)) {
    check(cudaMemset(memory_.get(), 0, kBytes), "zero");
  }

  void run(const std::string& name, const Shape& shape) {
    ProblemShape problem_shape;
    for (const int length : shape.lengths) problem_shape.sequences.push_back({1, length});
    problem_shape.num_decode = static_cast<int>(shape.lengths.size());
    problem_shape.heads = shape.heads;
    problem_shape.kv_heads = shape.kv_heads;
    problem_shape.head_dim = shape.head_dim;
    problem_shape.window = shape.window;
    problem_shape.int8 = shape.int8;
    problem_shape.static_scales = shape.static_scales;
    problem_shape.seed = ++seed_;
    Problem<T> problem(problem_shape);
    AttentionParams p = problem.params();
    const int tokens = p.batch.num_decode;
    const int dim = shape.head_dim;
    const DeviceMemory tables = padded_tables(p, shape.lengths);
    p.batch.block_tables = static_cast<const int32_t*>(tables.get());
    std::vector<int32_t> sequences(tokens);
    std::vector<int32_t> positions(tokens);
    for (int i = 0; i < tokens; ++i) {
      sequences[i] = i;
      positions[i] = std::max(shape.lengths[i] - 1, 0);
    }
    const DeviceMemory device_sequences = upload(sequences);
    const DeviceMemory device_positions = upload(positions);
    p.batch.token_sequence = static_cast<const int32_t*>(device_sequences.get());
    p.batch.positions = static_cast<const int32_t*>(device_positions.get());
    poison_newest<T><<<tokens, 128>>>(p);
    const size_t pool_bytes = p.kv.bytes();
    const DeviceMemory pool = make_device_memory(pool_bytes);
    check(cudaMemcpy(pool.get(), p.kv.base, pool_bytes, cudaMemcpyDeviceToDevice), "copy");

    const int features = (shape.heads + 2 * shape.kv_heads) * dim;
    const DeviceMemory projection = random_memory<T>(size_t(tokens) * features, seed_ + 1000);
    const DeviceMemory angles = random_memory<float>(size_t(tokens) * dim, seed_ + 2000);
    const DeviceMemory norms = random_memory<float>(size_t(2) * dim, seed_ + 3000);
    const DeviceMemory q = random_memory<T>(size_t(tokens) * shape.heads * dim, seed_ + 4000);
    QkvParams made{.qkv = projection.get(),
                   .q_out = q.get(),
                   .cos_sin = static_cast<const float*>(angles.get()),
                   .rotary_dim = dim,
                   .norm_eps = 1e-6F,
                   .heads = shape.heads,
                   .kv_heads = shape.kv_heads,
                   .head_dim = dim,
                   .layer = p.layer,
                   .kv = p.kv,
                   .batch = p.batch};
    if (shape.norm) {
      made.q_norm = static_cast<const float*>(norms.get());
      made.k_norm = made.q_norm + dim;
    }
    DecodeWorkspace workspace{memory_.get(), kBytes};

    AttentionParams two = p;
    two.q = q.get();
    problem.poison_out();
    qkv(made, dtype_of<T>(), nullptr);
    attention_decode(two, dtype_of<T>(), workspace, nullptr);
    check(cudaDeviceSynchronize(), name.c_str());
    const size_t bytes = problem.elems() * sizeof(T);
    const DeviceMemory want = make_device_memory(bytes);
    check(cudaMemcpy(want.get(), p.out, bytes, cudaMemcpyDeviceToDevice), "keep");

    made.q_out = nullptr;
    made.kv.base = pool.get();
    AttentionParams one = p;
    one.q = nullptr;
    one.kv.base = pool.get();
    one.qkv = &made;
    problem.poison_out();
    attention_decode(one, dtype_of<T>(), workspace, nullptr);
    check(cudaDeviceSynchronize(), name.c_str());
    const std::vector<T> got = problem.result();
    size_t bad = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      const float value = static_cast<float>(got[i]);
      const bool padding = shape.lengths[i / (size_t(shape.heads) * dim)] == 0;
      if (padding ? value != 0.0F : !std::isfinite(value)) ++bad;
    }
    const size_t out_at = first_difference(p.out, want.get(), bytes);
    const size_t pool_at = first_difference(pool.get(), p.kv.base, pool_bytes);
    const bool good = bad == 0 && out_at == bytes && pool_at == pool_bytes;
    failed += good ? 0 : 1;
    std::printf("%s %s %s%s", good ? "ok  " : "FAIL", name.c_str(),
                std::is_same_v<T, __half> ? "fp16" : "bf16",
                shape.static_scales ? ", int8 with static scales"
                : shape.int8        ? ", int8"
                                    : "");
    if (bad > 0) std::printf(", %zu outputs are not finite or not zero", bad);
    if (out_at != bytes) {
      const size_t i = out_at / sizeof(T);
      std::printf(", output differs from token %zu, head %zu, column %zu on",
                  i / (size_t(shape.heads) * dim), i / dim % shape.heads, i % dim);
    }
    if (pool_at != pool_bytes) std::printf(", pages differ from byte %zu on", pool_at);
    std::printf("\n");
  }

  int failed = 0;

 private:
  static constexpr size_t kBytes = size_t{64} << 20;

  /// The block tables, with block -1 where there is no key.
  static DeviceMemory padded_tables(const AttentionParams& p, const std::vector<int>& lengths) {
    const int stride = p.batch.block_table_stride;
    std::vector<int32_t> tables(lengths.size() * stride);
    check(
        cudaMemcpy(tables.data(), p.batch.block_tables, tables.size() * 4, cudaMemcpyDeviceToHost),
        "download");
    for (size_t i = 0; i < lengths.size(); ++i) {
      if (lengths[i] == 0) std::fill_n(tables.begin() + long(i) * stride, stride, -1);
    }
    return upload(tables);
  }

  DeviceMemory memory_;
  unsigned seed_ = 0;
};

template <class T>
int run_all(bool int8, bool small) {
  Test<T> test;
  const auto run = [&](const std::string& name, Shape shape) {
    shape.int8 = int8;
    test.run(name, shape);
  };
  const auto named = [](const char* what, int n) { return what + std::to_string(n); };
  const std::vector<int> dims = int8 ? std::vector{128} : std::vector{64, 80, 96, 128, 256};
  // 1: nothing but the new key; 65 and 129: it is the first of a block; 17: of a warp's 16.
  std::vector<int> ragged = {1, 2, 16, 17, 63, 64, 65, 0, 127, 128, 129, 203};
  if (!small) ragged.insert(ragged.end(), {1024, 3000, 5, 0});
  for (const int dim : dims) {
    for (const bool norm : {false, true}) {
      const std::string end = norm ? ", norm" : "";
      run(named("ragged d", dim) + end, {ragged, 8, 2, dim, 0, norm});
      run(named("window d", dim) + end, {ragged, 8, 2, dim, 100, norm});
    }
    if (int8) test.run(named("ragged d", dim), {ragged, 8, 2, dim, 0, true, true, true});
  }
  for (const int group : {1, 2, 3, 4, 5, 7, 8, 9, 16}) {
    run(named("group ", group), {ragged, 2 * group, 2, 128, 0, group % 2 == 0});
  }
  if (!int8) run("group 16, d256", {ragged, 32, 2, 256, 0, true});
  run("one key", {{1}, 32, 8});
  run("padding alone", {{0, 0, 0}, 32, 8});
  // Many short sequences: warps own whole tiles.
  std::vector<int> brief;
  for (int i = 0; i < (small ? 70 : 200); ++i) brief.push_back(i * 7919 % 190);
  for (const int dim : dims) {
    run(named("short d", dim), {brief, 16, 8, dim, 0, dim == 128});
    run(named("short, window d", dim), {brief, 16, 8, dim, 50, dim == 64});
  }
  if (small) return test.failed;
  for (const int group : {1, 3, 4, 8, 16}) {
    run(named("short, group ", group), {brief, 8 * group, 8});
  }
  run("one key each", {std::vector<int>(300, 1), 32, 8});
  for (const int count : {40, 64, 66, 67, 131, 300}) {
    run(named("of 160: ", count), {std::vector<int>(count, 160), 32, 8});
  }
  run("one long", {{16384}, 32, 8});
  run("long", {{4096, 4097, 1, 9000}, 32, 8, 128, 0, true});
  std::vector<int> one_long = brief;
  one_long[123] = 5000;
  run("short, and a long one", {one_long, 32, 8});
  return test.failed;
}

/// What the kernel does not do is refused.
int check_refusals() {
  using treadle::ops::DType;
  QkvParams p{.rotary_dim = 128, .heads = 32, .kv_heads = 8, .head_dim = 128};
  p.kv.dtype = DType::kF16;
  int failed = 0;
  const auto expect = [&](bool want, const char* what) {
    if (supports_attention_qkv(p, DType::kF16) == want) return;
    std::printf("FAIL supports_attention_qkv: %s\n", what);
    ++failed;
  };
  expect(true, "llama");
  p.rotary_dim = 64;
  expect(false, "half a head rotated");
  p.rotary_dim = 128;
  p.logn_len = 100;
  expect(false, "logn");
  p.logn_len = 0;
  p.kv.dtype = DType::kBF16;
  expect(false, "a pool of another type");
  p.kv.dtype = DType::kI8;
  expect(true, "int8");
  p.head_dim = p.rotary_dim = 64;
  expect(false, "int8 of head_dim 64");
  p.head_dim = p.rotary_dim = 128;
  p.kv.dtype = DType::kF16;
  p.heads = 17 * 8;
  expect(false, "17 heads a KV head");
  return failed;
}

}  // namespace

/// Argument: "small" for fewer and shorter problems, for the slow tools that watch memory.
int main(int argc, char** argv) {
  if (int count = 0; cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    std::printf("SKIP: no GPU\n");
    return 77;
  }
  const bool small = argc > 1 && std::string(argv[1]) == "small";
  int failed = check_refusals();
  for (const bool int8 : {false, true}) {
    failed += run_all<__half>(int8, small);
    failed += run_all<__nv_bfloat16>(int8, small);
  }
  std::printf("qkv_attention: %d failed\n", failed);
  return failed == 0 ? 0 : 1;
}
