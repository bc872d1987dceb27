#include "treadle/engine.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine/device.h"
#include "engine/factory.h"
#include "engine/loop.h"
#include "engine/memory_ledger.h"
#include "engine/options.h"
#include "engine/prepare.h"
#include "loader/loader.h"
#include "model/decoder.h"
#include "model/model_size.h"
#include "ops/ops.h"
#include "request/output_channel.h"
#include "sampler/validate.h"

namespace treadle {
namespace {

// The backend for as long as the engine lives.
struct Backend {
  explicit Backend(ops::Ops table) : ops(table) {}
  ~Backend() { ops.destroy(ops.self); }
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  ops::Ops ops;
};

model::Weights load_weights(const std::string& path, const model::ModelSpec& spec,
                            const ops::Ops& ops, const EngineConfig& config) {
  const bool half = ops.act_dtype != ops::DType::kF32;
  const ops::DType kept = half ? ops.act_dtype : spec.weight_dtype;
  const MemoryLedger ledger{.weights = model::num_parameters(spec) *
                                       static_cast<int64_t>(ops::dtype_size(kept))};
  return ledger.run(ops, "The weights need a device with more memory, or a smaller model",
                    [&] { return loader::load_weights(path, spec, ops, config.on_load_progress); });
}

struct PoolMemory {
  PoolMemory(const ops::Ops& table, ops::KvPool shape) : ops(table), pool(shape) {
    pool.base = ops.alloc(ops.self, pool.bytes());
  }
  ~PoolMemory() { ops.release(ops.self, pool.base); }
  PoolMemory(const PoolMemory&) = delete;
  PoolMemory& operator=(const PoolMemory&) = delete;

  /// static_scales: [layers][2 (K, V)][kv_heads].
  void put_scales(const std::vector<ops::KvScale>& ranges) {
    std::vector<ops::KvScale> repeated;
    repeated.reserve(pool.num_scales());
    for (const ops::KvScale& range : ranges) {
      repeated.insert(repeated.end(), ops::kBlockTokens, range);
    }
    ops.upload(ops.self, static_cast<char*>(pool.base) + pool.scales_begin(), repeated.data(),
               pool.shared_bytes(), {});
    ops.synchronize(ops.self, {});
  }

  const ops::Ops& ops;
  ops::KvPool pool;
};

uint64_t chosen_seed(uint64_t configured) {
  if (configured != 0) return configured;
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

void check_request(const Request& request, const ModelInfo& info, int32_t max_batch_size) {
  const auto invalid = [](const std::string& what) {
    throw Error(ErrorCode::kInvalidArgument, what);
  };
  if (request.input_ids.empty()) invalid("input_ids is empty: at least one token is needed");
  for (size_t i = 0; i < request.input_ids.size(); ++i) {
    const int32_t id = request.input_ids[i];
    if (id < 0 || id >= info.vocab_size) {
      invalid("input_ids[" + std::to_string(i) + "] = " + std::to_string(id) +
              " must lie between 0 and vocab_size - 1 = " + std::to_string(info.vocab_size - 1));
    }
  }
  if (!std::isfinite(request.timeout_s) || request.timeout_s < 0.0 || request.timeout_s > 3.2e8) {
    invalid("timeout_s = " + std::to_string(request.timeout_s) +
            " must be 0 (none) or a positive number of seconds");
  }
  if (!request.session_id) {
    if (request.step) invalid("step needs a session_id");
    if (request.session_mode == SessionMode::kContinue) {
      invalid("session_mode = kContinue needs a session_id");
    }
  } else if (request.session_mode == SessionMode::kStart && request.step.value_or(0) != 0) {
    invalid("step = " + std::to_string(*request.step) +
            " contradicts session_mode = kStart: a session that begins has no history");
  }
  sampler::validate(request.sampling, info.vocab_size, max_batch_size);
  check_prompt_fits(0, static_cast<int64_t>(request.input_ids.size()), info.session_len);
}

}  // namespace

// Members are destroyed from the last to the first: the thread's owner stops it in ~Engine.
struct Engine::Impl {
  Impl(const std::string& path, const EngineConfig& options, ops::Ops table);

