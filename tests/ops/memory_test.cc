// The backend's memory.
#include <cstdint>
#include <cstring>

#include <treadle/error.h>

#include "testing.h"

namespace treadle::ops::testing {
namespace {

bool all_zero(const void* ptr, size_t bytes) {
  const auto* p = static_cast<const char*>(ptr);
  for (size_t i = 0; i < bytes; ++i) {
    if (p[i] != 0) return false;
  }
  return true;
}

TEST(Memory, ZeroedAlignedAndApart) {
  const Device device({cpu::Isa::kPlain, 1});
  const Ops& ops = device.ops;
  std::vector<std::pair<char*, size_t>> live;
  for (int round = 0; round < 3; ++round) {
    for (const size_t bytes : {size_t{0}, size_t{1}, size_t{63}, size_t{64}, size_t{65},
                               size_t{1} << 20, (size_t{9} << 20) + 5, size_t{3} << 20}) {
      char* ptr = static_cast<char*>(ops.alloc(ops.self, bytes));
      ASSERT_NE(ptr, nullptr);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(ptr) % 64, 0U);
      EXPECT_TRUE(all_zero(ptr, bytes));
      for (const auto& [other, size] : live) {
        EXPECT_TRUE(ptr + bytes <= other || other + size <= ptr);
      }
      std::memset(ptr, 0x5A, bytes);
      live.emplace_back(ptr, bytes);
    }
    // Half go, and what comes next is zeroed again.
    for (size_t i = 0; i < live.size(); i += 2) ops.release(ops.self, live[i].first);
    std::vector<std::pair<char*, size_t>> kept;
    for (size_t i = 1; i < live.size(); i += 2) kept.push_back(live[i]);
    live = kept;
  }
  for (const auto& [ptr, bytes] : live) {
    EXPECT_EQ(bytes == 0 || ptr[bytes - 1] == 0x5A, true);
    ops.release(ops.self, ptr);
  }
  ops.release(ops.self, nullptr);
}

TEST(Memory, TooMuchIsAnErrorThatSaysHowMuch) {
  const Device device({cpu::Isa::kPlain, 1});
  const Ops& ops = device.ops;
  EXPECT_GT(ops.free_memory(ops.self), size_t{1} << 20);
  EXPECT_LT(ops.free_memory(ops.self), size_t{1} << 50);
  EXPECT_GE(ops.total_memory(ops.self), ops.free_memory(ops.self));
  EXPECT_LT(ops.total_memory(ops.self), size_t{1} << 50);
  for (const size_t bytes : {size_t{1} << 50, size_t{0} - 1, size_t{0} - 70}) {
    try {
      ops.alloc(ops.self, bytes);
      FAIL() << "allocated " << bytes;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::kOutOfMemory);
      EXPECT_NE(std::string(e.what()).find(std::to_string(bytes)), std::string::npos) << e.what();
    }
  }
}

TEST(Memory, CopiesAreCopies) {
  const Device device({cpu::Isa::kPlain, 1});
  const Ops& ops = device.ops;
  const auto values = random_floats(100, 1);
  void* there = ops.alloc(ops.self, 400);
  ops.upload(ops.self, there, values.data(), 400, {});
  std::vector<float> back(100);
  ops.synchronize(ops.self, {});
  ops.download(ops.self, back.data(), there, 400, {});
  expect_same_bits(back, values);
  ops.release(ops.self, there);
}

TEST(CpuOps, ThreadsAndNames) {
  const Ops ops = cpu_ops(3);
  EXPECT_STREQ(ops.name, "cpu");
  EXPECT_EQ(ops.act_dtype, DType::kF32);
  EXPECT_EQ(ops.num_threads, 3);
  ops.destroy(ops.self);
  const Ops all = cpu_ops(0);
  EXPECT_EQ(all.num_threads, cpu::available_threads());
  all.destroy(all.self);
}

}  // namespace
}  // namespace treadle::ops::testing
