// The safetensors reader, and the files of a model directory.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "loader/checkpoint.h"
#include "loader/convert.h"
#include "loader/safetensors.h"
#include "loader_testing.h"

namespace treadle::loader {
namespace {

using testing::as_span;
using testing::expect_error;
using testing::safetensors_bytes;
using testing::safetensors_file;
using testing::TempDir;
using testing::TestTensors;

void expect_refused(const std::string& bytes, const std::vector<std::string>& parts) {
  std::vector<std::string> all = {"m.safetensors: "};
  all.insert(all.end(), parts.begin(), parts.end());
  expect_error(ErrorCode::kInvalidModel, all,
               [&] { parse_safetensors(as_span(bytes), "m.safetensors"); });
}

// One tensor "a" with these fields and 16 bytes of data.
std::string one(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return safetensors_bytes(R"({"a":{"dtype":")" + dtype + R"(","shape":)" + shape +
                               R"(,"data_offsets":)" + offsets + "}}",
                           std::string(16, '\1'));
}

TEST(Safetensors, ReadsAValidFile) {
  const TestTensors tensors = {{"b", {"F16", {3}, {1, -2, 0}}}, {"a", {"F32", {1, 2}, {1, 2}}}};
  const std::string bytes = safetensors_file(tensors);
  const std::vector<Tensor> read = parse_safetensors(as_span(bytes), "m.safetensors");
  ASSERT_EQ(read.size(), 2U);
  EXPECT_EQ(read[0].name, "a");
  EXPECT_EQ(read[0].shape, (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(read[0].type->weight, ops::DType::kF32);
  EXPECT_EQ(read[1].elements(), 3);
  float values[3];
  to_float(read[1].data.data(), ops::DType::kF16, 3, values);
  EXPECT_EQ(values[0], 1.0F);
  EXPECT_EQ(values[1], -2.0F);
  EXPECT_EQ(values[2], 0.0F);
}

TEST(Safetensors, ReadsEmptyTensorsScalarsAndPadding) {
  const std::string header = R"({"e":{"dtype":"F32","shape":[0,5],"data_offsets":[0,0]},)"
                             R"("s":{"dtype":"I64","shape":[],"data_offsets":[0,8]},)"
                             R"("z":{"dtype":"U8","shape":[7,0],"data_offsets":[8,8]}}   )";
  const std::string bytes = safetensors_bytes(header, std::string(8, '\0'));
  const std::vector<Tensor> read = parse_safetensors(as_span(bytes), "m.safetensors");
  ASSERT_EQ(read.size(), 3U);
  EXPECT_EQ(read[1].elements(), 1);
  EXPECT_FALSE(read[1].type->weight);
  const std::string none = safetensors_bytes("{}", "");
  EXPECT_TRUE(parse_safetensors(as_span(none), "m.safetensors").empty());
}

TEST(Safetensors, RefusesEveryTruncation) {
  const std::string bytes = safetensors_file({{"a", {"F32", {2}, {1, 2}}}});
  for (size_t size = 0; size < bytes.size(); ++size) {
    SCOPED_TRACE(size);
    // A copy of exactly this size, so that a read beyond its end is seen by the sanitizer.
    const std::vector<char> part(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(size));
    expect_error(ErrorCode::kInvalidModel, {"m.safetensors: "},
                 [&] { parse_safetensors(std::as_bytes(std::span(part)), "m.safetensors"); });
  }
  expect_refused("", {"has 0 bytes, too few"});
  expect_refused(bytes.substr(0, 20),
                 {"header length is", "but only 12 bytes follow", "truncated"});
  expect_refused(bytes.substr(0, bytes.size() - 1),
                 {"tensor \"a\"", "data_offsets [0, 8]", "beyond the end", "7 bytes of data"});
}

TEST(Safetensors, RefusesAHugeHeader) {
  std::string bytes(64, ' ');
  bytes.replace(0, 8, std::string("\xff\xff\xff\xff\xff\xff\xff\xff", 8));
  expect_refused(bytes, {"header length is 18446744073709551615", "at most 100000000"});
  bytes.replace(0, 8, std::string("\x01\xe1\xf5\x05\0\0\0\0", 8));  // 100,000,001
  expect_refused(bytes, {"header length is 100000001", "at most 100000000"});
  bytes.replace(0, 8, std::string("\x00\xe1\xf5\x05\0\0\0\0", 8));
  expect_refused(bytes, {"header length is 100000000, but only 56 bytes follow"});
}

TEST(Safetensors, RefusesBadHeaders) {
  const auto header = [](const std::string& text) { return safetensors_bytes(text, ""); };
  expect_refused(header("{\"a\":"), {"header is not valid JSON"});
  expect_refused(header(""), {"header is not valid JSON"});
  expect_refused(header("[]"), {"header is or holds a list: must be an object"});
  expect_refused(header("7"), {"header is or holds 7: must be an object"});
  expect_refused(header(R"({"a":7})"), {"tensor \"a\" is or holds 7: must be an object"});
  expect_refused(header(R"({"a":[]})"), {"tensor \"a\" is or holds a list"});
  expect_refused(header(R"({"a":null})"), {"tensor \"a\" is or holds null"});
  expect_refused(header(R"({"a":{}})"), {"tensor \"a\" lacks one of dtype, shape"});
  expect_refused(header(R"({"a":{"dtype":"F32","shape":[]}})"), {"tensor \"a\" lacks one of"});
  expect_refused(header(R"({"a":{"typ":"F32"}})"), {"tensor \"a\"", "unknown field \"typ\""});
  expect_refused(header(R"({"a":{"dtype":"F32","dtype":"F16"}})"), {"\"a\" has dtype twice"});
  expect_refused(header(R"({"a":{"dtype":32}})"), {"\"a\": dtype is or holds 32", "a string"});
  expect_refused(header(R"({"a":{"shape":"x"}})"), {"\"a\": shape is or holds \"x\"", "a list"});
  expect_refused(header(R"({"a":{"shape":[-1]}})"), {"shape is or holds -1", "non-negative"});
  expect_refused(header(R"({"a":{"shape":[1.5]}})"), {"shape is or holds 1.5"});
  expect_refused(header(R"({"a":{"shape":[true]}})"), {"shape is or holds true"});
  expect_refused(header(R"({"a":{"shape":[[1]]}})"), {"shape is or holds a list"});
  expect_refused(header(R"({"a":{"shape":[99999999999999999999]}})"), {"shape is or holds 9999"});
  expect_refused(header(R"({"a":{"shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]}})"),
                 {"shape has more than 16 numbers"});
  expect_refused(header(R"({"__metadata__":{"a":1}})"), {"__metadata__", "must be a string"});
  expect_refused(header(R"({"__metadata__":{"a":{}}})"), {"__metadata__", "must be a string"});
  expect_refused(header(R"({"__metadata__":[]})"), {"__metadata__", "must be an object"});
  expect_refused(header(R"({"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},)"
                        R"("a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}})"),
                 {"tensor \"a\" is given twice"});
  std::string deep = "{\"a\":";
  for (int i = 0; i < 100'000; ++i) deep += "[";
  expect_refused(header(deep), {"tensor \"a\" is or holds a list"});
}

