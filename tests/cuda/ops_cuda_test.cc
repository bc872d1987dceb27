// Operations on single tokens and copies against the CPU table, over types and shapes: outputs
// poisoned before the run, two runs equal bit for bit.
#include "ops_cuda.h"

#include <algorithm>
#include <numeric>

#include "tables.h"

namespace treadle::cuda::testing {
namespace {

using ops::DType;

void test_embed(const Tables& t) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const int hidden : {64, 256, 4096}) {
      const int vocab = 500;
      const int tokens = 37;
      const std::vector<float> table = random_values(dtype, size_t(vocab) * hidden, 1);
      std::vector<int32_t> ids(tokens);
      for (int i = 0; i < tokens; ++i) ids[i] = (i * 131) % vocab;
      const std::vector<char> bytes = encode(dtype, table);
      Memory device_table(t.gpu, bytes.data(), bytes.size());
      Memory device_ids(t.gpu, ids.data(), ids.size() * 4);
      Memory out(t.gpu, size_t(tokens) * hidden * 2);
      const std::string name = label(t, "embed") + " from " + ops::dtype_name(dtype);
      const ops::EmbedParams p{.ids = device_ids.as<int32_t>(),
                               .table = device_table.as<void>(),
                               .table_dtype = dtype,
                               .out = out.as<void>(),
                               .num_tokens = tokens,
                               .hidden = hidden};
      const auto got = run_twice(t, name, out, [&] { t.gpu.embed(t.gpu.self, p, {}); });
      std::vector<float> want;
      for (const int32_t id : ids) {
        want.insert(want.end(), table.begin() + id * hidden, table.begin() + (id + 1) * hidden);
      }
      t.report.check(got == encode(t.act, want), name);

      Memory gathered(t.gpu, size_t(tokens) * hidden * 2);
      const ops::GatherParams g{.in = out.as<void>(),
                                .rows = device_ids.as<int32_t>() + 1,
                                .out = gathered.as<void>(),
                                .num_rows = 0,
                                .hidden = hidden};
      t.gpu.gather(t.gpu.self, g, {});  // no rows: nothing to do
    }
  }
}

void test_gather(const Tables& t) {
  const int hidden = 1024;
  const int tokens = 40;
  const std::vector<float> in = random_values(t.act, size_t(tokens) * hidden, 2);
  const std::vector<char> bytes = encode(t.act, in);
  Memory device_in(t.gpu, bytes.data(), bytes.size());
  const std::vector<int32_t> rows{39, 0, 7, 7, 12};
  Memory device_rows(t.gpu, rows.data(), rows.size() * 4);
  Memory out(t.gpu, rows.size() * hidden * 2);
  const ops::GatherParams p{.in = device_in.as<void>(),
                            .rows = device_rows.as<int32_t>(),
                            .out = out.as<void>(),
                            .num_rows = int32_t(rows.size()),
                            .hidden = hidden};
  const auto got = run_twice(t, label(t, "gather"), out, [&] { t.gpu.gather(t.gpu.self, p, {}); });
  std::vector<char> want;
  for (const int32_t r : rows) {
    want.insert(want.end(), bytes.begin() + r * hidden * 2, bytes.begin() + (r + 1) * hidden * 2);
  }
  t.report.check(got == want, label(t, "gather"));
}

void test_rope(const Tables& t) {
  for (const int rotary : {16, 64, 128}) {
    for (const double base : {0.0, 10000.0}) {
      const int tokens = 70;
      std::vector<int32_t> positions(tokens);
      std::vector<int32_t> lengths(tokens);
      for (int i = 0; i < tokens; ++i) {
        positions[i] = i * i * 3;
        lengths[i] = i % 2 == 0 ? 4096 : 2048 + positions[i];
      }
      std::vector<float> inv_freq(rotary / 2);
      for (int i = 0; i < rotary / 2; ++i) {
        inv_freq[i] = float(1.0 / std::pow(10000.0, 2.0 * i / rotary));
      }
      ops::RopeParams p{.num_tokens = tokens,
                        .rotary_dim = rotary,
                        .attention_factor = 1.2F,
                        .dynamic_base = base,
                        .dynamic_factor = 2.0,
                        .original_len = 4096};
      std::vector<float> want(size_t(tokens) * rotary);
      p.positions = positions.data();
      p.rope_len = lengths.data();
      p.inv_freq = inv_freq.data();
      p.cos_sin = want.data();
      t.cpu.rope(t.cpu.self, p, {});
      Memory device_positions(t.gpu, positions.data(), positions.size() * 4);
      Memory device_lengths(t.gpu, lengths.data(), lengths.size() * 4);
      Memory device_freq(t.gpu, inv_freq.data(), inv_freq.size() * 4);
      Memory out(t.gpu, want.size() * 4);
      p.positions = device_positions.as<int32_t>();
      p.rope_len = device_lengths.as<int32_t>();
      p.inv_freq = device_freq.as<float>();
      p.cos_sin = out.as<float>();
      const std::string name = label(t, base > 0 ? "dynamic rope" : "rope");
      const auto got = run_twice(t, name, out, [&] { t.gpu.rope(t.gpu.self, p, {}); });
      // A last bit of a dynamic frequency turns into position * 6e-8 of the angle.
      expect_near(t, name, decode(DType::kF32, got), want, 0.0, base > 0 ? 3e-3 : 1e-6);
    }
  }
}

