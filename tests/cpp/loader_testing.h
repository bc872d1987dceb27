// Helpers of the loader's tests: model directories made on the spot, and a backend that only
// stores.
#pragma once

#include <stdlib.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "ops/ops.h"
#include "treadle/error.h"

namespace treadle::testing {

/// Checks that `action` throws Error of `code` whose message contains every part.
inline void expect_error(ErrorCode code, const std::vector<std::string>& parts,
                         const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_STREQ(error_code_name(error.code()), error_code_name(code)) << error.what();
    for (const std::string& part : parts) {
      EXPECT_NE(std::string_view(error.what()).find(part), std::string_view::npos)
          << "message: " << error.what() << "\nlacks:   " << part;
    }
    return;
  }
  ADD_FAILURE() << "nothing was thrown; expected a message with: " << parts.front();
}

/// A fresh folder that is removed with the object.
class TempDir {
 public:
  TempDir() {
    std::string pattern = (std::filesystem::temp_directory_path() / "treadle-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    path_ = pattern;
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  std::string path() const { return path_.string(); }
  std::string file(const std::string& name) const { return (path_ / name).string(); }
  void write(const std::string& name, const std::string& content) const {
    std::ofstream out(path_ / name, std::ios::binary);
    out.write(content.data(), static_cast<std::streamsize>(content.size()));
  }

 private:
  std::filesystem::path path_;
};

/// The bytes of a file with this header and data, whatever they are.
inline std::string safetensors_bytes(const std::string& header, const std::string& data) {
  std::string out;
  for (unsigned i = 0; i < 8; ++i) {
    out += static_cast<char>(uint64_t{header.size()} >> (8 * i) & 0xFFU);
  }
  return out + header + data;
}

inline std::span<const std::byte> as_span(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

/// A tensor to be written. Values are small integers, so that every type holds them exactly.
struct TestTensor {
  std::string dtype;  // "F32", "F16" or "BF16"
  std::vector<int64_t> shape;
  std::vector<float> values;
};
using TestTensors = std::map<std::string, TestTensor>;

inline std::string encode(const TestTensor& tensor) {
  std::string out;
  for (const float value : tensor.values) {
    uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof(bits));
    size_t bytes = 4;
    if (tensor.dtype == "BF16") {
      bits >>= 16U;
      bytes = 2;
    } else if (tensor.dtype == "F16") {
      const uint32_t exponent = bits >> 23U & 0xFFU;
      const uint32_t half = exponent == 0 ? 0 : (exponent - 112) << 10U | (bits >> 13U & 0x3FFU);
      bits = (bits >> 16U & 0x8000U) | half;
      bytes = 2;
    }
    for (size_t i = 0; i < bytes; ++i) out += static_cast<char>(bits >> (8 * i) & 0xFFU);
  }
  return out;
}

/// A valid file. `pad` spaces at the end of the header move the data to any alignment.
inline std::string safetensors_file(const TestTensors& tensors, size_t pad = 0) {
  std::string header = R"({"__metadata__":{"format":"pt"})";
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    const size_t begin = data.size();
    data += encode(tensor);
    header += ",\"";
    header += name + "\":{\"dtype\":\"" + tensor.dtype + "\",\"shape\":[";
    for (size_t i = 0; i < tensor.shape.size(); ++i) {
      if (i > 0) header += ',';
      header += std::to_string(tensor.shape[i]);
    }
    header +=
        "],\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(data.size()) + "]}";
  }
  return safetensors_bytes(header + "}" + std::string(pad, ' '), data);
}

/// A backend in host memory that keeps weights row-major as they come, and counts what is alive.
class FakeBackend {
 public:
  FakeBackend() {
    ops_.name = "fake";
    ops_.self = this;
    ops_.alloc = [](void* self, size_t bytes) { return of(self).allocate(bytes); };
    ops_.release = [](void* self, void* memory) { of(self).free_one(memory); };
    ops_.upload = [](void*, void* to, const void* from, size_t bytes, ops::Stream) {
      std::memcpy(to, from, bytes);
    };
    ops_.synchronize = [](void*, ops::Stream) {};
    ops_.make_linear = [](void* self, const ops::WeightPiece* pieces, int32_t count, int64_t in,
                          const float* bias, bool silu_mul) {
      return of(self).make_linear({pieces, static_cast<size_t>(count)}, in, bias, silu_mul);
    };
    ops_.release_linear = [](void* self, ops::LinearWeight* weight) {
      of(self).free_one(weight->data);
      if (weight->bias != nullptr) of(self).free_one(const_cast<float*>(weight->bias));
    };
  }
  ~FakeBackend() {
    EXPECT_TRUE(alive_.empty()) << alive_.size() << " allocations were never released";
    for (void* memory : alive_) std::free(memory);
  }
  FakeBackend(const FakeBackend&) = delete;
  FakeBackend& operator=(const FakeBackend&) = delete;