TEST(Safetensors, RefusesLyingTensors) {
  EXPECT_NO_THROW(parse_safetensors(as_span(one("F32", "[2,2]", "[0,16]")), "m"));
  expect_refused(one("F33", "[2,2]", "[0,16]"), {"tensor \"a\": dtype \"F33\" is not one of"});
  expect_refused(one("F32", "[2,2]", "[0,16,16]"), {"data_offsets has 3 numbers"});
  expect_refused(one("F32", "[2,2]", "[]"), {"data_offsets has 0 numbers"});
  expect_refused(one("F32", "[2,2]", "[16,0]"), {"data_offsets [16, 0] end before they begin"});
  expect_refused(one("F32", "[2,2]", "[8,24]"), {"data_offsets [8, 24]", "beyond the end", "16"});
  expect_refused(one("F32", "[2,2]", "[0,18446744073709551615]"), {"beyond the end"});
  expect_refused(one("F32", "[2,3]", "[0,16]"),
                 {"[0, 16] are 16 bytes, but shape [2, 3] of F32 needs 24"});
  expect_refused(one("F16", "[2,2]", "[0,16]"), {"shape [2, 2] of F16 needs 8"});
  expect_refused(one("F4", "[3]", "[0,16]"), {"shape [3] of F4 has no valid size"});
}

