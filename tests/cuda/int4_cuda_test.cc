// 4-bit linear layers: the packed layout bit for bit against one packed here, and products against
// float32 sums of the dequantised weights and against the CPU table, over types, group sizes,
// ragged shapes and token counts of every path. Outputs are poisoned, two runs are equal bit for
// bit.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "linear/int4_layout.h"
#include "linear_tables.h"
#include "treadle/error.h"

namespace treadle::cuda::testing {
namespace {

using ops::DType;

/// A weight as a checkpoint's reader hands it over.
struct Checkpoint {
  int n, k, group_size;
  std::vector<uint8_t> q;  // [n][k / 2]
  std::vector<float> scales;
  std::vector<uint8_t> zeros;
  std::vector<int32_t> group_of;  // empty: runs of group_size

  Checkpoint(int rows, int columns, int group, bool scattered, DType stored = DType::kF16)
      : n(rows), k(columns), group_size(group) {
    std::mt19937 random(static_cast<uint32_t>(rows * 31 + columns * 7 + group));
    q.resize(size_t(n) * k / 2);
    for (uint8_t& byte : q) byte = static_cast<uint8_t>(random());
    const size_t words = size_t(n) * (k / group_size);
    for (size_t i = 0; i < words; ++i) zeros.push_back(static_cast<uint8_t>(random() % 17));
    scales = random_values(stored, words, 5, 0.2F / std::sqrt(float(k)));
    if (!scattered) return;
    group_of.resize(k);
    for (int i = 0; i < k; ++i) group_of[i] = i / group_size;
    std::shuffle(group_of.begin(), group_of.end(), random);
  }
  int groups() const { return k / group_size; }
  int number(int row, int column) const {
    return q[(size_t(row) * k + column) / 2] >> (column % 2 * 4) & 15;
  }
  size_t word(int row, int column) const {
    const int group = group_of.empty() ? column / group_size : group_of[column];
    return size_t(row) * groups() + group;
  }
  float value(int row, int column) const {
    const size_t i = word(row, column);
    return float(number(row, column) - zeros[i]) * scales[i];
  }
};

/// A weight on both sides, in two pieces.
class Layer {
 public:
  Layer(const Tables& t, const Checkpoint& from, bool silu, bool with_bias) : t_(t) {
    if (with_bias) bias = random_values(t.act, from.n, 22);
    const int first = silu ? from.n / 2 : from.n / 3;
    const int32_t* group_of = from.group_of.empty() ? nullptr : from.group_of.data();
    const size_t words = size_t(first) * from.groups();
    const ops::Int4Groups groups[] = {
        {from.scales.data(), from.zeros.data(), group_of, from.group_size},
        {from.scales.data() + words, from.zeros.data() + words, group_of, from.group_size}};
    const ops::WeightPiece pieces[] = {
        {from.q.data(), DType::kU8, first, &groups[0]},
        {from.q.data() + size_t(first) * from.k / 2, DType::kU8, from.n - first, &groups[1]}};
    const float* b = with_bias ? bias.data() : nullptr;
    cpu = t.cpu.make_linear(t.cpu.self, pieces, 2, from.k, b, silu);
    gpu = t.gpu.make_linear(t.gpu.self, pieces, 2, from.k, b, silu);
  }
  ~Layer() {
    t_.cpu.release_linear(t_.cpu.self, &cpu);
    t_.gpu.release_linear(t_.gpu.self, &gpu);
  }
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;

  ops::LinearWeight cpu;
  ops::LinearWeight gpu;
  std::vector<float> bias;

