#include "loader/int4.h"

#include <array>
#include <cmath>
#include <cstring>

#include "loader/convert.h"
#include "loader/int4_numbers.h"
#include "loader/text.h"

namespace treadle::loader {
namespace {

using model::QuantMethod;
using Kind = ExpectedTensor::Kind;

constexpr int64_t kPack = 8;  // 4-bit numbers of an int32

int64_t group_size_of(const LinearName& linear) {
  return linear.quant.group_size > 0 ? linear.quant.group_size : linear.in;
}

int64_t groups_of(const LinearName& linear) { return linear.in / group_size_of(linear); }

void mark(const Checkpoint& checkpoint, const model::QuantSpec& quant, LinearName& linear) {
  if (checkpoint.find(linear.weight_name()) != nullptr) return;
  linear.quant = quant;
  if (checkpoint.find(linear.name + ".g_idx") != nullptr) linear.quant.group_index = true;
  const bool packs_out = quant.method != QuantMethod::kPacked || !quant.symmetric;
  if (linear.in % kPack != 0 || (packs_out && linear.out % kPack != 0)) {
    throw Error(ErrorCode::kInvalidModel,
                cat("layer ", quote(linear.name), " is ", linear.in, " to ", linear.out,
                    " features: 4-bit weights are stored in eights"));
  }
  if (linear.in % group_size_of(linear) != 0) {
    throw Error(ErrorCode::kInvalidModel,
                cat("layer ", quote(linear.name), " has ", linear.in,
                    " inputs: not a multiple of the group size, ", group_size_of(linear)));
  }
}

/// A matrix of 4-bit numbers, packed along rows or columns.
class Nibbles {
 public:
  Nibbles(const Tensor& tensor, bool along_rows, bool awq)
      : data_(tensor.data.data()), stride_(tensor.shape[1]), along_rows_(along_rows), awq_(awq) {}

  uint8_t at(int64_t row, int64_t column) const {
    // AutoAWQ stores columns 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits up.
    constexpr std::array<int64_t, kPack> kAwqPlace = {0, 4, 1, 5, 2, 6, 3, 7};
    const int64_t packed = along_rows_ ? row : column;
    const int64_t place = awq_ ? kAwqPlace[static_cast<size_t>(packed % kPack)] : packed % kPack;
    const int64_t word =
        along_rows_ ? row / kPack * stride_ + column : row * stride_ + column / kPack;
    const auto byte = std::to_integer<unsigned>(data_[word * 4 + place / 2]);
    return static_cast<uint8_t>(byte >> (place % 2 * 4) & 15U);
  }

 private:
  const std::byte* data_;
  int64_t stride_;
  bool along_rows_;
  bool awq_;
};

class Reader {
 public:
  Reader(const Checkpoint& checkpoint, const LinearName& linear)
      : checkpoint_(checkpoint), linear_(linear), groups_(groups_of(linear)) {}

  Int4Weight read() const {
    Int4Weight out;
    out.group_size = group_size_of(linear_);
    read_q(out);
    read_scales(out);
    read_zeros(out);
    if (linear_.quant.group_index) read_groups(out);
    if (packed()) check_shape();
    return out;
  }

 private:
  bool packed() const { return linear_.quant.method == QuantMethod::kPacked; }
  bool awq() const { return linear_.quant.method == QuantMethod::kAwq; }
  const Tensor& tensor(const char* suffix) const {
    return checkpoint_.find(linear_.name + suffix)->tensor;
  }
  [[noreturn]] void fail(const Tensor& tensor, const std::string& problem) const {
    const Checkpoint::Entry& entry = *checkpoint_.find(tensor.name);
    fail_model(checkpoint_.file_name(entry), cat("tensor ", quote(tensor.name), " ", problem));
  }

  void read_q(Int4Weight& out) const {
    const int64_t bytes = linear_.in / 2;
    out.q.resize(static_cast<size_t>(linear_.out * bytes));
    if (packed()) {  // the order is the same
      std::memcpy(out.q.data(), tensor(".weight_packed").data.data(), out.q.size());
      return;
    }
    const auto unpack = awq() ? awq_numbers : gptq_numbers;
    unpack(tensor(".qweight").data.data(), linear_.out, linear_.in, out.q.data());
  }

  void read_scales(Int4Weight& out) const {
    const Tensor& from = tensor(packed() ? ".weight_scale" : ".scales");
    std::vector<float> values(static_cast<size_t>(linear_.out * groups_));
    to_float(from.data.data(), *from.type->weight, linear_.out * groups_, values.data());
    for (const float scale : values) {
      if (!std::isfinite(scale)) fail(from, "has a scale that is not finite");
    }
    if (packed()) {
      out.scales = std::move(values);
      return;
    }
    out.scales.resize(values.size());
    for (int64_t g = 0; g < groups_; ++g) {
      for (int64_t n = 0; n < linear_.out; ++n) {
        out.scales[static_cast<size_t>(n * groups_ + g)] =
            values[static_cast<size_t>(g * linear_.out + n)];
      }
    }
  }

