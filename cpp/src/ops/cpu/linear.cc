// Linear layers: weights packed into panels once, and a layer cut into tasks for the threads.
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include <treadle/error.h>

#include "ops/cpu/backend.h"

namespace treadle::ops::cpu {
namespace {

int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

int64_t panels_of(int64_t columns) { return divide_up(columns, kPanel); }

/// The rows of a weight, in the order of its panels' columns; null is padding.
std::vector<const char*> rows_of(const WeightPiece* pieces, int32_t count, int64_t in_features) {
  std::vector<const char*> rows;
  for (int32_t i = 0; i < count; ++i) {
    const char* data = static_cast<const char*>(pieces[i].data);
    const bool int4 = pieces[i].int4 != nullptr;
    const size_t row_bytes =
        int4 ? size_t(in_features) / 2 : size_t(in_features) * dtype_size(pieces[i].dtype);
    for (int64_t r = 0; r < pieces[i].rows; ++r) rows.push_back(data + size_t(r) * row_bytes);
  }
  return rows;
}

/// Source row of every panel column. With silu_mul, panels of gate and up alternate.
std::vector<int64_t> column_order(int64_t out_features, bool silu_mul) {
  std::vector<int64_t> order;
  if (!silu_mul) {
    for (int64_t c = 0; c < panels_of(out_features) * kPanel; ++c) {
      order.push_back(c < out_features ? c : -1);
    }
    return order;
  }
  const int64_t half = out_features / 2;
  for (int64_t panel = 0; panel < panels_of(half); ++panel) {
    for (const int64_t first : {int64_t{0}, half}) {
      for (int64_t c = panel * kPanel; c < (panel + 1) * kPanel; ++c) {
        order.push_back(c < half ? first + c : -1);
      }
    }
  }
  return order;
}

/// panel[k][c] = rows[c][k]
template <typename T>
void pack_panel(const std::vector<const char*>& rows, const int64_t* columns, int64_t in_features,
                T* panel) {
  constexpr int64_t kLine = 64;
  constexpr int64_t kStrip = 64;  // the part of the panel being written stays in the first cache
  for (int64_t k = 0; k < in_features; k += kStrip) {
    const int64_t end = std::min(k + kStrip, in_features);
    for (int c = 0; c < kPanel; ++c) {
      if (columns[c] < 0) continue;  // allocated zeroed
      const T* row = reinterpret_cast<const T*>(rows[size_t(columns[c])]);
      // The next strip, which may begin within a line: so many rows at a time are more streams than
      // the hardware follows.
      const int64_t next = std::min(end + kStrip, in_features);
      for (int64_t i = end; i < next; i += kLine / sizeof(T)) __builtin_prefetch(row + i);
      if (next > end) __builtin_prefetch(row + next - 1);
      for (int64_t i = k; i < end; ++i) std::memcpy(&panel[i * kPanel + c], row + i, sizeof(T));
    }
  }
}

/// A row's scales and zeros.
struct GroupRow {
  const float* scales;
  const uint8_t* zeros;
};

std::vector<GroupRow> group_rows_of(const WeightPiece* pieces, int32_t count, int64_t groups) {
  std::vector<GroupRow> rows;
  for (int32_t i = 0; i < count; ++i) {
    const Int4Groups& from = *pieces[i].int4;
    for (int64_t r = 0; r < pieces[i].rows; ++r) {
      rows.push_back({from.scales + r * groups, from.zeros + r * groups});
    }
  }
  return rows;
}

/// See int4_panel_bytes.
void pack_int4_panel(const std::vector<const char*>& rows, const std::vector<GroupRow>& groups_of,
                     const int64_t* columns, int64_t in_features, int64_t groups, char* panel) {
  constexpr int kHalf = kPanel / 2;
  constexpr int64_t kStripBytes = 64;  // of a row; the strip of the panel fits the first cache
  const int64_t row_bytes = in_features / 2;
  const std::vector<uint8_t> padding(size_t(row_bytes), 0);
  const auto row_of = [&](int c) {
    return columns[c] < 0 ? padding.data()
                          : reinterpret_cast<const uint8_t*>(rows[size_t(columns[c])]);
  };
  for (int64_t begin = 0; begin < row_bytes; begin += kStripBytes) {
    const int64_t end = std::min(begin + kStripBytes, row_bytes);
    const int64_t next = std::min(end, row_bytes - 1);
    for (int c = 0; c < kHalf; ++c) {
      const uint8_t* low = row_of(c);
      const uint8_t* high = row_of(c + kHalf);
      __builtin_prefetch(low + next);
      __builtin_prefetch(high + next);
      auto* to = reinterpret_cast<uint8_t*>(panel) + c;
      for (int64_t i = begin; i < end; ++i) {
        to[2 * i * kHalf] = static_cast<uint8_t>((low[i] & 15) | high[i] << 4);
        to[(2 * i + 1) * kHalf] = static_cast<uint8_t>(low[i] >> 4 | (high[i] & 240));
      }
    }
  }
  auto* scales = reinterpret_cast<float*>(panel + in_features * kHalf);
  float* zeros = scales + groups * kPanel;
  for (int c = 0; c < kPanel; ++c) {
    if (columns[c] < 0) continue;  // allocated zeroed
    const GroupRow& from = groups_of[size_t(columns[c])];
    for (int64_t g = 0; g < groups; ++g) {
      scales[g * kPanel + c] = from.scales[g];
      zeros[g * kPanel + c] = static_cast<float>(from.zeros[g]);
    }
  }
}

/// Bytes of one packed panel of the weight.
size_t panel_bytes_of(const LinearWeight& w) {
  if (w.format == WeightFormat::kInt4Group) return int4_panel_bytes(w.in_features, w.group_size);
  return size_t(w.in_features) * kPanel * dtype_size(w.dtype);
}

/// Checks that the pieces make one weight, and describes it.
LinearWeight describe(const WeightPiece* pieces, int32_t count, int64_t in_features,
                      bool silu_mul) {
  LinearWeight w;
  w.in_features = in_features;
  w.dtype = count > 0 ? pieces[0].dtype : DType::kF32;
  const Int4Groups* int4 = count > 0 ? pieces[0].int4 : nullptr;
  if (int4 != nullptr) {
    w.format = WeightFormat::kInt4Group;
    w.group_size = int4->group_size;
    if (in_features % 2 != 0 || w.group_size <= 0 || in_features % w.group_size != 0) {
      throw Error(ErrorCode::kInternal, "int4 groups of " + std::to_string(w.group_size) + " of " +
                                            std::to_string(in_features) + " inputs");
    }
  }
  for (int32_t i = 0; i < count; ++i) {
    const Int4Groups* other = pieces[i].int4;
    if (pieces[i].dtype != w.dtype || (other == nullptr) != (int4 == nullptr)) {
      throw Error(ErrorCode::kInternal, std::string("the pieces of a weight are ") +
                                            dtype_name(w.dtype) + " and " +
                                            dtype_name(pieces[i].dtype));
    }
    if (int4 != nullptr &&
        (other->group_size != int4->group_size || other->group_of != int4->group_of)) {
      throw Error(ErrorCode::kInternal, "the pieces of an int4 weight have different groups");
    }
    w.out_features += pieces[i].rows;
  }
  const bool dense = w.dtype == DType::kF32 || w.dtype == DType::kF16 || w.dtype == DType::kBF16;
  if (int4 == nullptr ? !dense : w.dtype != DType::kU8) {
    throw Error(ErrorCode::kUnsupported,
                std::string("weights of type ") + dtype_name(w.dtype) + " are not supported");
  }
  if (silu_mul && w.out_features % 2 != 0) {
    throw Error(ErrorCode::kInternal, "gate and up have " + std::to_string(w.out_features) +
                                          " rows together, an odd number");
  }
  return w;
}

// Below this much work a layer is not worth handing out.
constexpr int64_t kInlineWork = 32 << 10;

// Rows of one task: enough to reuse a panel often, few enough to stay in the second cache.
constexpr int64_t kTaskRows = 120;
constexpr int64_t kLeastTaskRows = 24;
constexpr int64_t kRowMultiple = 12;  // whole register tiles of every instruction set

/// The rows to multiply: x, or where it is to be normalised a copy that the next call overwrites.
const float* input_of(Backend& b, const LinearParams& p) {
  const auto* x = static_cast<const float*>(p.x);
  if (p.norm == nullptr) return x;
  const int64_t width = p.weight->in_features;
  const auto floats = static_cast<size_t>(p.num_tokens * width);
  if (b.normed.size() < floats) b.normed.resize(floats);
  rms_norm(b,
           {.x = x,
            .weight = p.norm,
            .eps = p.norm_eps,
            .out = b.normed.data(),
            .width = static_cast<int32_t>(width)},
           p.num_tokens);
  return b.normed.data();
}

}  // namespace

LinearWeight make_linear(Backend& b, const WeightPiece* pieces, int32_t count, int64_t in_features,
                         const float* bias, bool silu_mul) {
  LinearWeight w = describe(pieces, count, in_features, silu_mul);
  const std::vector<const char*> rows = rows_of(pieces, count, in_features);
  const std::vector<int64_t> order = column_order(w.out_features, silu_mul);
  const size_t panel_bytes = panel_bytes_of(w);
  const int64_t panels = static_cast<int64_t>(order.size()) / kPanel;
  const bool int4 = w.format == WeightFormat::kInt4Group;
  const int64_t groups = int4 ? in_features / w.group_size : 0;
  const std::vector<GroupRow> group_rows =
      int4 ? group_rows_of(pieces, count, groups) : std::vector<GroupRow>{};
  const auto allocate = [&](size_t bytes) {
    w.bytes += static_cast<int64_t>(bytes);
    return b.memory.allocate(bytes);
  };
  try {
    w.data = allocate(size_t(panels) * panel_bytes);
    if (bias != nullptr) {
      auto* ordered = static_cast<float*>(allocate(order.size() * sizeof(float)));
      w.bias = ordered;
      for (size_t c = 0; c < order.size(); ++c) {
        if (order[c] >= 0) ordered[c] = bias[order[c]];
      }
    }
    if (int4 && pieces[0].int4->group_of != nullptr) {
      const size_t bytes = size_t(in_features) * sizeof(int32_t);
      w.group_of = static_cast<int32_t*>(allocate(bytes));
      std::memcpy(w.group_of, pieces[0].int4->group_of, bytes);
    }
  } catch (...) {
    release_linear(b, &w);
    throw;
  }
  b.pool.parallel_for(panels, [&](int64_t panel, int /*thread*/) {
    char* to = static_cast<char*>(w.data) + size_t(panel) * panel_bytes;
    const int64_t* columns = order.data() + panel * kPanel;
    if (int4) {
      pack_int4_panel(rows, group_rows, columns, in_features, groups, to);
    } else if (dtype_size(w.dtype) == 2) {
      pack_panel(rows, columns, in_features, reinterpret_cast<uint16_t*>(to));
    } else {
      pack_panel(rows, columns, in_features, reinterpret_cast<uint32_t*>(to));
    }
  });
  return w;
}

void release_linear(Backend& b, LinearWeight* weight) {
  b.memory.release(weight->data);
  b.memory.release(const_cast<float*>(weight->bias));
  b.memory.release(weight->group_of);
  *weight = LinearWeight{};
}

void linear(Backend& b, const LinearParams& p) {
  const LinearWeight& w = *p.weight;
  if (p.num_tokens <= 0 || w.out_features <= 0) return;
  b.reserve_scratch(linear_scratch_floats());
  const int64_t columns = p.silu_mul ? w.out_features / 2 : w.out_features;
  const int64_t units = panels_of(columns);  // panels, or pairs of gate and up
  const int threads = b.pool.num_threads();

  const int64_t unit_panels = p.silu_mul ? 2 : 1;
  // One row takes panels two by two, which gives it more independent sums.
  const bool pairs = p.num_tokens == 1 && !p.silu_mul && divide_up(units, 2) >= threads;
  const int64_t units_per_task = pairs ? 2 : 1;
  const int64_t column_tasks = divide_up(units, units_per_task);
  int64_t row_tasks = divide_up(p.num_tokens, kTaskRows);
  if (column_tasks * row_tasks < int64_t{4} * threads && p.num_tokens > 2 * kLeastTaskRows) {
    row_tasks = std::clamp(divide_up(int64_t{4} * threads, column_tasks), row_tasks,
                           divide_up(p.num_tokens, kLeastTaskRows));
  }
  int64_t height = p.num_tokens;
  if (row_tasks > 1) {
    height = divide_up(divide_up(p.num_tokens, row_tasks), kRowMultiple) * kRowMultiple;
    row_tasks = divide_up(p.num_tokens, height);
  }

  const float* x = input_of(b, p);
  float* y = static_cast<float*>(p.y);
  const size_t panel_bytes = panel_bytes_of(w);
  auto run = [&](int64_t index, int thread) {
    const int64_t unit = index / row_tasks * units_per_task;
    const int64_t row = index % row_tasks * height;
    const int64_t task_units = std::min(units_per_task, units - unit);
    LinearTask t;
    t.x = x + row * w.in_features;
    t.in_features = w.in_features;
    t.rows = static_cast<int32_t>(std::min(height, p.num_tokens - row));
    t.panels = static_cast<const char*>(w.data) + size_t(unit * unit_panels) * panel_bytes;
    t.num_panels = static_cast<int32_t>(task_units * unit_panels);
    t.dtype = w.dtype;
    t.int4 = {.group_size = w.group_size, .group_of = w.group_of};
    t.silu_mul = p.silu_mul;
    t.bias = w.bias == nullptr ? nullptr : w.bias + unit * unit_panels * kPanel;
    t.y = y + row * columns + unit * kPanel;
    t.ldy = columns;
    t.add = p.add;
    t.columns =
        static_cast<int32_t>(std::min<int64_t>(task_units * kPanel, columns - unit * kPanel));
    t.scratch = b.scratch(thread);
    b.kernels->linear(t);
  };
  const int64_t tasks = column_tasks * row_tasks;
  if (w.in_features * w.out_features * p.num_tokens <= kInlineWork) {
    for (int64_t i = 0; i < tasks; ++i) run(i, 0);
  } else {
    b.pool.parallel_for(tasks, run);
  }
}

}  // namespace treadle::ops::cpu