 private:
  const Tables& t_;
};

// --- the layout ---

/// The packed form, from the description in int4_layout.h alone.
std::vector<uint32_t> packed_here(const Checkpoint& from, bool gated) {
  std::vector<int> order(from.k);
  std::iota(order.begin(), order.end(), 0);
  if (!from.group_of.empty()) {
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return from.group_of[a] < from.group_of[b]; });
  }
  const int columns = gated ? from.n / 2 : from.n;
  const int tiles = gated ? (columns + 7) / 8 : (columns + 15) / 16;
  const int k_tiles = (from.k + 63) / 64;
  const auto row_of = [&](int tile, int r) {
    if (!gated) return tile * 16 + r < from.n ? tile * 16 + r : -1;
    const int column = tile * 8 + r % 8;
    return column < columns ? column + r / 8 * columns : -1;
  };
  std::vector<uint32_t> out(size_t(tiles) * k_tiles * 128);
  for (int tile = 0; tile < tiles; ++tile) {
    for (int r = 0; r < 16; ++r) {
      const int row = row_of(tile, r);
      for (int k = 0; k < from.k && row >= 0; ++k) {
        const int in_step = k % 16;
        const int lane = r % 8 * 4 + in_step % 8 / 2;
        // From the lowest: a0 a1 a2 a3 of the even columns, then of the odd ones.
        const int nibble = r / 8 + in_step / 8 * 2 + in_step % 2 * 4;
        const size_t word = ((size_t(tile) * k_tiles + k / 64) * 32 + lane) * 4 + k % 64 / 16;
        out[word] |= uint32_t(from.number(row, order[k])) << (4 * nibble);
      }
    }
  }
  for (int tile = 0; tile < tiles; ++tile) {
    for (int group = 0; group < from.groups(); ++group) {
      for (int i = 0; i < 16; ++i) {
        const int row = row_of(tile, i / 2 + i % 2 * 8);
        uint32_t word = 0;
        if (row >= 0) {
          const size_t at = size_t(row) * from.groups() + group;
          std::memcpy(&word, &from.scales[at], 4);  // of 16 bits: the last 8 are zero
          word |= from.zeros[at];
        }
        out.push_back(word);
      }
    }
  }
  return out;
}

void test_layout(const Tables& t) {
  for (const Shape& s : {Shape{16, 64}, Shape{96, 128}, Shape{40, 264}, Shape{1008, 896}}) {
    for (const int group : {32, 64, 128, s.k}) {
      for (const int variant : {0, 1, 2, 3}) {
        if (s.k % group != 0) continue;
        const bool gated = variant % 2 == 1;
        const bool scattered = variant / 2 == 1;
        const Checkpoint from(s.n, s.k, group, scattered, t.act);
        const Layer layer(t, from, gated, false);
        const std::vector<uint32_t> want = packed_here(from, gated);
        const std::string name = label(t, "int4 layout ") + std::to_string(s.n) + "x" +
                                 std::to_string(s.k) + " g" + std::to_string(group) +
                                 (gated ? " gated" : "") + (scattered ? " scattered" : "");
        const int4::Layout layout = int4::layout_of(layer.gpu, gated);
        t.report.check(layout.bytes() == want.size() * 4, name + ": size");
        const size_t order_bytes = scattered ? size_t(s.k) * 4 : 0;
        t.report.check(size_t(layer.gpu.bytes) == want.size() * 4 + order_bytes, name + ": bytes");
        std::vector<uint32_t> got(want.size());
        t.gpu.download(t.gpu.self, got.data(), layer.gpu.data, got.size() * 4, {});
        t.gpu.synchronize(t.gpu.self, {});
        t.report.check(got == want, name + ": bits");
      }
    }
  }
}

// --- products ---

/// mean |got - want| / mean |want| <= bound; NaN fails.
void expect_mean_error(const Tables& t, const std::string& name, const std::vector<float>& got,
                       const std::vector<float>& want, double bound) {
  double error = 0.0;
  double size = 0.0;
  for (size_t i = 0; i < want.size(); ++i) {
    error += std::fabs(double{got[i]} - want[i]);
    size += std::fabs(double{want[i]});
  }
  t.report.check(got.size() == want.size() && error <= bound * size,
                 name + ": mean error " + std::to_string(error / size));
}