struct QkvShape {
  int heads, kv_heads, head_dim, rotary;
  bool norm;
  int logn;
};

void test_qkv(const Tables& t) {
  const QkvShape shapes[] = {{4, 2, 64, 64, false, 0},    {32, 8, 128, 128, false, 0},
                             {32, 32, 128, 128, true, 0}, {8, 8, 80, 80, false, 100},
                             {6, 2, 96, 96, true, 50},    {4, 1, 256, 256, true, 0},
                             {5, 1, 64, 32, false, 0},    {3, 3, 128, 64, true, 0}};
  for (size_t run = 0; run < 2 * std::size(shapes); ++run) {
    const QkvShape& s = shapes[run / 2];
    const bool few = run % 2 != 0;
    const int dim = s.head_dim;
    const int layers = 3;
    const int blocks = 12;
    const int stride = 4;
    ops::KvPool pool{.dtype = t.act,
                     .num_blocks = blocks,
                     .num_layers = layers,
                     .kv_heads = s.kv_heads,
                     .head_dim = dim};
    // Two sequences of one token, two chunks; blocks shuffled.
    const std::vector<int32_t> context{1, 130, 200, 64};
    const std::vector<int32_t> query{1, 1, few ? 10 : 140, few ? 30 : 64};
    std::vector<int32_t> tables(stride * 4);
    std::vector<int32_t> ids{7, 2, 11, 0, 5, 9, 1, 8, 3, 10, 4, 6};
    for (int i = 0, next = 0; i < 4; ++i) {
      for (int b = 0; b < stride; ++b) tables[i * stride + b] = b < 3 ? ids[next++] : 0;
    }
    std::vector<int32_t> begin{0};
    std::vector<int32_t> sequence;
    std::vector<int32_t> positions;
    for (int i = 0; i < 4; ++i) {
      begin.push_back(begin.back() + query[i]);
      for (int q = 0; q < query[i]; ++q) {
        sequence.push_back(i);
        positions.push_back(context[i] - query[i] + q);
      }
    }
    const int tokens = begin.back();
    const int features = (s.heads + 2 * s.kv_heads) * dim;
    const std::vector<float> qkv = random_values(t.act, size_t(tokens) * features, 11);
    const std::vector<float> q_norm = random_values(DType::kF32, dim, 12);
    const std::vector<float> k_norm = random_values(DType::kF32, dim, 13);
    std::vector<float> cos_sin(size_t(tokens) * s.rotary);
    for (int i = 0; i < tokens; ++i) {
      for (int j = 0; j < s.rotary / 2; ++j) {
        const double angle = positions[i] * std::pow(10000.0, -2.0 * j / s.rotary);
        cos_sin[(size_t(i) * s.rotary / 2 + j) * 2] = float(std::cos(angle));
        cos_sin[(size_t(i) * s.rotary / 2 + j) * 2 + 1] = float(std::sin(angle));
      }
    }
    ops::QkvParams p{.rotary_dim = s.rotary,
                     .norm_eps = 1e-6F,
                     .logn_len = s.logn,
                     .heads = s.heads,
                     .kv_heads = s.kv_heads,
                     .head_dim = dim,
                     .layer = 1};
    p.batch = {.num_tokens = tokens,
               .num_sequences = 4,
               .num_decode = 2,
               .max_query_len = 140,
               .max_context_len = 200,
               .block_table_stride = stride};
    p.kv = pool;
    std::vector<char> cpu_pool = poison(pool.block_bytes() * blocks);
    std::vector<float> want_q(size_t(tokens) * s.heads * dim);
    ops::QkvParams c = p;
    c.qkv = qkv.data();
    c.q_out = want_q.data();
    c.q_norm = s.norm ? q_norm.data() : nullptr;
    c.k_norm = s.norm ? k_norm.data() : nullptr;
    c.cos_sin = cos_sin.data();
    c.kv.base = cpu_pool.data();
    c.batch.query_begin = begin.data();
    c.batch.context_len = context.data();
    c.batch.block_tables = tables.data();
    c.batch.token_sequence = sequence.data();
    c.batch.positions = positions.data();
    t.cpu.qkv(t.cpu.self, c, {});

    const std::vector<char> qkv_bytes = encode(t.act, qkv);
    Memory d_qkv(t.gpu, qkv_bytes.data(), qkv_bytes.size());
    Memory d_qn(t.gpu, q_norm.data(), dim * 4);
    Memory d_kn(t.gpu, k_norm.data(), dim * 4);
    Memory d_cs(t.gpu, cos_sin.data(), cos_sin.size() * 4);
    Memory d_tables(t.gpu, tables.data(), tables.size() * 4);
    Memory d_seq(t.gpu, sequence.data(), sequence.size() * 4);
    Memory d_pos(t.gpu, positions.data(), positions.size() * 4);
    Memory d_q(t.gpu, want_q.size() * 2);
    Memory d_pool(t.gpu, cpu_pool.size());
    ops::QkvParams g = p;
    g.qkv = d_qkv.as<void>();
    g.q_out = d_q.as<void>();
    g.q_norm = s.norm ? d_qn.as<float>() : nullptr;
    g.k_norm = s.norm ? d_kn.as<float>() : nullptr;
    g.cos_sin = d_cs.as<float>();
    g.kv.base = d_pool.as<void>();
    g.batch.block_tables = d_tables.as<int32_t>();
    g.batch.token_sequence = d_seq.as<int32_t>();
    g.batch.positions = d_pos.as<int32_t>();
    const std::string name = label(t, "qkv") + " " + std::to_string(s.heads) + "/" +
                             std::to_string(s.kv_heads) + " dim " + std::to_string(dim) + ", " +
                             std::to_string(tokens) + " tokens";
    const std::vector<char> nans = poison(d_pool.bytes());
    const auto got_q = run_twice(t, name, d_q, [&] {
      d_pool.set(nans.data(), nans.size());
      t.gpu.qkv(t.gpu.self, g, {});
    });
    const double e = epsilon(t.act);
    expect_near(t, name + " q", decode(t.act, got_q), want_q, 2 * e, 1e-5);

    // The CPU keeps K as [head_dim][64]; the GPU [64][head_dim].
    const std::vector<float> cpu_kv = decode(t.act, cpu_pool);
    const std::vector<float> gpu_kv = decode(t.act, d_pool.get());
    size_t wrong = 0;
    size_t written = 0;
    for (int b = 0; b < blocks; ++b) {
      for (int l = 0; l < layers; ++l) {
        for (int part = 0; part < 2 * s.kv_heads; ++part) {
          const size_t base = size_t(b) * pool.block_elems() + size_t(l) * pool.layer_elems() +
                              size_t(part) * pool.head_elems();
          for (int slot = 0; slot < 64; ++slot) {
            for (int d = 0; d < dim; ++d) {
              const float got = gpu_kv[base + size_t(slot) * dim + d];
              const float want = part < s.kv_heads ? cpu_kv[base + size_t(d) * 64 + slot]
                                                   : cpu_kv[base + size_t(slot) * dim + d];
              if (std::isnan(want) != std::isnan(got)) ++wrong;
              if (std::isnan(want)) continue;
              ++written;
              if (!(std::fabs(got - want) <= 2.1 * e * std::fabs(want) + 1e-5)) ++wrong;
            }
          }
        }
      }
    }
    t.report.check(wrong == 0 && written == size_t(tokens) * 2 * s.kv_heads * dim,
                   name + ": " + std::to_string(wrong) + " wrong elements in the pool");
  }
}