  void read_zeros(Int4Weight& out) const {
    // compressed-tensors: weights and zeros are signed, both stored with 8 added.
    out.zeros.assign(static_cast<size_t>(linear_.out * groups_), 8);
    if (packed() && linear_.quant.symmetric) return;
    const Tensor& from = tensor(packed() ? ".weight_zero_point" : ".qzeros");
    const Nibbles zeros(from, packed(), awq());
    for (int64_t n = 0; n < linear_.out; ++n) {
      for (int64_t g = 0; g < groups_; ++g) {
        int zero = packed() ? zeros.at(n, g) : zeros.at(g, n);
        if (linear_.quant.zero_less_one && ++zero > 15) {
          fail(from, "has a zero point of 16: must be from 1 to 15 in this format");
        }
        out.zeros[static_cast<size_t>(n * groups_ + g)] = static_cast<uint8_t>(zero);
      }
    }
  }

  void read_groups(Int4Weight& out) const {
    const Tensor& from = tensor(".g_idx");
    out.group_of.resize(static_cast<size_t>(linear_.in));
    std::memcpy(out.group_of.data(), from.data.data(), from.data.size());
    bool runs = true;
    for (int64_t k = 0; k < linear_.in; ++k) {
      const int32_t group = out.group_of[static_cast<size_t>(k)];
      if (group < 0 || group >= groups_) {
        fail(from, cat("has group ", group, ": must be from 0 to ", groups_ - 1));
      }
      runs = runs && group == k / out.group_size;
    }
    if (runs) out.group_of.clear();
  }

  void check_shape() const {
    const Tensor& from = tensor(".weight_shape");
    const auto size = static_cast<size_t>(from.type->bits) / 8;
    std::array<int64_t, 2> shape = {0, 0};
    for (size_t i = 0; i < 2; ++i) std::memcpy(&shape[i], from.data.data() + i * size, size);
    if (shape[0] != linear_.out || shape[1] != linear_.in) {
      fail(from, cat("says ", shape_text({shape[0], shape[1]}), ", config.json needs ",
                     shape_text({linear_.out, linear_.in})));
    }
  }

  const Checkpoint& checkpoint_;
  const LinearName& linear_;
  int64_t groups_;
};

}  // namespace

void mark_quantized(const Checkpoint& checkpoint, const model::ModelSpec& spec, ModelNames& names) {
  const model::QuantSpec& quant = spec.quant;
  if (quant.method == QuantMethod::kNone) return;
  for (LayerNames& layer : names.layers) {
    for (LinearName& part : layer.qkv) mark(checkpoint, quant, part);
    for (LinearName* part : {&layer.o, &layer.gate, &layer.up, &layer.down}) {
      mark(checkpoint, quant, *part);
    }
  }
  if (!spec.tied_embeddings) mark(checkpoint, quant, names.head);
}

std::vector<ExpectedTensor> int4_tensors(const LinearName& linear) {
  const int64_t in = linear.in;
  const int64_t out = linear.out;
  const int64_t groups = groups_of(linear);
  const std::string& name = linear.name;
  if (linear.quant.method == QuantMethod::kPacked) {
    std::vector<ExpectedTensor> tensors = {
        {name + ".weight_packed", {out, in / kPack}, Kind::kInt32},
        {name + ".weight_scale", {out, groups}},
        {name + ".weight_shape", {2}, Kind::kInteger}};
    if (!linear.quant.symmetric) {
      tensors.push_back({name + ".weight_zero_point", {out / kPack, groups}, Kind::kInt32});
    }
    return tensors;
  }
  const bool awq = linear.quant.method == QuantMethod::kAwq;
  const std::vector<int64_t> shape =
      awq ? std::vector{in, out / kPack} : std::vector{in / kPack, out};
  std::vector<ExpectedTensor> tensors = {{name + ".qweight", shape, Kind::kInt32},
                                         {name + ".qzeros", {groups, out / kPack}, Kind::kInt32},
                                         {name + ".scales", {groups, out}}};
  if (linear.quant.group_index) tensors.push_back({name + ".g_idx", {in}, Kind::kInt32});
  return tensors;
}

Int4Weight read_int4(const Checkpoint& checkpoint, const LinearName& linear) {
  return Reader(checkpoint, linear).read();
}

}  // namespace treadle::loader