/// Compares m tokens' result with the CPU's and returns it.
std::vector<char> check_product(const Tables& t, const std::string& name, const Layer& layer, int m,
                                bool silu, const Use& use) {
  const auto [want, got] = run_product(t, name, layer.cpu, layer.gpu, m, silu, use);
  // Up to 16 tokens weights are exact; for more they are rounded to act, as transformers does. In
  // bfloat16 sums are of 128 + q, and what the zero takes off is larger than what is left.
  const std::vector<float> y_values = decode(use.float_output ? DType::kF32 : t.act, got);
  const bool exact = m <= 16 && use.float_output && !use.norm;
  const double e = epsilon(t.act);
  expect_mean_error(t, name, y_values, want,
                    exact ? (t.act == DType::kF16 ? 1e-5 : 1e-4) : (silu ? 2 : 1) * 2 * e);
  if (t.act == DType::kF16 && !silu) expect_mean_error(t, name, y_values, want, 1e-3);
  expect_near(t, name, y_values, want, 20 * e, 20 * e);
  return got;
}

std::string name_of(const Tables& t, const Checkpoint& from, int m, bool silu, bool with_bias,
                    const Use& use) {
  return label(t, "int4") + " " + std::to_string(m) + "x" + std::to_string(from.n) + "x" +
         std::to_string(from.k) + " g" + std::to_string(from.group_size) +
         (from.group_of.empty() ? "" : " scattered") + (silu ? " silu" : "") +
         (with_bias ? " bias" : "") + (use.norm ? " norm" : "") + (use.add ? " add" : "") +
         (use.float_output ? " float" : "");
}

void test_layer(const Tables& t, const Checkpoint& from, bool silu, bool with_bias) {
  const Layer layer(t, from, silu, with_bias);
  for (const Use& use : {Use{false, false, false}, Use{false, false, true}, Use{true, false, false},
                         Use{true, true, false}}) {
    if (silu && (use.add || use.float_output)) continue;
    std::vector<char> first_row;
    for (const int m :
         {1, 2, 3, 4, 8, 9, 12, 16, 17, 24, 32, 33, 48, 64, 80, 118, 128, 152, 300, 768}) {
      if (use.norm && m != 1 && m != 3 && m != 16 && m != 64) continue;
      // The CPU's time.
      const int64_t work = int64_t{from.n} * from.k * m;
      if (m > 16 && work > int64_t{200} << 20) continue;
      const std::string name = name_of(t, from, m, silu, with_bias, use);
      const std::vector<char> got = check_product(t, name, layer, m, silu, use);
      // The first token is the same in all of them; up to 16, its result is too.
      if (m > 16) continue;
      if (m == 1) first_row = got;
      t.report.check(std::equal(first_row.begin(), first_row.end(), got.begin()),
                     name + ": depends on the batch");
    }
  }
}

void test_products(const Tables& t) {
  const Shape shapes[] = {{96, 64},  {1000, 264}, {768, 256},   {64, 40},    {2048, 4096},
                          {37, 512}, {24, 12288}, {4112, 4096}, {4112, 1152}};
  for (const Shape& s : shapes) {
    for (const int group : {32, 64, 128, s.k}) {
      if (s.k % group != 0) continue;
      for (const bool silu : {false, true}) {
        if (silu && s.n % 16 != 0) continue;  // gated rows come in whole vectors
        const bool large = s.n * s.k > (1 << 22);
        if (large && group != 128) continue;  // the CPU's time
        test_layer(t, Checkpoint(s.n, s.k, group, false), silu, group == 64 || s.k == 40);
      }
    }
  }
  for (const int group : {32, 128}) {
    test_layer(t, Checkpoint(208, 512, group, true), false, true);
    test_layer(t, Checkpoint(208, 512, group, true), true, false);
  }
}

// Plans differ by a multiprocessor's share of the rows: on an H200 these are 14, 11, 6, 5, 4, 3, 2
// tiles and 1, ragged ones among them.
constexpr Shape kShares[] = {{28672, 192}, {22000, 192}, {11216, 1088}, {10240, 192},
                             {8424, 320},  {6200, 192},  {2304, 192},   {96, 192}};

