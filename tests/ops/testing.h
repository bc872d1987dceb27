// What the op tests share: every backend variant of this machine, random data of each dtype, a
// paged batch in shuffled blocks, comparison.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "ops/cpu/backend.h"
#include "ops/cpu/element.h"
#include "ops/ops.h"

namespace treadle::ops::testing {

constexpr DType kFloatTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

/// A backend of one instruction set and number of threads.
struct Variant {
  cpu::Isa isa;
  int threads;
};

inline std::vector<Variant> all_variants() {
  std::vector<Variant> variants;
  for (const cpu::Isa isa : cpu::supported_isas()) {
    for (const int threads : {1, 2, 4}) variants.push_back({isa, threads});
  }
  return variants;
}

inline std::string variant_name(const ::testing::TestParamInfo<Variant>& info) {
  return std::string(cpu::isa_name(info.param.isa)) + "_" + std::to_string(info.param.threads);
}

/// Owns a backend.
class Device {
 public:
  explicit Device(Variant v) : ops(cpu::make_ops(v.threads, v.isa)) {}
  ~Device() { ops.destroy(ops.self); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  const Ops ops;
};

class OpTest : public ::testing::TestWithParam<Variant> {
 protected:
  OpTest() : device(GetParam()), ops(device.ops) {}

  Device device;
  const Ops& ops;
};

#define TREADLE_FOR_ALL_VARIANTS(suite) \
  INSTANTIATE_TEST_SUITE_P(Cpu, suite, ::testing::ValuesIn(all_variants()), variant_name)

constexpr float kPoison = std::numeric_limits<float>::quiet_NaN();

inline std::vector<float> random_floats(size_t n, uint32_t seed, float scale = 1.0F) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0F, scale);
  std::vector<float> values(n);
  for (float& v : values) v = normal(generator);
  return values;
}

/// Elements of a dtype in memory, and what they mean.
struct Tensor {
  DType dtype = DType::kF32;
  std::vector<char> bytes;

  Tensor(DType type, size_t n) : dtype(type), bytes(n * dtype_size(type)) {}
  Tensor(DType type, const std::vector<float>& values) : Tensor(type, values.size()) {
    for (size_t i = 0; i < values.size(); ++i) set(i, values[i]);
  }

  void set(size_t i, float value) {
    if (dtype == DType::kF32) {
      std::memcpy(&bytes[i * 4], &value, 4);
    } else if (dtype == DType::kF16) {
      cpu::F16 element{};
      cpu::from_float(value, &element);
      std::memcpy(&bytes[i * 2], &element, 2);
    } else if (dtype == DType::kI8) {
      const auto element = static_cast<int8_t>(value);
      std::memcpy(&bytes[i], &element, 1);
    } else {
      cpu::BF16 element{};
      cpu::from_float(value, &element);
      std::memcpy(&bytes[i * 2], &element, 2);
    }
  }

  float get(size_t i) const {
    if (dtype == DType::kF32) {
      float value = 0;
      std::memcpy(&value, &bytes[i * 4], 4);
      return value;
    }
    if (dtype == DType::kI8) return static_cast<float>(static_cast<int8_t>(bytes[i]));
    uint16_t bits = 0;
    std::memcpy(&bits, &bytes[i * 2], 2);
    return dtype == DType::kF16 ? cpu::to_float(cpu::F16{bits}) : cpu::to_float(cpu::BF16{bits});
  }

  size_t size() const { return bytes.size() / dtype_size(dtype); }
};

/// |got - want| <= absolute + relative * |want| for all elements; NaN fails.
inline void expect_near(const std::vector<float>& got, const std::vector<double>& want,
                        double relative, double absolute) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    const double error = std::fabs(double{got[i]} - want[i]);
    ASSERT_TRUE(error <= absolute + relative * std::fabs(want[i]))
        << "element " << i << " is " << got[i] << ", should be " << want[i];
  }
}

inline void expect_same_bits(const std::vector<float>& got, const std::vector<float>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(want[i]))
        << "element " << i << ": " << got[i] << " and " << want[i];
  }
}

/// Sequences of a step: context lengths, the last `query` tokens of which are in the batch.
struct SequenceShape {
  int context;
  int query;
};

