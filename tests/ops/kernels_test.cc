// The pieces that all kernels rest on: exp, 16-bit conversions in both directions, memory.
#include <cmath>

#include <treadle/error.h>

#include "testing.h"

namespace treadle::ops::testing {
namespace {

class KernelsTest : public ::testing::TestWithParam<cpu::Isa> {
 protected:
  const cpu::Kernels& kernels = *cpu::kernels_of(GetParam());

  std::vector<float> exp(const std::vector<float>& x) const {
    std::vector<float> y(x.size());
    kernels.exp(x.data(), int64_t(x.size()), y.data());
    return y;
  }
};

TEST_P(KernelsTest, ExpWithinTwoUlp) {
  std::vector<float> x;
  for (float v = -87.29F; v < 88.29F; v += 0.0031F) x.push_back(v);
  const auto y = exp(x);
  for (size_t i = 0; i < x.size(); ++i) {
    const double want = std::exp(double{x[i]});
    const double ulp = std::ldexp(1.0, std::ilogb(want) - 23);
    ASSERT_LE(std::fabs(y[i] - want), 2 * ulp) << x[i];
  }
}

TEST_P(KernelsTest, ExpAtTheEnds) {
  const float inf = std::numeric_limits<float>::infinity();
  const auto y = exp({0.0F, -0.0F, -inf, -1000.0F, -88.0F, inf, 1000.0F, kPoison});
  EXPECT_EQ(y[0], 1.0F);
  EXPECT_EQ(y[1], 1.0F);
  EXPECT_EQ(y[2], 0.0F);
  EXPECT_EQ(y[3], 0.0F);
  EXPECT_EQ(y[4], 0.0F);
  EXPECT_GT(y[5], 1e38F);
  EXPECT_GT(y[6], 1e38F);
  EXPECT_TRUE(std::isnan(y[7]));
}

TEST_P(KernelsTest, EveryHalfToFloat) {
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    std::vector<uint16_t> bits(65536 + 3);
    for (size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<uint16_t>(i);
    std::vector<float> out(bits.size());
    kernels.to_float(dtype, bits.data(), 1, int64_t(bits.size()), out.data());
    for (size_t i = 0; i < bits.size(); ++i) {
      const int mantissa_bits = dtype == DType::kF16 ? 10 : 7;
      const int exponent_bits = 15 - mantissa_bits;
      const int mantissa = bits[i] & ((1 << mantissa_bits) - 1);
      const int exponent = (bits[i] >> mantissa_bits) & ((1 << exponent_bits) - 1);
      const int bias = (1 << (exponent_bits - 1)) - 1;
      double want = exponent == 0 ? std::ldexp(mantissa, 1 - bias - mantissa_bits)
                                  : std::ldexp(mantissa + (1 << mantissa_bits),
                                               exponent - bias - mantissa_bits);
      if (exponent == (1 << exponent_bits) - 1) want = std::numeric_limits<double>::infinity();
      if (bits[i] & 0x8000) want = -want;
      if (std::isinf(want) && mantissa != 0) {
        ASSERT_TRUE(std::isnan(out[i])) << i;
      } else {
        ASSERT_EQ(double{out[i]}, want) << i;
      }
    }
  }
}

// Values on, between and around the representable ones, through the KV store of each variant.
TEST_P(KernelsTest, FloatsAreRoundedToNearestEven) {
  const Device device({GetParam(), 1});
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    std::vector<float> x;
    for (uint32_t h = 0; h < 0x7F80; h += 3) {
      Tensor low(dtype, 2);
      const auto bits = static_cast<uint16_t>(h);
      const auto next = static_cast<uint16_t>(h + 1);
      std::memcpy(&low.bytes[0], &bits, 2);
      std::memcpy(&low.bytes[2], &next, 2);
      if (!std::isfinite(low.get(0)) || !std::isfinite(low.get(1))) continue;
      const float middle = (low.get(0) + low.get(1)) / 2;
      for (const float v : {low.get(0), middle, std::nextafter(middle, 0.0F),
                            std::nextafter(middle, std::numeric_limits<float>::infinity())}) {
        x.push_back(v);
        x.push_back(-v);
      }
    }
    while (x.size() % 256 != 0) x.push_back(0.0F);
    x.back() = 1e38F;
    const int tokens = static_cast<int>(x.size() / 256);
    PagedBatch paged(dtype, 1, 1, 256, tokens / kBlockTokens + 1);
    paged.set_step({{tokens, tokens}}, tokens / kBlockTokens + 1, 1);
    std::vector<float> qkv, q(x.size());
    for (int t = 0; t < tokens; ++t) {
      for (int part = 0; part < 3; ++part) {
        qkv.insert(qkv.end(), x.begin() + t * 256, x.begin() + (t + 1) * 256);
      }
    }
    QkvParams p;
    p.qkv = qkv.data();
    p.q_out = q.data();
    p.heads = p.kv_heads = 1;
    p.head_dim = 256;
    p.kv = paged.kv;
    p.batch = paged.batch;
    device.ops.qkv(device.ops.self, p, {});
    Tensor want(dtype, 1);
    for (int t = 0; t < tokens; ++t) {
      for (int d = 0; d < 256; ++d) {
        // The nearest of the neighbours by the scalar conversion, which is checked below.
        want.set(0, x[size_t(t * 256 + d)]);
        for (const int part : {0, 1}) {
          ASSERT_EQ(paged.pool.get(paged.index(0, part, 0, 0, t, d)), want.get(0))
              << x[size_t(t * 256 + d)];
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, KernelsTest, ::testing::ValuesIn(cpu::supported_isas()),
                         [](const auto& isa) { return std::string(cpu::isa_name(isa.param)); });

TEST(Element, RoundsToTheNearestNeighbour) {
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    Tensor pair(dtype, 3);
    for (uint32_t h = 0; h < 0x7F7F; ++h) {
      const auto bits = static_cast<uint16_t>(h);
      const auto next = static_cast<uint16_t>(h + 1);
      std::memcpy(&pair.bytes[0], &bits, 2);
      std::memcpy(&pair.bytes[2], &next, 2);
      const double low = pair.get(0);
      const double high = pair.get(1);
      if (!std::isfinite(high)) break;
      const double middle = (low + high) / 2;
      auto rounded = [&](double value) {
        pair.set(2, static_cast<float>(value));
        return double{pair.get(2)};
      };
      ASSERT_EQ(rounded(low), low);
      if (static_cast<double>(static_cast<float>(middle)) != middle) continue;
      ASSERT_EQ(rounded(middle), h % 2 == 0 ? low : high) << h;
      ASSERT_EQ(rounded(std::nextafter(static_cast<float>(middle), 0.0F)), low) << h;
      ASSERT_EQ(rounded(std::nextafter(static_cast<float>(middle),
                                       std::numeric_limits<float>::infinity())),
                high)
          << h;
      ASSERT_EQ(rounded(-middle), h % 2 == 0 ? -low : -high) << h;
    }
  }
}

TEST(Element, Overflow) {
  Tensor x(DType::kF16, {65504.0F, 65519.9F, 65520.0F, 1e30F, -1e30F, kPoison});
  EXPECT_EQ(x.get(0), 65504.0F);
  EXPECT_EQ(x.get(1), 65504.0F);
  EXPECT_TRUE(std::isinf(x.get(2)));
  EXPECT_TRUE(std::isinf(x.get(3)));
  EXPECT_TRUE(std::isinf(x.get(4)) && x.get(4) < 0);
  EXPECT_TRUE(std::isnan(x.get(5)));
  EXPECT_TRUE(std::isnan(Tensor(DType::kBF16, std::vector<float>{kPoison}).get(0)));
}

TEST(Isa, NamesAndOrder) {
  const auto isas = cpu::supported_isas();
  ASSERT_FALSE(isas.empty());
  EXPECT_EQ(isas.front(), cpu::Isa::kPlain);
  EXPECT_STREQ(cpu::isa_name(cpu::Isa::kPlain), "plain");
  for (const cpu::Isa isa : isas) EXPECT_NE(cpu::kernels_of(isa), nullptr);
}

TEST(DTypeName, All) {
  EXPECT_STREQ(dtype_name(DType::kF32), "float32");
  EXPECT_STREQ(dtype_name(DType::kF16), "float16");
  EXPECT_STREQ(dtype_name(DType::kBF16), "bfloat16");
  EXPECT_STREQ(dtype_name(DType::kI32), "int32");
  EXPECT_STREQ(dtype_name(DType::kI8), "int8");
  EXPECT_STREQ(dtype_name(DType::kU8), "uint8");
}

}  // namespace
}  // namespace treadle::ops::testing