  const ops::Ops& ops() const { return ops_; }
  size_t alive() const { return alive_.size(); }
  int allocations() const { return allocations_; }
  /// The n-th allocation from now on (1 = the next) throws kOutOfMemory; 0 = none.
  void fail_at(int n) { fail_at_ = n == 0 ? 0 : allocations_ + n; }
  /// Weights that were made with silu_mul.
  int silu_weights() const { return silu_weights_; }

 private:
  static FakeBackend& of(void* self) { return *static_cast<FakeBackend*>(self); }

  void* allocate(size_t bytes) {
    if (++allocations_ == fail_at_) throw Error(ErrorCode::kOutOfMemory, "fake: no memory left");
    void* memory = std::calloc(1, bytes == 0 ? 1 : bytes);
    alive_.insert(memory);
    return memory;
  }

  void free_one(void* memory) {
    EXPECT_EQ(alive_.erase(memory), 1U) << "released twice or never allocated";
    std::free(memory);
  }

  static std::vector<float> unpack(const ops::WeightPiece& piece, int64_t in) {
    const ops::Int4Groups& from = *piece.int4;
    const int64_t groups = in / from.group_size;
    const auto* bytes = static_cast<const uint8_t*>(piece.data);
    std::vector<float> out;
    for (int64_t n = 0; n < piece.rows; ++n) {
      for (int64_t k = 0; k < in; ++k) {
        const int64_t g = from.group_of != nullptr ? from.group_of[k] : k / from.group_size;
        const int q = bytes[(n * in + k) / 2] >> (k % 2 * 4) & 15;
        const int zero = from.zeros[n * groups + g];
        out.push_back(static_cast<float>(q - zero) * from.scales[n * groups + g]);
      }
    }
    return out;
  }

  ops::LinearWeight make_linear(std::span<const ops::WeightPiece> pieces, int64_t in,
                                const float* bias, bool silu_mul) {
    std::vector<std::vector<float>> unpacked;
    std::vector<ops::WeightPiece> dense;
    for (const auto& piece : pieces) {
      dense.push_back(piece);
      if (piece.int4 == nullptr) continue;
      unpacked.push_back(unpack(piece, in));
      dense.back() = {unpacked.back().data(), ops::DType::kF32, piece.rows};
    }
    pieces = dense;
    ops::LinearWeight weight;
    weight.dtype = pieces[0].dtype;
    weight.in_features = in;
    for (const auto& piece : pieces) {
      EXPECT_EQ(piece.dtype, weight.dtype);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(piece.data) % ops::dtype_size(piece.dtype), 0U);
      weight.out_features += piece.rows;
    }
    const size_t row = static_cast<size_t>(in) * ops::dtype_size(weight.dtype);
    const auto out_features = static_cast<size_t>(weight.out_features);
    auto* data = static_cast<std::byte*>(allocate(out_features * row));
    weight.data = data;
    weight.bytes = static_cast<int64_t>(out_features * row);
    for (const auto& piece : pieces) {
      std::memcpy(data, piece.data, static_cast<size_t>(piece.rows) * row);
      data += static_cast<size_t>(piece.rows) * row;
    }
    if (bias != nullptr) {
      try {
        auto* copy = static_cast<float*>(allocate(out_features * sizeof(float)));
        std::memcpy(copy, bias, out_features * sizeof(float));
        weight.bias = copy;
        weight.bytes += weight.out_features * static_cast<int64_t>(sizeof(float));
      } catch (const Error&) {
        free_one(weight.data);
        throw;
      }
    }
    if (silu_mul) ++silu_weights_;
    return weight;
  }

  ops::Ops ops_;
  std::set<void*> alive_;
  int allocations_ = 0;
  int fail_at_ = 0;
  int silu_weights_ = 0;
};

}  // namespace treadle::testing