/// A KV pool, all NaN, and a batch whose sequences own blocks of it in shuffled order.
struct PagedBatch {
  Tensor pool;
  KvPool kv;
  SequenceBatch batch;
  std::vector<int32_t> query_begin, context_len, tables, token_sequence, positions;

  PagedBatch(DType dtype, int layers, int kv_heads, int head_dim, int total_blocks,
             bool static_scales = false)
      : pool(dtype, 0) {
    kv.dtype = dtype;
    kv.static_scales = static_scales;
    kv.num_blocks = total_blocks;
    kv.num_layers = layers;
    kv.kv_heads = kv_heads;
    kv.head_dim = head_dim;
    pool = Tensor(dtype, kv.bytes() / dtype_size(dtype));
    if (dtype == DType::kI8) {
      std::memset(pool.bytes.data(), 0xFF, pool.bytes.size());  // parameters: NaN
    } else {
      for (size_t i = 0; i < pool.size(); ++i) pool.set(i, kPoison);
    }
    kv.base = pool.bytes.data();
  }
  PagedBatch(const PagedBatch&) = delete;
  PagedBatch& operator=(const PagedBatch&) = delete;

  /// Sequence s gets the same blocks whatever the shapes are, so that steps can follow each other.
  void set_step(const std::vector<SequenceShape>& shapes, int blocks_per_sequence, uint32_t seed) {
    ASSERT_LE(int(shapes.size()) * blocks_per_sequence, kv.num_blocks);
    std::vector<int32_t> ids(size_t(kv.num_blocks));
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
    std::shuffle(ids.begin(), ids.end(), std::mt19937(seed));
    tables.assign(ids.begin(), ids.begin() + long(shapes.size()) * blocks_per_sequence);
    query_begin = {0};
    context_len.clear();
    token_sequence.clear();
    positions.clear();
    batch = SequenceBatch{};
    for (size_t s = 0; s < shapes.size(); ++s) {
      const auto [context, query] = shapes[s];
      context_len.push_back(context);
      query_begin.push_back(query_begin.back() + query);
      for (int i = 0; i < query; ++i) {
        token_sequence.push_back(static_cast<int32_t>(s));
        positions.push_back(context - query + i);
      }
      batch.max_query_len = std::max(batch.max_query_len, query);
      batch.max_context_len = std::max(batch.max_context_len, context);
      if (query == 1 && batch.num_decode == static_cast<int32_t>(s)) ++batch.num_decode;
    }
    batch.num_tokens = query_begin.back();
    batch.num_sequences = static_cast<int32_t>(shapes.size());
    batch.query_begin = query_begin.data();
    batch.context_len = context_len.data();
    batch.block_tables = tables.data();
    batch.block_table_stride = blocks_per_sequence;
    batch.token_sequence = token_sequence.data();
    batch.positions = positions.data();
  }

  /// Index in the pool of an element of K (part 0) or V (part 1): the CPU's own order.
  size_t index(int layer, int part, int head, int sequence, int position, int dim) const {
    const auto block =
        size_t(tables[size_t(sequence * batch.block_table_stride + position / kBlockTokens)]);
    const auto slot = size_t(position % kBlockTokens);
    const size_t base = block * (kv.block_bytes() / dtype_size(kv.dtype)) +
                        size_t(layer) * kv.layer_elems() +
                        size_t(part * kv.kv_heads + head) * kv.head_elems();
    return base + (part == 0 ? size_t(dim) * kBlockTokens + slot
                             : slot * size_t(kv.head_dim) + size_t(dim));
  }

  /// Parameters of a quantised token.
  KvScale& scale(int layer, int part, int head, int sequence, int position) {
    const int32_t block =
        tables[size_t(sequence * batch.block_table_stride + position / kBlockTokens)];
    return scales(block, layer, part, head)[position % kBlockTokens];
  }
  KvScale* scales(int block, int layer, int part, int head) {
    return reinterpret_cast<KvScale*>(pool.bytes.data() + kv.scales_at(block, layer, part, head));
  }

  /// What the pool holds for an element of K or V.
  double value(int layer, int part, int head, int sequence, int position, int dim) {
    const double stored = pool.get(index(layer, part, head, sequence, position, dim));
    if (kv.dtype != DType::kI8) return stored;
    const KvScale s = scale(layer, part, head, sequence, position);
    return stored * s.scale + s.zero;
  }
};

}  // namespace treadle::ops::testing