void test_copies(const Tables& t) {
  ops::KvPool pool{.dtype = t.act, .num_blocks = 5, .num_layers = 2, .kv_heads = 2, .head_dim = 64};
  const size_t elements = pool.block_elems() * 5;
  const std::vector<char> bytes = encode(t.act, random_values(t.act, elements, 41));
  Memory device(t.gpu, bytes.data(), bytes.size());
  pool.base = device.as<void>();
  t.gpu.copy_block(t.gpu.self, {.kv = pool, .src = 1, .dst = 4}, {});
  t.gpu.copy_block(t.gpu.self, {.kv = pool, .src = 2, .dst = 2}, {});
  std::vector<char> want = bytes;
  std::copy_n(bytes.begin() + long(pool.block_bytes()), pool.block_bytes(),
              want.begin() + long(4 * pool.block_bytes()));
  t.report.check(device.get() == want, "copy_block");
  // Up and down again, above and below the sizes at which the paths change.
  for (const size_t size : {size_t{1}, size_t{4095}, size_t{3} << 20, (size_t{37} << 20) + 5}) {
    std::vector<char> host(size);
    for (size_t i = 0; i < size; ++i) host[i] = char(i * 2654435761U >> 13);
    Memory m(t.gpu, size);
    bool zero = true;
    for (const char c : m.get()) zero &= c == 0;
    t.report.check(zero, "alloc is zeroed");
    m.set(host.data(), size);
    t.report.check(m.get() == host, "upload and download of " + std::to_string(size));
  }
}

}  // namespace
}  // namespace treadle::cuda::testing

int main() {
  namespace test = treadle::cuda::testing;
  return test::run_on_tables("ops_cuda_test", [](const test::Tables& tables) {
    test::test_embed(tables);
    test::test_gather(tables);
    test::test_rope(tables);
    test::test_qkv(tables);
    test::test_copies(tables);
  });
}
