// Prefill attention, both versions, against the plain reference.
#include <algorithm>

#include "attention_check.cuh"
#include "attention_decode/attention_decode.h"
#include "attention_prefill/attention_prefill.h"

using namespace treadle::cuda;           // NOLINT: a test program
using namespace treadle::cuda::testing;  // NOLINT

namespace {

/// FlashAttention's awkward lengths, then chunks that start in the middle of pages.
const std::vector<SequenceShape> kRagged = {{1, 1},     {113, 203},   {799, 799},
                                            {3, 799},   {1023, 1024}, {64, 640},
                                            {128, 129}, {200, 1100},  {65, 65}};

ProblemShape shape_of(const std::vector<SequenceShape>& sequences, int heads, int kv_heads,
                      int head_dim, int window = 0) {
  ProblemShape shape;
  shape.sequences = sequences;
  shape.heads = heads;
  shape.kv_heads = kv_heads;
  shape.head_dim = head_dim;
  shape.window = window;
  static unsigned seed = 500;
  shape.seed = ++seed;
  return shape;
}

template <class T>
int run_all(bool wgmma, bool int8, bool small) {
  int failed = 0;
  DeviceMemory memory = make_device_memory(prefill_workspace_bytes());
  check(cudaMemset(memory.get(), 0, prefill_workspace_bytes()), "zero");
  PrefillWorkspace workspace{memory.get(), prefill_workspace_bytes()};
  constexpr treadle::ops::DType kType = dtype_of<T>();
  auto test = [&](const std::string& name, ProblemShape shape) {
    shape.int8 = int8;
    if (small) shorten(shape);
    failed += check_attention<T>((wgmma ? "wgmma " : "mma ") + name +
                                     (shape.static_scales ? ", static scales" : ""),
                                 shape,
                                 [&](const treadle::ops::AttentionParams& p) {
                                   if (wgmma) {
                                     attention_prefill_wgmma(p, kType, workspace, nullptr);
                                   } else {
                                     attention_prefill_mma(p, kType, nullptr);
                                   }
                                 })
                  ? 0
                  : 1;
  };
  for (int dim : {128, 64, 80, 96, 256}) {
    const std::string d = " d" + std::to_string(dim);
    test("one tile" + d, shape_of({{128, 128}}, 4, 2, dim));
    test("one sequence" + d, shape_of({{500, 500}}, 4, 2, dim));
    test("ragged" + d, shape_of(kRagged, 8, 2, dim));
    test("window" + d, shape_of(kRagged, 4, 2, dim, 100));
    if (!int8) continue;
    ProblemShape shape = shape_of(kRagged, 8, 2, dim);
    shape.static_scales = true;
    test("ragged" + d, shape);
  }
  test("group 1", shape_of(kRagged, 3, 3, 128));
  test("group 7", shape_of(kRagged, 14, 2, 128));
  test("chunk of a long context", shape_of({{300, 9000}, {2048, 3577}}, 8, 2, 128));
  test("window 1", shape_of({{300, 900}}, 4, 1, 64, 1));
  std::vector<SequenceShape> many;
  for (int i = 0; i < 150; ++i) many.push_back({1 + i * 37 % 90, 100 + i * 53 % 200});
  test("150 chunks", shape_of(many, 4, 2, 128));
  std::vector<SequenceShape> crowd(1100, {1, 70});
  for (int i = 0; i < 1100; i += 3) crowd[i] = {40 + i % 30, 70 + i % 80};
  test("1100 chunks, several launches", shape_of(crowd, 2, 1, 64));

  // Decode tokens first, then chunks: together they must fill the whole output.
  ProblemShape mixed =
      shape_of({{1, 300}, {1, 64}, {1, 1000}, {200, 700}, {1, 1}, {77, 77}}, 8, 2, 128);
  mixed.num_decode = 3;
  mixed.int8 = int8;
  const size_t bytes = decode_workspace_bytes(3, 8, 2, 128);
  DeviceMemory decode_memory = make_device_memory(bytes);
  check(cudaMemset(decode_memory.get(), 0, bytes), "zero");
  DecodeWorkspace decode_workspace{decode_memory.get(), bytes};
  failed += check_attention<T>("mixed batch", mixed,
                               [&](const treadle::ops::AttentionParams& p) {
                                 attention_decode(p, kType, decode_workspace, nullptr);
                                 if (wgmma) {
                                   attention_prefill_wgmma(p, kType, workspace, nullptr);
                                 } else {
                                   attention_prefill_mma(p, kType, nullptr);
                                 }
                               })
                ? 0
                : 1;
  return failed;
}

}  // namespace

/// Arguments: "mma" or "wgmma" for one version, "int8" for that pool alone, "small" for short
/// problems, for the slow tools that watch memory.
int main(int argc, char** argv) {
  if (int count = 0; cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    std::printf("SKIP: no GPU\n");
    return 77;
  }
  const std::vector<std::string> words(argv + 1, argv + argc);
  auto has = [&](const char* word) {
    return std::find(words.begin(), words.end(), word) != words.end();
  };
  int failed = 0;
  auto run_both = [&](bool wgmma) {
    for (const bool int8 : {true, false}) {
      if (has("int8") && !int8) continue;
      failed += run_all<__half>(wgmma, int8, has("small"));
      failed += run_all<__nv_bfloat16>(wgmma, int8, has("small"));
    }
  };
  if (!has("wgmma")) run_both(false);
  const treadle::ops::AttentionParams any = Problem<__half>(shape_of({{1, 1}}, 1, 1, 64)).params();
  if (has("mma") || !supports_attention_prefill_wgmma(any)) {
    std::printf("skip the wgmma version: not asked for, or not an sm_90 GPU\n");
  } else {
    run_both(true);
  }
  std::printf("attention_prefill: %d failed\n", failed);
  return failed == 0 ? 0 : 1;
}
