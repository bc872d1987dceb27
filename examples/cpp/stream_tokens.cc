// Streams the continuation of a prompt given as token ids:
//
//   stream_tokens MODEL_DIR ID [ID...]
//
// prints the new ids, one line for each output as it arrives. Text is the caller's business: the
// library works on ids, and `treadle info` or any tokenizer library turns text into them.
#include <charconv>
#include <cstdint>
#include <iostream>
#include <string_view>
#include <utility>
#include <vector>

#include <treadle/engine.h>

namespace {

bool parse_id(std::string_view text, int32_t& id) {
  const char* end = text.data() + text.size();
  auto [rest, error] = std::from_chars(text.data(), end, id);
  return error == std::errc() && rest == end;
}

int run(const char* model_dir, std::vector<int32_t> ids) {
  auto engine = treadle::Engine::load(model_dir, {.max_batch_size = 4});
  auto stream = engine->submit({
      .session_id = 1,
      .input_ids = std::move(ids),
      .sampling = {.max_new_tokens = 64, .temperature = 0.0F},
  });
  while (auto out = stream.next()) {
    for (int32_t id : out->token_ids) std::cout << id << ' ';
    std::cout << std::endl;  // flushed: the reader sees tokens as they come
    if (out->finish_reason == treadle::FinishReason::kError) {
      std::cerr << treadle::error_code_name(out->error) << ": " << out->error_message << '\n';
      return 1;
    }
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: stream_tokens MODEL_DIR ID [ID...]\n";
    return 2;
  }
  std::vector<int32_t> ids;
  for (int i = 2; i < argc; ++i) {
    int32_t id = 0;
    if (!parse_id(argv[i], id)) {
      std::cerr << "not a token id: '" << argv[i] << "'\n";
      return 2;
    }
    ids.push_back(id);
  }
  try {
    return run(argv[1], std::move(ids));
  } catch (const treadle::Error& error) {
    std::cerr << treadle::error_code_name(error.code()) << ": " << error.what() << '\n';
    return 1;
  }
}