TEST(Safetensors, RefusesOverflowingShapes) {
  // 2^32 * 2^32 * 4 bytes is 0 modulo 2^64; 2^62 + 4 elements of 4 bytes are 16 modulo 2^64.
  expect_refused(one("F32", "[4294967296,4294967296]", "[0,16]"), {"no valid size", "overflows"});
  expect_refused(one("F32", "[4611686018427387908]", "[0,16]"), {"no valid size", "overflows"});
  expect_refused(one("U8", "[18446744073709551615]", "[0,16]"), {"no valid size", "overflows"});
  expect_refused(one("U8", "[9223372036854775807,9223372036854775807,0]", "[0,0]"),
                 {"no valid size"});
}

TEST(Safetensors, RefusesOverlapsHolesAndLeftovers) {
  const auto two = [](const std::string& a, const std::string& b, const std::string& sizes) {
    const std::string type = R"({"dtype":"U8","shape":[)" + sizes + R"(],"data_offsets":)";
    return safetensors_bytes(R"({"a":)" + type + a + R"(},"b":)" + type + b + "}}",
                             std::string(16, '\1'));
  };
  EXPECT_NO_THROW(parse_safetensors(as_span(two("[8,16]", "[0,8]", "8")), "m"));
  expect_refused(two("[0,9]", "[7,16]", "9"), {"tensors \"a\" and \"b\" overlap at byte 7"});
  expect_refused(two("[0,16]", "[0,16]", "16"), {"overlap at byte 0"});
  expect_refused(two("[0,7]", "[9,16]", "7"), {"\"b\" begins at byte 9", "a hole after byte 7"});
  expect_refused(two("[1,8]", "[8,15]", "7"), {"\"a\" begins at byte 1", "a hole after byte 0"});
  expect_refused(two("[0,7]", "[7,14]", "7"), {"describes 14 bytes of data, but the file has 16"});
}

TEST(Convert, IsExactForEveryHalf) {
  const auto convert = [](uint16_t bits, ops::DType type) {
    float out = 0;
    to_float(reinterpret_cast<const std::byte*>(&bits), type, 1, &out);
    return out;
  };
  EXPECT_EQ(convert(0x3C00, ops::DType::kF16), 1.0F);
  EXPECT_EQ(convert(0x0001, ops::DType::kF16), 0x1p-24F);
  EXPECT_EQ(convert(0x83FF, ops::DType::kF16), -1023 * 0x1p-24F);
  EXPECT_EQ(convert(0x0400, ops::DType::kF16), 0x1p-14F);
  EXPECT_EQ(convert(0x7BFF, ops::DType::kF16), 65504.0F);
  EXPECT_EQ(convert(0xFC00, ops::DType::kF16), -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(convert(0x7E00, ops::DType::kF16)));
  EXPECT_TRUE(std::signbit(convert(0x8000, ops::DType::kF16)));
  EXPECT_EQ(convert(0x3FC0, ops::DType::kBF16), 1.5F);
  EXPECT_EQ(convert(0xC000, ops::DType::kBF16), -2.0F);
}

class CheckpointTest : public ::testing::Test {
 protected:
  void refused(ErrorCode code, const std::vector<std::string>& parts) {
    expect_error(code, parts, [&] { const Checkpoint checkpoint(dir_.path()); });
  }
  static std::string shard(const std::string& name) {
    return safetensors_file({{name, {"F32", {2}, {1, 2}}}});
  }

  TempDir dir_;
};

TEST_F(CheckpointTest, ReadsOneFile) {
  dir_.write("model.safetensors", shard("a"));
  const Checkpoint checkpoint(dir_.path());
  ASSERT_NE(checkpoint.find("a"), nullptr);
  EXPECT_EQ(checkpoint.find("b"), nullptr);
  checkpoint.prefetch(*checkpoint.find("a"));
  checkpoint.drop(*checkpoint.find("a"), checkpoint.find("a")->tensor.data);
  EXPECT_EQ(checkpoint.file_name(*checkpoint.find("a")), "model.safetensors");
}