  Backend backend;
  Prepared prepared;
  const model::ModelSpec& spec;
  EngineConfig config;  // nothing is left open in it
  model::Weights weights;
  std::unique_ptr<model::Decoder> decoder;
  std::unique_ptr<PoolMemory> pool;
  ModelInfo info;
  std::shared_ptr<Inbox> inbox;
  std::unique_ptr<SessionTable> sessions;
  std::unique_ptr<Loop> loop;
  std::mutex join_mutex;
  std::thread thread;

 private:
  void make_decoder_and_pool(const std::string& path);
  void fill_info();
};

Engine::Impl::Impl(const std::string& path, const EngineConfig& options, ops::Ops table)
    : backend(table),
      prepared(prepare(path, options)),
      spec(prepared.spec),
      config(with_defaults(prepared.config, spec, backend.ops.defaults)),
      weights(load_weights(path, spec, backend.ops, config)) {
  make_decoder_and_pool(path);
  fill_info();
  inbox = std::make_shared<Inbox>(config.max_queue_size);
  sessions =
      std::make_unique<SessionTable>(config.max_sessions, config.session_ttl_s, info.session_len);
  const bool dynamic = spec.rope.kind == model::RopeKind::kDynamicNtk;
  loop = std::make_unique<Loop>(
      LoopParts{.spec = spec,
                .ops = backend.ops,
                .pool = pool->pool,
                .decoder = *decoder,
                .sessions = *sessions,
                .inbox = *inbox,
                .limits = {.max_batch_size = config.max_batch_size,
                           .max_prefill_tokens = config.max_prefill_token_num,
                           .mixed_prefill_tokens = backend.ops.defaults.mixed_prefill_tokens},
                .roster = {.session_len = info.session_len,
                           .random_seed = chosen_seed(config.random_seed),
                           .share_prefixes = config.enable_prefix_caching,
                           .reuse_limit = dynamic ? spec.rope.original_len : 0}});
  thread = std::thread([this] { loop->run(); });
}

void Engine::Impl::make_decoder_and_pool(const std::string& path) {
  const ops::Ops& ops = backend.ops;
  const model::DecoderLimits limits = decoder_limits(config);
  const ops::LinearWeight& qkv = weights.layers.front().qkv;
  const bool int4 = qkv.format == ops::WeightFormat::kInt4Group;
  ops::KvPool shape{.dtype = kv_dtype(config, ops, int4 ? spec.weight_dtype : qkv.dtype),
                    .num_layers = spec.num_layers,
                    .kv_heads = spec.num_kv_heads,
                    .head_dim = spec.head_dim};
  std::vector<ops::KvScale> ranges;
  if (shape.dtype == ops::DType::kI8) ranges = loader::load_kv_ranges(path, spec);
  shape.static_scales = !ranges.empty();
  info.kv_static_ranges = shape.static_scales;
  const size_t workspace = model::Decoder::workspace_bytes(spec, ops, limits);
  const char* advice =
      "Lower max_prefill_token_num or max_batch_size (workspace), cache_max_entry_count (KV pool), "
      "or what else takes the memory";
  MemoryLedger ledger{.weights = weights.bytes, .workspace = static_cast<int64_t>(workspace)};
  if (config.cache_max_entry_count > 1.0) {
    ledger.kv_pool = static_cast<int64_t>(config.cache_max_entry_count *
                                          static_cast<double>(shape.block_bytes()));
  }
  ledger.run(ops, advice, [&] {
    const size_t free = ops.free_memory(ops.self);
    const size_t taken = std::min(free, workspace + shape.shared_bytes());
    shape.num_blocks = pool_blocks(config, ops.defaults, shape, free - taken);
    pool = std::make_unique<PoolMemory>(ops, shape);
  });
  if (shape.static_scales) pool->put_scales(ranges);
  ledger.kv_pool = static_cast<int64_t>(shape.bytes());
  ledger.run(ops, advice, [&] {
    decoder = std::make_unique<model::Decoder>(spec, weights, ops, pool->pool, limits);
  });
  // A sequence that is alone must always fit, or it could never finish.
  const int64_t capacity = int64_t{shape.num_blocks} * ops::kBlockTokens;
  info.session_len = static_cast<int32_t>(std::min<int64_t>(config.session_len, capacity));
}

void Engine::Impl::fill_info() {
  info.model_name = prepared.model_name;
  info.ignored_keys = prepared.ignored_keys;
  info.architecture = spec.architecture;
  info.family = spec.family;
  info.device = backend.ops.name;
  info.dtype = ops::dtype_name(backend.ops.act_dtype);
  info.weight_dtype = ops::dtype_name(weights.layers.front().qkv.dtype);
  info.kv_dtype = ops::dtype_name(pool->pool.dtype);
  info.num_layers = spec.num_layers;
  info.hidden_size = spec.hidden_size;
  info.intermediate_size = spec.intermediate_size;
  info.num_heads = spec.num_heads;
  info.num_kv_heads = spec.num_kv_heads;
  info.head_dim = spec.head_dim;
  info.vocab_size = spec.vocab_size;
  info.max_position_embeddings = spec.max_position_embeddings;
  info.max_batch_size = config.max_batch_size;
  info.max_prefill_token_num = config.max_prefill_token_num;
  info.eos_token_ids = spec.eos_token_ids;
  info.num_parameters = weights.num_parameters;
  info.weight_bytes = weights.bytes;
  const ops::Ops& ops = backend.ops;
  const size_t scratch = ops.scratch_bytes != nullptr ? ops.scratch_bytes(ops.self) : 0;
  info.workspace_bytes = static_cast<int64_t>(decoder->workspace_bytes() + scratch);
  info.kv_bytes_per_token = static_cast<int64_t>(pool->pool.block_bytes()) / ops::kBlockTokens;
  info.kv_blocks = pool->pool.num_blocks;
  info.kv_pool_bytes = static_cast<int64_t>(pool->pool.bytes());
  info.kv_block_tokens = ops::kBlockTokens;
  info.num_threads = backend.ops.num_threads;
}

std::unique_ptr<Engine> EngineFactory::load(const std::string& path, const EngineConfig& config,
                                            ops::Ops backend, const std::string& device_note) {
  auto impl = std::make_unique<Engine::Impl>(path, config, backend);
  impl->info.device_note = device_note;
  return std::unique_ptr<Engine>(new Engine(std::move(impl)));
}

std::unique_ptr<Engine> Engine::load(const std::string& path, const EngineConfig& config) {
  check_config(config);
  Prepared prepared = prepare(path, config);
  prepared.spec.weight_dtype = loader::stored_dtype(path, prepared.spec);
  const ChosenBackend chosen = select_backend(prepared.config, prepared.spec);
  return EngineFactory::load(path, config, chosen.ops, chosen.note);
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Engine::~Engine() { shutdown(0.0); }

Stream Engine::submit(Request request) {
  check_request(request, impl_->info, impl_->config.max_batch_size);
  const auto channel = std::make_shared<OutputChannel>(request.sampling.n, impl_->inbox);
  impl_->inbox->enter_line();
  std::shared_ptr<Session> session;
  try {
    if (request.session_id) session = impl_->sessions->enter(request, channel);
    impl_->inbox->push({.request = std::move(request),
                        .channel = channel,
                        .session = session,
                        .submitted = Clock::now()});
  } catch (...) {
    if (session) impl_->sessions->end(session, channel.get(), {}, {}, false);
    impl_->inbox->left_line();
    throw;
  }
  return Stream(channel);
}

bool Engine::cancel(uint64_t session_id) { return impl_->sessions->cancel(session_id); }

bool Engine::end_session(uint64_t session_id) {
  const bool known = impl_->sessions->forget(session_id);
  if (known) impl_->inbox->poke();
  return known;
}

std::optional<SessionInfo> Engine::session(uint64_t session_id) const {
  return impl_->sessions->info(session_id);
}

const ModelInfo& Engine::info() const { return impl_->info; }
Stats Engine::stats() const { return impl_->loop->stats(); }
Health Engine::health() const { return impl_->loop->health(); }

void Engine::shutdown(double drain_seconds) {
  const double bounded = std::clamp(std::isnan(drain_seconds) ? 0.0 : drain_seconds, 0.0, 3.2e8);
  impl_->loop->set_drain_deadline(Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                                     std::chrono::duration<double>(bounded)));
  impl_->inbox->close(ErrorCode::kShutdown, "the engine is shut down and takes no more requests");
  std::lock_guard lock(impl_->join_mutex);
  if (impl_->thread.joinable()) impl_->thread.join();
}

}  // namespace treadle
