// consumer MODEL_DIR ID...: two turns of one session, one line of new ids per output, then how each
// ended. The second turn sends the last id alone; the engine keeps the rest.
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include <treadle/engine.h>

namespace {

void run_turn(treadle::Engine& engine, const std::vector<int32_t>& ids) {
  treadle::Request request;
  request.session_id = 7;
  request.input_ids = ids;
  request.sampling.max_new_tokens = 12;
  request.sampling.temperature = 0.0F;
  treadle::Stream stream = engine.submit(request);
  while (auto out = stream.next()) {
    std::cout << "ids";
    for (int32_t id : out->token_ids) std::cout << ' ' << id;
    std::cout << std::endl;
    if (out->finish_reason != treadle::FinishReason::kNone) {
      std::cout << "end " << treadle::finish_reason_name(out->finish_reason) << ' '
                << out->usage.prompt_tokens << '\n';
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (std::string(treadle::version()) != TREADLE_VERSION) return 3;
  std::vector<int32_t> ids;
  for (int i = 2; i < argc; ++i) ids.push_back(std::atoi(argv[i]));
  try {
    // 32 blocks of 64 tokens are plenty for two short turns.
    auto engine = treadle::Engine::load(argv[1], {.cache_max_entry_count = 32.0, .num_threads = 2});
    run_turn(*engine, ids);
    run_turn(*engine, {ids.back()});
    engine->submit({.session_id = 7, .input_ids = {-1}});
  } catch (const treadle::Error& error) {
    // Thrown inside the library, caught by type outside: what the last request is there for.
    std::cout << "error " << treadle::error_code_name(error.code()) << '\n';
  }
  return 0;
}
