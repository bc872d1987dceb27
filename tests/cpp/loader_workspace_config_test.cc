// config.ini: what is read, and how every mistake is named.
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "loader/ini.h"
#include "loader/loader.h"
#include "loader/workspace_config.h"
#include "loader/workspace_writer.h"
#include "loader_testing.h"

namespace treadle::loader {
namespace {

using model::ModelSpec;
using testing::expect_error;
using testing::TempDir;

constexpr auto kInvalid = ErrorCode::kInvalidModel;

ModelSpec some_spec() {
  ModelSpec spec;
  spec.num_layers = 32;
  spec.hidden_size = 4096;
  spec.intermediate_size = 11008;
  spec.num_heads = 32;
  spec.num_kv_heads = 8;
  spec.head_dim = 128;
  spec.vocab_size = 32000;
  spec.max_position_embeddings = 4096;
  spec.norm_eps = 1e-5F;
  spec.rope.base = 500000.0;
  spec.rope.rotary_dim = 128;
  spec.bos_token_id = 1;
  spec.eos_token_ids = {2, 7};
  return spec;
}

WorkspaceConfig parse(const std::string& lines, ModelSpec spec = some_spec(),
                      ops::DType stored = ops::DType::kF16) {
  return parse_workspace_config("[llama]\n" + lines, stored, spec);
}

// "\n" before `lines` makes their first line the third.
void refused(const std::string& lines, std::vector<std::string> parts,
             const ModelSpec& spec = some_spec(), ErrorCode code = kInvalid) {
  SCOPED_TRACE(lines);
  parts.emplace_back("config.ini: line 3: ");
  expect_error(code, parts, [&] { parse("\n" + lines, spec); });
}

TEST(Ini, ReadsOneSection) {
  const auto entries = parse_ini(
      "\xEF\xBB\xBF; comment\n# another\n\n  [s]  ; the section\r\na = 1\r\n b_2=x y \nC =\n"
      "d = 4 ; why\ne=a;b#c\nf = = 7",
      "s", "f.ini");
  ASSERT_EQ(entries.size(), 6U);
  const std::vector<std::pair<std::string, std::string>> want = {
      {"a", "1"}, {"b_2", "x y"}, {"C", ""}, {"d", "4"}, {"e", "a;b#c"}, {"f", "= 7"}};
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_EQ(entries[i].key, want[i].first);
    EXPECT_EQ(entries[i].value, want[i].second);
    EXPECT_EQ(entries[i].line, static_cast<int>(i) + 5);
  }
  EXPECT_TRUE(parse_ini("[s]", "s", "f.ini").empty());
}

TEST(Ini, NamesTheLine) {
  const auto bad = [](const std::string& text, const std::vector<std::string>& parts) {
    SCOPED_TRACE(text);
    expect_error(kInvalid, parts, [&] { parse_ini(text, "s", "f.ini"); });
  };
  bad("", {"f.ini: has no section [s]"});
  bad("; [s]\n", {"has no section [s]"});
  bad("\n\na = 1\n[s]", {"f.ini: line 3: \"a = 1\" stands before [s]"});
  bad("[t]", {"line 1: \"[t]\": the only section is [s]"});
  bad("[s", {"line 1: \"[s\": the only section is [s]"});
  bad("[s]\n[s]", {"line 2: [s] begins a second time"});
  bad("[s]\n\nnothing", {"line 3: \"nothing\": must be \"key = value\""});
  bad("[s]\n= 5", {"line 2", "must be \"key = value\""});
  bad("[s]\na b = 5", {"line 2: \"a b = 5\": must be"});
  bad("[s]\na: 5", {"line 2: \"a: 5\": must be"});
  bad(std::string("[s]\na\0b = 5", 11), {"line 2: \"a\\x00b = 5\": must be"});
  bad("[s]\n\xFF = 5", {"line 2: \"\\xff = 5\": must be"});
  bad("[s]\na = 1\nb = 2\na = 3", {"line 4: a is given in line 2, too"});
}

TEST(WorkspaceConfig, EmptyLeavesEverything) {
  ModelSpec spec = some_spec();
  const WorkspaceConfig config = parse_workspace_config("[llama]\n", ops::DType::kF16, spec);
  EXPECT_EQ(config.model_name, "");
  EXPECT_EQ(config.session_len, 0);
  EXPECT_EQ(config.max_batch_size, 0);
  EXPECT_EQ(config.quant_policy, 0);
  EXPECT_EQ(config.rope_scaling_factor, 0.0);
  EXPECT_EQ(config.use_logn_attn, -1);
  EXPECT_TRUE(config.ignored.empty());
  EXPECT_EQ(spec.eos_token_ids, (std::vector<int32_t>{2, 7}));
}

TEST(WorkspaceConfig, ReadsOptions) {
  ModelSpec spec = some_spec();
  const WorkspaceConfig config = parse_workspace_config(
      "[llama]\nmodel_name = internlm-chat-7b\nsession_len = 8192\nmax_batch_size = 32\n"
      "quant_policy = 8\nrope_scaling_factor = 2.5\nuse_logn_attn = 1\nstart_id = 5\n"
      "end_id = 6,  9\ncache_max_entry_count = 0.5\nmax_prefill_token_num = 4096\n",
      ops::DType::kF16, spec);
  EXPECT_EQ(config.model_name, "internlm-chat-7b");
  EXPECT_EQ(config.session_len, 8192);
  EXPECT_EQ(config.max_batch_size, 32);
  EXPECT_EQ(config.quant_policy, 8);
  EXPECT_EQ(config.rope_scaling_factor, 2.5);
  EXPECT_EQ(config.use_logn_attn, 1);
  EXPECT_EQ(config.cache_max_entry_count, 0.5);
  EXPECT_EQ(config.max_prefill_token_num, 4096);
  EXPECT_EQ(spec.bos_token_id, 5);
  EXPECT_EQ(spec.eos_token_ids, (std::vector<int32_t>{6, 9}));
  EXPECT_EQ(parse("quant_policy = 4").quant_policy, 8);  // as LMDeploy once spelled it
  EXPECT_EQ(parse("quant_policy = 0").quant_policy, 0);
  EXPECT_EQ(parse("use_logn_attn = False").use_logn_attn, 0);
  EXPECT_EQ(parse("cache_max_entry_count = 200").cache_max_entry_count, 200.0);
  parse_workspace_config("[llama]\nend_id = -1", ops::DType::kF16, spec);
  EXPECT_TRUE(spec.eos_token_ids.empty());
}

TEST(WorkspaceConfig, RefusesImpossibleOptions) {
  refused("session_len = -1", {"session_len is \"-1\"", "integer from 0 to 16777216"});
  refused("session_len = 8k", {"session_len is \"8k\"", "integer"});
  refused("session_len = 99999999999", {"session_len is \"99999999999\""});
  refused("session_len =", {"session_len is empty"});
  refused("session_len = 4096.0", {"session_len is \"4096.0\""});
  refused("max_batch_size = 5000", {"from 0 to 4096"});
  refused("quant_policy = 2", {"quant_policy is \"2\"", "0 (none) or 8"});
  refused("quant_policy = int8", {"quant_policy is \"int8\"", "integer"});
  refused("rope_scaling_factor = nan", {"rope_scaling_factor is \"nan\""});
  refused("rope_scaling_factor = inf", {"rope_scaling_factor is \"inf\""});
  refused("rope_scaling_factor = 0.5", {"0 (off) or from 1 to 1e6"});
  refused("rope_scaling_factor = -1", {"must be a number from 0"});
  refused("use_logn_attn = 2", {"use_logn_attn is \"2\"", "0 or 1"});
  refused("use_logn_attn = yes", {"must be 0 or 1"});
  refused("cache_max_entry_count = 2.5", {"fraction in (0, 1]"});
  refused("start_id = 32000", {"integer from -1 to 31999"});
  refused("end_id = 2, x", {"end_id is \"2, x\"", "separated by commas"});
  refused("end_id = 2,", {"end_id is \"2,\""});
  refused("end_id = 32000", {"from -1 to 31999"});
  refused("use_dynamic_ntk = 1", {"changes results"});
  refused("lora_r = 8", {"lora_r is \"8\"", "not implemented"});
}

TEST(WorkspaceConfig, WhatTheWeightsDecideCannotBeEdited) {
  parse(
      "head_num = 32\nkv_head_num = 8\nvocab_size = 32000\nnum_layer = 32\ninter_size = 11008\n"
      "norm_eps = 0.00001\nattn_bias = 0\nweight_type = fp16\nrotary_embedding = 128\n"
      "rope_theta = 5e5\nsize_per_head = 128\ngroup_size = 128\ntensor_para_size = 1\n"
      "max_position_embeddings = 4096");
  refused("head_num = 40", {"head_num is \"40\": the weights have 32"});
  refused("kv_head_num = 32", {"kv_head_num is \"32\": the weights have 8"});
  refused("vocab_size = 31999", {"vocab_size is \"31999\": the weights have 32000"});
  refused("num_layer = 33", {"num_layer is \"33\": the weights have 32"});
  refused("inter_size = 1", {"inter_size is \"1\": the weights have 11008"});
  refused("size_per_head = 64", {"size_per_head is \"64\": the weights have 128"});
  refused("rotary_embedding = 64", {"rotary_embedding is \"64\": the weights have 128"});
  refused("max_position_embeddings = 1", {"the weights have 4096"});
  refused("norm_eps = 1e-6", {"norm_eps is \"1e-6\": the weights have 1e-05"});
  refused("rope_theta = 10000", {"rope_theta is \"10000\": the weights have 5"});
  refused("attn_bias = 1", {"attn_bias is \"1\": the weights have 0"});
  refused("weight_type = bf16", {"weight_type is \"bf16\": the weights have fp16"});
  refused("weight_type = int4", {"weight_type is \"int4\": the weights have fp16"});
  refused("head_num = many", {"head_num is \"many\"", "integer"});
  refused("tensor_para_size = 0", {"integer from 1"});
  refused("tensor_para_size = 2", {"tensor_para_size is 2", "only 1 in this version"}, some_spec(),
          ErrorCode::kUnsupported);
}

TEST(WorkspaceConfig, KnowsFourBitWeights) {
  ModelSpec spec = some_spec();
  spec.quant = {.method = model::QuantMethod::kAwq, .group_size = 128};
  parse("weight_type = int4\ngroup_size = 128", spec);
  refused("group_size = 64", {"group_size is \"64\": the weights have 128"}, spec);
  refused("weight_type = fp16", {"the weights have int4"}, spec);
  spec.quant.group_size = 0;
  parse("group_size = -1", spec);
  EXPECT_NO_THROW(parse("weight_type = bfloat16", some_spec(), ops::DType::kBF16));
}

TEST(WorkspaceConfig, KnowsLmdeploysOtherKeys) {
  const auto config = parse(
      "step_length = 1\nquant_policy = 8\ncache_chunk_size = -1\n"
      "use_dynamic_ntk = 0\nlora_policy =");
  EXPECT_EQ(config.ignored,
            (std::vector<std::string>{"step_length", "cache_chunk_size", "lora_policy"}));
  EXPECT_EQ(config.quant_policy, 8);
}

TEST(WorkspaceConfig, RefusesUnknownKeysWithTheClosest) {
  refused("quant_polcy = 8", {"unknown key \"quant_polcy\": did you mean quant_policy?"});
  refused("Session_Len = 8", {"unknown key \"Session_Len\": did you mean session_len?"});
  expect_error(kInvalid, {"unknown key \"zzzzzzzzzzzz\""}, [] { parse("zzzzzzzzzzzz = 8"); });
  refused(std::string(100000, 'a') + " = 1", {"unknown key \"aaaa"});
}

TEST(WorkspaceConfig, WhatIsWrittenIsRead) {
  ModelSpec spec = some_spec();
  for (const int quant : {0, 1}) {
    if (quant == 1) spec.quant = {.method = model::QuantMethod::kPacked};
    WorkspaceConfig settings;
    const std::string plain = workspace_config_text(spec, ops::DType::kBF16, settings);
    ModelSpec same = spec;
    WorkspaceConfig back = parse_workspace_config(plain, ops::DType::kBF16, same);
    EXPECT_EQ(back.session_len, 4096);
    EXPECT_EQ(back.use_logn_attn, 0);
    EXPECT_EQ(back.model_name, "base");
    EXPECT_EQ(same.eos_token_ids, spec.eos_token_ids);
    settings = {.model_name = "qwen",
                .session_len = 100,
                .max_batch_size = 3,
                .max_prefill_token_num = 77,
                .cache_max_entry_count = 0.3,
                .quant_policy = 8,
                .rope_scaling_factor = 1.1,
                .use_logn_attn = 1,
                .ignored = {}};
    back = parse_workspace_config(workspace_config_text(spec, ops::DType::kF32, settings),
                                  ops::DType::kF32, same);
    EXPECT_EQ(back.model_name, "qwen");
    EXPECT_EQ(back.session_len, 100);
    EXPECT_EQ(back.max_batch_size, 3);
    EXPECT_EQ(back.max_prefill_token_num, 77);
    EXPECT_EQ(back.cache_max_entry_count, 0.3);
    EXPECT_EQ(back.quant_policy, 8);
    EXPECT_EQ(back.rope_scaling_factor, 1.1);
    EXPECT_EQ(back.use_logn_attn, 1);
  }
  spec.max_position_embeddings = 1 << 30;  // more than can be asked for
  EXPECT_NE(workspace_config_text(spec, ops::DType::kF16, {}).find("session_len = 0\n"),
            std::string::npos);
}

TEST(WorkspaceConfig, RefusesToWriteWhatCannotBeRead) {
  for (const char* name : {"two\nlines", "a ; comment", " blank"}) {
    expect_error(ErrorCode::kInvalidArgument, {}, [&] {
      workspace_config_text(some_spec(), ops::DType::kF16, {.model_name = name, .ignored = {}});
    });
  }
  expect_error(ErrorCode::kInvalidArgument, {"session_len"}, [] {
    workspace_config_text(some_spec(), ops::DType::kF16, {.session_len = -5, .ignored = {}});
  });
}

// Any damage is an error that names the file, or leaves a configuration within its ranges.
TEST(WorkspaceConfig, SurvivesRandomDamage) {
  const std::string good = workspace_config_text(some_spec(), ops::DType::kF16, {});
  std::minstd_rand random;
  const auto below = [&](size_t n) { return size_t(random()) % n; };
  int accepted = 0;
  for (int round = 0; round < 5000; ++round) {
    std::string text = good;
    for (size_t change = 0; change <= below(4) && !text.empty(); ++change) {
      const size_t at = below(text.size());
      switch (below(5)) {
        case 0:
          text[at] = static_cast<char>(below(256));
          break;
        case 1:
          text.erase(at, below(20) + 1);
          break;
        case 2:
          text.insert(at, 1, "\n=[];#-9.e\0\xFF"[below(13)]);
          break;
        case 3:
          text.insert(at, text.substr(below(text.size()), below(40)));
          break;
        default:
          text.resize(at + 1);
      }
    }
    try {
      ModelSpec spec = some_spec();
      const WorkspaceConfig config = parse_workspace_config(text, ops::DType::kF16, spec);
      ++accepted;
      ASSERT_TRUE(config.session_len >= 0 && config.session_len <= 1 << 24);
      ASSERT_TRUE(config.max_batch_size >= 0 && config.max_batch_size <= 4096);
      ASSERT_TRUE(config.quant_policy == 0 || config.quant_policy == 8);
      ASSERT_TRUE(config.rope_scaling_factor == 0.0 || config.rope_scaling_factor >= 1.0);
      for (const int32_t id : spec.eos_token_ids) ASSERT_TRUE(id >= 0 && id < spec.vocab_size);
    } catch (const Error& error) {
      ASSERT_TRUE(std::string_view(error.what()).starts_with("config.ini: ")) << error.what();
      ASSERT_TRUE(error.code() == kInvalid || error.code() == ErrorCode::kUnsupported);
    }
  }
  EXPECT_GT(accepted, 100);
}

TEST(WorkspaceConfig, LmdeploysOwnWorkspaceIsNamed) {
  const TempDir dir;
  std::filesystem::create_directories(dir.file("triton_models/weights"));
  expect_error(ErrorCode::kUnsupported, {"workspace of LMDeploy", "treadle convert"},
               [&] { read_model(dir.path()); });
}

TEST(WorkspaceConfig, AWorkspaceIsNotConvertedAgain) {
  const TempDir dir;
  dir.write("config.ini", "[llama]\n");
  expect_error(ErrorCode::kInvalidArgument, {"is a workspace already"},
               [&] { write_workspace(dir.path(), dir.file("out"), {}, {}); });
}

}  // namespace
}  // namespace treadle::loader