TEST_F(CheckpointTest, ReadsShards) {
  dir_.write("model.safetensors.index.json",
             R"({"metadata": {"total_size": 16}, "weight_map": {"a": "1.st", "b": "2.st"}})");
  dir_.write("1.st", shard("a"));
  dir_.write("2.st", shard("b"));
  const Checkpoint checkpoint(dir_.path());
  EXPECT_EQ(checkpoint.entries().size(), 2U);
  EXPECT_EQ(checkpoint.file_name(*checkpoint.find("b")), "2.st");
}

TEST_F(CheckpointTest, NamesMissingShards) {
  dir_.write("model.safetensors.index.json",
             R"({"weight_map": {"a": "1.st", "b": "2.st", "c": "3.st"}})");
  dir_.write("2.st", shard("b"));
  refused(ErrorCode::kNotFound, {"2 of 3 files are missing", "\"1.st\", \"3.st\""});
}

TEST_F(CheckpointTest, RefusesNamesThatLeaveTheDirectory) {
  dir_.write("1.st", shard("a"));
  for (const char* name : {"../1.st", "/etc/passwd", "sub/1.st", "..", ".", "", "a\\\\b"}) {
    dir_.write("model.safetensors.index.json",
               std::string(R"({"weight_map": {"a": ")") + name + "\"}}");
    refused(ErrorCode::kInvalidModel,
            {"model.safetensors.index.json: weight_map: tensor \"a\" is in ", "plain name"});
  }
}

TEST_F(CheckpointTest, RefusesABadIndex) {
  const auto index = [&](const std::string& text) {
    dir_.write("model.safetensors.index.json", text);
  };
  index("{}");
  refused(ErrorCode::kInvalidModel, {"weight_map is missing: must be an object"});
  index(R"({"weight_map": {}})");
  refused(ErrorCode::kInvalidModel, {"weight_map is {}: must be an object"});
  index(R"({"weight_map": {"a": 1}})");
  refused(ErrorCode::kInvalidModel, {"tensor \"a\" is in 1: must be the plain name"});
  index("[");
  refused(ErrorCode::kInvalidModel, {"model.safetensors.index.json: not valid JSON"});
}

TEST_F(CheckpointTest, RefusesAnIndexThatDisagrees) {
  dir_.write("1.st", shard("a"));
  dir_.write("2.st", shard("b"));
  dir_.write("model.safetensors.index.json", R"({"weight_map": {"a": "1.st", "c": "2.st"}})");
  refused(ErrorCode::kInvalidModel, {"tensor \"c\" is not in 2.st"});
  dir_.write("model.safetensors.index.json", R"({"weight_map": {"a": "2.st", "b": "1.st"}})");
  refused(ErrorCode::kInvalidModel, {"tensor \"a\" is not in 2.st, but in 1.st"});
  dir_.write("2.st", shard("a"));
  dir_.write("model.safetensors.index.json", R"({"weight_map": {"a": "1.st", "b": "2.st"}})");
  refused(ErrorCode::kInvalidModel, {"2.st: tensor \"a\" is in 1.st too"});
}

TEST_F(CheckpointTest, NeverLoadsPickles) {
  dir_.write("pytorch_model.bin", "x");
  refused(ErrorCode::kUnsupported,
          {"only \"pytorch_model.bin\"", "pickle files are never loaded", "convert"});
}

TEST_F(CheckpointTest, SaysWhatThereIs) {
  refused(ErrorCode::kNotFound, {"no model.safetensors or model.safetensors.index.json in"});
  dir_.write("other.safetensors", shard("a"));
  refused(ErrorCode::kNotFound, {"it has \"other.safetensors\""});
  std::filesystem::create_directories(dir_.file("weights/rank0"));
  refused(ErrorCode::kNotFound, {"a workspace's weights are there, but not its config.ini"});
}

TEST_F(CheckpointTest, RefusesEmptyAndIrregularFiles) {
  dir_.write("model.safetensors", "");
  refused(ErrorCode::kInvalidModel, {"model.safetensors: is empty"});
  std::filesystem::remove(dir_.file("model.safetensors"));
  std::filesystem::create_directory(dir_.file("model.safetensors"));
  refused(ErrorCode::kInvalidModel, {"is not a regular file"});
}

}  // namespace
}  // namespace treadle::loader