void test_shares(const Tables& t) {
  for (const Shape& s : kShares) {
    for (const int group : {32, 64, s.k}) {
      for (const bool silu : {false, true}) {
        if (silu && s.n % 16 != 0) continue;  // gated rows come in whole vectors
        const Checkpoint from(s.n, s.k, group, false);
        const Layer layer(t, from, silu, !silu);
        std::vector<char> first_row;
        for (const int m : {1, 7, 9, 16}) {
          const Use use{false, false, !silu};
          const std::string name = name_of(t, from, m, silu, !silu, use);
          const std::vector<char> got = check_product(t, name, layer, m, silu, use);
          if (m == 1) first_row = got;
          t.report.check(std::equal(first_row.begin(), first_row.end(), got.begin()),
                         name + ": depends on the batch");
        }
      }
    }
  }
}

// Every plan, of the widest ones half of the variants; rings that are used again where that is
// little work.
void test_small(const Tables& t) {
  for (const Shape& s : kShares) {
    const int k = s.n < 1000 ? 4096 : 192;
    for (const int group : {32, 64}) {
      const bool silu = group == 64 && s.n % 16 == 0;
      const Checkpoint from(s.n, k, group, group == 32);
      const Layer layer(t, from, silu, !silu);
      for (const int m : {1, 9, 40}) {
        if (s.n > 20000 && (m == 1) != (group == 32)) continue;
        if (m > 16 && s.n > 1000) continue;
        const Use use{false, !silu, false};
        check_product(t, name_of(t, from, m, silu, !silu, use), layer, m, silu, use);
      }
    }
  }
}

// More tokens than are normalised or gated at a time.
void test_chunks(const Tables& t) {
  for (const bool silu : {false, true}) {
    const Layer layer(t, Checkpoint(768, 512, 128, silu), silu, true);
    for (const int m : {1024, 2100, 4096}) {
      check_product(t, label(t, "int4 ") + std::to_string(m) + "x768x512 norm", layer, m, silu,
                    {true, !silu, false});
    }
  }
}

// A weight that is dequantised in several parts.
void test_parts(const Tables& t) {
  const int n = 5136;
  const int k = 4096;
  for (const bool silu : {false, true}) {
    const Layer layer(t, Checkpoint(n, k, 128, false), silu, true);
    check_product(t, label(t, "int4 parts 140 tokens"), layer, 140, silu, {false, !silu, false});
  }
}

void test_refusals(const Tables& t) {
  const auto refusal = [&t](const Checkpoint& from) -> std::string {
    const int32_t* group_of = from.group_of.empty() ? nullptr : from.group_of.data();
    const ops::Int4Groups groups{from.scales.data(), from.zeros.data(), group_of, from.group_size};
    const ops::WeightPiece piece{from.q.data(), DType::kU8, from.n, &groups};
    try {
      ops::LinearWeight w = t.gpu.make_linear(t.gpu.self, &piece, 1, from.k, nullptr, false);
      t.gpu.release_linear(t.gpu.self, &w);
    } catch (const Error& error) {
      return error.what();
    }
    return "none";
  };
  const auto expect = [&t](const std::string& what, const char* part) {
    t.report.check(what.find(part) != std::string::npos, label(t, "int4 refusal: ") + what);
  };
  Checkpoint uneven(16, 128, 32, true);
  uneven.group_of[0] = (uneven.group_of[0] + 1) % 4;
  expect(refusal(uneven), "g_idx");
  expect(refusal(uneven), "must have 32 of the inputs");
  expect(refusal(Checkpoint(16, 192, 96, false)), "groups of 96 of 192 inputs");
  expect(refusal(Checkpoint(16, 128, 16, false)), "use groups of 32, 64 or 128, or one");
}

}  // namespace
}  // namespace treadle::cuda::testing

/// With an argument, "small", little work for the sanitizers.
int main(int argc, char** /*argv*/) {
  namespace test = treadle::cuda::testing;
  const bool small = argc > 1;
  return test::run_on_tables("int4_cuda_test", [small](const test::Tables& tables) {
    if (small) return test::test_small(tables);
    test::test_layout(tables);
    test::test_products(tables);
    test::test_shares(tables);
    test::test_chunks(tables);
    test::test_parts(tables);
    test::test_refusals(tables);
  });
}
