// Engine::load on a workspace: the same tokens, and the options of its config.ini.
#include <filesystem>
#include <fstream>

#include "engine_testing.h"
#include "loader/workspace_writer.h"

namespace treadle {
namespace {

namespace fs = std::filesystem;
using testing::Ids;

class EngineWorkspaceTest : public ::testing::Test {
 protected:
  EngineWorkspaceTest() {
    loader::write_workspace(testing::tiny_model(), dir_.path(), {.ignored = {}}, {});
    fs::copy_file(fs::path(testing::tiny_model()) / "config.json", dir_.file("config.json"));
  }

  void append(const std::string& line) const {
    std::ofstream(dir_.file("config.ini"), std::ios::app) << line << "\n";
  }
  void replace(const std::string& line, const std::string& by) const {
    std::ifstream in(dir_.file("config.ini"));
    std::string text{std::istreambuf_iterator<char>(in), {}};
    const size_t at = text.find(line + "\n");
    ASSERT_NE(at, std::string::npos);
    text.replace(at, line.size(), by);
    dir_.write("config.ini", text);
  }

  static std::vector<PositionLogprobs> run(const std::string& path, EngineConfig config) {
    const auto engine = Engine::load(path, config);
    auto stream = engine->submit(
        {.input_ids = {5, 6, 7, 8, 9},
         .sampling = {
             .max_new_tokens = 40, .temperature = 0.0F, .ignore_eos = true, .logprobs = 2}});
    std::vector<PositionLogprobs> out;
    while (auto output = stream.next()) {
      out.insert(out.end(), output->logprobs.begin(), output->logprobs.end());
    }
    EXPECT_EQ(out.size(), 40U);
    return out;
  }

  testing::TempDir dir_;
};

TEST_F(EngineWorkspaceTest, GivesTheSameToTheLastBit) {
  EngineConfig config = testing::tiny_config();
  config.device = "cpu";
  EXPECT_EQ(run(dir_.path(), config), run(testing::tiny_model(), config));
  config.quant_policy = 8;
  const auto expected = run(testing::tiny_model(), config);
  EXPECT_EQ(run(dir_.path(), config), expected);
  replace("quant_policy = 0", "quant_policy = 4");
  config.quant_policy = -1;
  EXPECT_EQ(run(dir_.path(), config), expected);
}

TEST_F(EngineWorkspaceTest, TakesWhatConfigLeavesOpen) {
  replace("session_len = 1024", "session_len = 300");
  replace("max_batch_size = 0", "max_batch_size = 7");
  replace("model_name = base", "model_name = qwen");
  append("step_length = 1");
  const auto open = Engine::load(dir_.path(), {.device = "cpu"});
  EXPECT_EQ(open->info().session_len, 300);
  EXPECT_EQ(open->info().max_batch_size, 7);
  EXPECT_EQ(open->info().model_name, "qwen");
  EXPECT_EQ(open->info().ignored_keys, "step_length");
  EXPECT_FALSE(open->info().kv_static_ranges);
  const auto given =
      Engine::load(dir_.path(), {.device = "cpu", .session_len = 200, .max_batch_size = 3});
  EXPECT_EQ(given->info().session_len, 200);
  EXPECT_EQ(given->info().max_batch_size, 3);
}

TEST_F(EngineWorkspaceTest, NamesWhatIsWrong) {
  append("num_layer = 2");
  testing::expect_error(ErrorCode::kInvalidModel, {"config.ini: line", "num_layer is given in"},
                        [&] { Engine::load(dir_.path(), {.device = "cpu"}); });
}

}  // namespace
}  // namespace treadle
