// Checks and defaults of EngineConfig.
#include <cmath>

#include "engine/options.h"
#include "engine_testing.h"

namespace treadle {
namespace {

using testing::expect_error;

template <typename Change>
void refused(ErrorCode code, const std::vector<std::string>& parts, Change change) {
  EngineConfig config;
  change(config);
  expect_error(code, parts, [&] { check_config(config); });
  expect_error(code, parts, [&] { Engine::load(testing::tiny_model(), config); });
}

TEST(EngineOptions, RefusesWhatIsOutOfRangeByNameAndNumber) {
  const auto invalid = ErrorCode::kInvalidArgument;
  check_config({});
  refused(invalid, {"device", "tpu"}, [](EngineConfig& c) { c.device = "tpu"; });
  refused(invalid, {"dtype", "int4"}, [](EngineConfig& c) { c.dtype = "int4"; });
  refused(invalid, {"session_len = -1"}, [](EngineConfig& c) { c.session_len = -1; });
  refused(invalid, {"max_batch_size = -1"}, [](EngineConfig& c) { c.max_batch_size = -1; });
  refused(invalid, {"max_batch_size = 5000", "4096"},
          [](EngineConfig& c) { c.max_batch_size = 5000; });
  refused(invalid, {"max_prefill_token_num = -3"},
          [](EngineConfig& c) { c.max_prefill_token_num = -3; });
  refused(invalid, {"num_threads = -2"}, [](EngineConfig& c) { c.num_threads = -2; });
  refused(invalid, {"max_queue_size = 0"}, [](EngineConfig& c) { c.max_queue_size = 0; });
  refused(invalid, {"max_sessions = 0"}, [](EngineConfig& c) { c.max_sessions = 0; });
  refused(invalid, {"session_ttl_s = nan"},
          [](EngineConfig& c) { c.session_ttl_s = std::nan(""); });
  refused(invalid, {"session_ttl_s = -1"}, [](EngineConfig& c) { c.session_ttl_s = -1.0; });
  refused(invalid, {"cache_max_entry_count = -0.5"},
          [](EngineConfig& c) { c.cache_max_entry_count = -0.5; });
  refused(invalid, {"cache_max_entry_count = 2.5", "whole number"},
          [](EngineConfig& c) { c.cache_max_entry_count = 2.5; });
  refused(invalid, {"cache_max_entry_count = nan"},
          [](EngineConfig& c) { c.cache_max_entry_count = std::nan(""); });
  refused(invalid, {"tp = 0"}, [](EngineConfig& c) { c.tp = 0; });
  refused(ErrorCode::kUnsupported, {"tp = 2"}, [](EngineConfig& c) { c.tp = 2; });
  refused(ErrorCode::kUnsupported, {"quant_policy = 4", "8"},
          [](EngineConfig& c) { c.quant_policy = 4; });
  const auto load_with = [](auto change) {
    EngineConfig config;
    change(config);
    return [config] { Engine::load(testing::tiny_model(), config); };
  };
  expect_error(invalid, {"rope_scaling_factor"},
               load_with([](EngineConfig& c) { c.rope_scaling_factor = -1.0; }));
  expect_error(invalid, {"use_logn_attn"}, load_with([](EngineConfig& c) { c.use_logn_attn = 7; }));
}

TEST(EngineOptions, SizesThePool) {
  const ops::KvPool shape{
      .dtype = ops::DType::kF16, .num_layers = 2, .kv_heads = 2, .head_dim = 16};
  const size_t block = shape.block_bytes();
  ops::Defaults to_need{.pool_fraction = 0.5, .pool_bytes = 12 * block, .pool_to_need = true};
  EngineConfig config{.session_len = 100, .max_batch_size = 4};
  // Automatic: what the batch can use, but not more than half of the memory, nor than the limit.
  EXPECT_EQ(pool_blocks(config, to_need, shape, 1000 * block), 8);
  EXPECT_EQ(pool_blocks(config, to_need, shape, 10 * block), 5);
  config.max_batch_size = 40;
  EXPECT_EQ(pool_blocks(config, to_need, shape, 1000 * block), 12);
  const ops::Defaults all{.pool_fraction = 0.8};
  EXPECT_EQ(pool_blocks(config, all, shape, 1000 * block), 800);
  // A small model on a big device: more blocks than anybody needs would cost the host memory.
  EXPECT_EQ(pool_blocks(config, all, shape, (size_t{1} << 24) * block), 1 << 18);
  config.cache_max_entry_count = 0.25;
  EXPECT_EQ(pool_blocks(config, all, shape, 1000 * block), 250);
  config.cache_max_entry_count = 1.0;
  EXPECT_EQ(pool_blocks(config, all, shape, 1000 * block + 5), 1000);
  config.cache_max_entry_count = 77;
  EXPECT_EQ(pool_blocks(config, all, shape, 1000 * block), 77);
  expect_error(ErrorCode::kOutOfMemory, {"77 blocks", "cache_max_entry_count"},
               [&] { pool_blocks(config, all, shape, 76 * block); });
  config.cache_max_entry_count = 0.0;
  expect_error(ErrorCode::kOutOfMemory, {"1 blocks"},
               [&] { pool_blocks(config, to_need, shape, block); });
}

TEST(EngineOptions, Int8KvHoldsTwiceTheTokens) {
  const ops::KvPool half{
      .dtype = ops::DType::kF16, .num_layers = 2, .kv_heads = 2, .head_dim = 128};
  ops::KvPool int8 = half;
  int8.dtype = ops::DType::kI8;
  // A float pair for each 128 bytes.
  EXPECT_EQ(int8.block_bytes() * 256, half.block_bytes() * 136);
  const EngineConfig config{.cache_max_entry_count = 1.0};
  EXPECT_EQ(pool_blocks(config, {}, int8, 1000 * half.block_bytes()), 1882);
  // With static ranges one for each head and layer, 64 times, beside all blocks.
  int8.static_scales = true;
  EXPECT_EQ(int8.block_bytes() * 2, half.block_bytes());
  EXPECT_EQ(int8.shared_bytes(), 2 * 2 * 2 * 64 * sizeof(ops::KvScale));
  EXPECT_EQ(pool_blocks(config, {}, int8, 1000 * half.block_bytes()), 2000);
}

TEST(EngineOptions, LeavesOpenSizesToTheBackend) {
  const model::ModelSpec spec{.max_position_embeddings = 777};
  const ops::Defaults defaults{.max_batch_size = 9, .prefill_tokens = 33};
  const EngineConfig open = with_defaults({}, spec, defaults);
  EXPECT_EQ(open.max_batch_size, 9);
  EXPECT_EQ(open.max_prefill_token_num, 33);
  EXPECT_EQ(open.session_len, 777);
  const EngineConfig given = with_defaults(
      {.session_len = 5, .max_batch_size = 6, .max_prefill_token_num = 7}, spec, defaults);
  EXPECT_EQ(given.max_batch_size, 6);
  EXPECT_EQ(given.max_prefill_token_num, 7);
  EXPECT_EQ(given.session_len, 5);
}

TEST(EngineOptions, TellsWhatCameOfThem) {
  const auto engine = Engine::load(testing::tiny_model(), {.device = "cpu",
                                                           .session_len = 500,
                                                           .max_batch_size = 3,
                                                           .cache_max_entry_count = 20,
                                                           .num_threads = 2});
  const ModelInfo& info = engine->info();
  EXPECT_EQ(info.family, "llama");
  EXPECT_EQ(info.architecture, "LlamaForCausalLM");
  EXPECT_EQ(info.vocab_size, 320);
  EXPECT_EQ(info.session_len, 500);
  EXPECT_EQ(info.max_batch_size, 3);
  EXPECT_EQ(info.max_prefill_token_num, 512);
  EXPECT_EQ(info.device, "cpu");
  EXPECT_EQ(info.dtype, "float32");
  EXPECT_EQ(info.kv_blocks, 20);
  EXPECT_EQ(info.kv_block_tokens, 64);
  EXPECT_EQ(info.kv_bytes_per_token, 2 * 2 * 2 * 16 * 4);
  EXPECT_EQ(info.kv_pool_bytes, info.kv_bytes_per_token * 64 * 20);
  EXPECT_EQ(info.num_threads, 2);
  EXPECT_EQ(info.eos_token_ids, std::vector<int32_t>{2});
  EXPECT_GT(info.weight_bytes, 0);
  EXPECT_GT(info.workspace_bytes, 0);
  EXPECT_EQ(engine->stats().blocks_free, 20);
  EXPECT_TRUE(engine->health().ok);
}

}  // namespace
}  // namespace treadle
