// Decode attention against the plain reference: lengths, head counts, widths, windows, types.
#include "attention_check.cuh"
#include "attention_decode/attention_decode.h"

using namespace treadle::cuda;           // NOLINT: a test program
using namespace treadle::cuda::testing;  // NOLINT

namespace {

ProblemShape decode_shape(const std::vector<int>& lengths, int heads, int kv_heads, int head_dim,
                          int window = 0) {
  ProblemShape shape;
  for (int length : lengths) shape.sequences.push_back({1, length});
  shape.num_decode = static_cast<int>(lengths.size());
  shape.heads = heads;
  shape.kv_heads = kv_heads;
  shape.head_dim = head_dim;
  shape.window = window;
  static unsigned seed = 100;
  shape.seed = ++seed;
  return shape;
}

/// Ragged, from 1 to `longest`.
std::vector<int> short_lengths(int count, int longest) {
  std::vector<int> lengths;
  for (int i = 0; i < count; ++i) lengths.push_back(1 + i * 7919 % longest);
  return lengths;
}

template <class T>
int run_all(bool int8, bool small) {
  int failed = 0;
  // One workspace for all problems, as in the engine: a problem must leave its counters at zero.
  const size_t bytes = size_t{64} << 20;
  DeviceMemory memory = make_device_memory(bytes);
  check(cudaMemset(memory.get(), 0, bytes), "zero");
  DecodeWorkspace workspace{memory.get(), bytes};
  auto test = [&](const std::string& name, ProblemShape shape) {
    shape.int8 = int8;
    if (small) shorten(shape);
    failed += check_attention<T>(name + (shape.static_scales ? ", static scales" : ""), shape,
                                 [&](const treadle::ops::AttentionParams& p) {
                                   attention_decode(p, dtype_of<T>(), workspace, nullptr);
                                 })
                  ? 0
                  : 1;
  };
  const std::vector<int> ragged = {1, 2, 63, 64, 65, 127, 128, 129, 203, 1024, 3000, 5, 17};
  for (int dim : {64, 80, 96, 128, 256}) {
    test("ragged d" + std::to_string(dim), decode_shape(ragged, 8, 2, dim));
    test("window d" + std::to_string(dim), decode_shape(ragged, 8, 2, dim, 100));
  }
  for (int group : {1, 2, 3, 4, 5, 6, 7, 8, 12, 16}) {
    test("group " + std::to_string(group), decode_shape(ragged, 2 * group, 2, 128));
  }
  for (int dim : {64, 80, 96, 128, 256}) {
    if (!int8) break;
    ProblemShape shape = decode_shape(ragged, 8, 2, dim);
    shape.static_scales = true;
    test("ragged d" + std::to_string(dim), shape);
  }
  test("mha 32/32", decode_shape({700, 1, 4097}, 32, 32, 128));
  test("one key", decode_shape({1}, 32, 8, 128));
  test("one long", decode_shape({16384}, 32, 8, 128));
  test("one longer, one head", decode_shape({40000}, 4, 1, 128));
  test("128k keys and 5", decode_shape({131072, 5}, 8, 2, 128));
  test("one longer d256 group 16", decode_shape({40000}, 16, 1, 256));
  std::vector<int> many;
  for (int i = 0; i < 300; ++i) many.push_back(1 + (i * 7919) % 700);
  test("300 sequences", decode_shape(many, 32, 8, 128));
  test("300 sequences, window 64", decode_shape(many, 32, 8, 64, 64));
  // Many short sequences, whose tiles warps own whole; and numbers of them around where that
  // begins.
  for (int count : {2, 40, 64, 66, 67, 131, 300}) {
    test(std::to_string(count) + " of 160", decode_shape(std::vector<int>(count, 160), 32, 8, 128));
  }
  for (int dim : {64, 80, 96, 128, 256}) {
    test("short d" + std::to_string(dim), decode_shape(short_lengths(200, 190), 16, 8, dim));
    test("short, window d" + std::to_string(dim),
         decode_shape(short_lengths(200, 330), 16, 8, dim, 50));
  }
  for (int group : {1, 2, 3, 4, 5, 7, 8, 9, 16}) {
    test("short, group " + std::to_string(group),
         decode_shape(short_lengths(160, 190), 8 * group, 8, 128));
  }
  test("short, mha 32/32", decode_shape(short_lengths(70, 300), 32, 32, 128));
  test("one key each", decode_shape(std::vector<int>(300, 1), 32, 8, 128));
  std::vector<int> one_long = short_lengths(300, 190);
  one_long[123] = 5000;
  test("short, and a long one", decode_shape(one_long, 32, 8, 128));
  return failed;
}

/// Sequences without keys (padding of a captured batch) give zeros and read no page: all but every
/// third here.
int empty_sequences(int count, bool int8) {
  std::vector<int> lengths(count, 0);
  for (int i = 1; i < count; i += 3) lengths[i] = 65;
  ProblemShape shape = decode_shape(lengths, 32, 8, 128);
  shape.int8 = int8;
  Problem<__half> problem(shape);
  const auto& p = problem.params();
  const size_t bytes = decode_workspace_bytes(count, 32, 8, 128);
  DeviceMemory memory = make_device_memory(bytes);
  check(cudaMemset(memory.get(), 0, bytes), "zero");
  DecodeWorkspace workspace{memory.get(), bytes};
  problem.poison_out();
  attention_decode(p, treadle::ops::DType::kF16, workspace, nullptr);
  check(cudaDeviceSynchronize(), "empty sequences");
  const auto got = problem.result();
  int bad = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const float x = static_cast<float>(got[i]);
    const bool padding = i / (32 * 128) % 3 != 1;
    bad += padding ? x != 0.0F : !std::isfinite(x);
  }
  std::printf("%s %d sequences, most of them empty%s\n", bad == 0 ? "ok  " : "FAIL", count,
              int8 ? ", int8" : "");
  return bad == 0 ? 0 : 1;
}

}  // namespace

/// Arguments: "int8" for that pool alone, "small" for short problems, for the slow tools that watch
/// memory.
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
  for (const bool int8 : {true, false}) {
    if (has("int8") && !int8) continue;
    for (int count : {3, 300}) failed += empty_sequences(count, int8);
    failed += run_all<__half>(int8, has("small"));
    failed += run_all<__nv_bfloat16>(int8, has("small"));
  }
  std::printf("attention_decode: %d failed\n", failed);
  return failed == 0 ? 0 : 1;
}
