// JSON that nobody vouches for, and typed access to it.
#include <string>

#include <gtest/gtest.h>

#include "loader/fields.h"
#include "loader/json.h"
#include "loader/text.h"
#include "loader_testing.h"

namespace treadle::loader {
namespace {

using testing::expect_error;

TEST(Json, ReadsWhatIsValid) {
  const Json json = parse_json(R"({"a": [1, -2, 2.5, "x", null, true], "b": {"c": {}}})", "f");
  EXPECT_EQ(json["a"].size(), 6U);
  EXPECT_EQ(json["a"][1], -2);
  EXPECT_EQ(json["a"][2], 2.5);
  EXPECT_TRUE(json["b"]["c"].is_object());
  EXPECT_EQ(parse_json("7", "f"), 7);
}

TEST(Json, RefusesBadSyntaxWithTheByte) {
  expect_error(ErrorCode::kInvalidModel, {"f.json: not valid JSON", "at byte 7"},
               [] { parse_json(R"({"a": })", "f.json"); });
  for (const char* text : {"", "{", "[1,", "{\"a\"}", "{'a': 1}", "{\"a\": NaN}", "{} {}", "nul",
                           "{\"a\": 01}", "\"\xff\"", "[1]x"}) {
    SCOPED_TRACE(text);
    expect_error(ErrorCode::kInvalidModel, {"f.json: not valid JSON"},
                 [&] { parse_json(text, "f.json"); });
  }
}

TEST(Json, RefusesDeepNesting) {
  const auto nested = [](int depth, const std::string& open, const std::string& close) {
    std::string text;
    for (int i = 0; i < depth; ++i) text += open;
    text += "1";
    for (int i = 0; i < depth; ++i) text += close;
    return text;
  };
  EXPECT_NO_THROW(parse_json(nested(kMaxJsonDepth, "[", "]"), "f"));
  for (const int depth : {kMaxJsonDepth + 1, 1'000'000}) {
    expect_error(ErrorCode::kInvalidModel, {"f: nested deeper than 64 levels"},
                 [&] { parse_json(nested(depth, "[", "]"), "f"); });
    expect_error(ErrorCode::kInvalidModel, {"nested deeper than 64 levels"},
                 [&] { parse_json(nested(depth, "{\"a\":", "}"), "f"); });
  }
}

TEST(Json, RefusesKeysGivenTwice) {
  expect_error(ErrorCode::kInvalidModel, {"f: key \"a\" is given twice"},
               [] { parse_json(R"({"a": 1, "b": 2, "a": 1})", "f"); });
  EXPECT_NO_THROW(parse_json(R"({"a": {"a": 1}, "b": {"a": 1}})", "f"));
}

TEST(Json, RefusesNumbersBeyondDouble) {
  expect_error(ErrorCode::kInvalidModel, {"f: a number is too large", "1e999"},
               [] { parse_json(R"({"a": 1e999})", "f"); });
}

TEST(Json, RefusesMissingLongAndIrregularFiles) {
  const testing::TempDir dir;
  dir.write("a.json", "[1, 2, 3]");
  EXPECT_EQ(read_json_file(dir.file("a.json"), "a.json", 9).size(), 3U);
  expect_error(ErrorCode::kInvalidModel, {"a.json: is longer than 8 bytes"},
               [&] { read_json_file(dir.file("a.json"), "a.json", 8); });
  expect_error(ErrorCode::kNotFound, {"b.json: there is no file", dir.path()},
               [&] { read_json_file(dir.file("b.json"), "b.json", 8); });
  expect_error(ErrorCode::kInvalidModel, {"is not a regular file"},
               [&] { read_json_file(dir.path(), "b.json", 8); });
}

class FieldsTest : public ::testing::Test {
 protected:
  const Json json_ = parse_json(
      R"({"i": 5, "neg": -1, "big": 3000000000, "huge": 18446744073709551615, "f": 2.5, "t": true,
          "s": "x", "none": null, "list": [1, 2], "mixed": [1, "a"], "o": {"p": 300}})",
      "c.json");
  const Fields fields_{json_, "c.json"};
};

TEST_F(FieldsTest, GivesValuesAndFallbacks) {
  EXPECT_EQ(fields_.integer("i", {}, 0, 9), 5);
  EXPECT_EQ(fields_.integer("absent", 7, 0, 9), 7);
  EXPECT_EQ(fields_.integer("none", 7, 0, 9), 7);
  EXPECT_EQ(fields_.integer("neg", {}, -1, 9), -1);
  EXPECT_EQ(fields_.number("f", {}, 0, 9), 2.5);
  EXPECT_EQ(fields_.number("i", {}, 0, 9), 5.0);
  EXPECT_TRUE(fields_.boolean("t", false));
  EXPECT_EQ(fields_.string("s", ""), "x");
  EXPECT_EQ(fields_.integers("list", 0, 9), (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(fields_.integers("i", 0, 9), (std::vector<int32_t>{5}));
  EXPECT_TRUE(fields_.integers("none", 0, 9).empty());
  EXPECT_FALSE(fields_.object("absent"));
}

TEST_F(FieldsTest, NamesFileFieldValueAndRange) {
  expect_error(ErrorCode::kInvalidModel, {"c.json: i is 5: must be an integer from 6 to 9"},
               [&] { fields_.integer("i", {}, 6, 9); });
  expect_error(ErrorCode::kInvalidModel, {"c.json: absent is missing: must be an integer from 0"},
               [&] { fields_.integer("absent", {}, 0, 9); });
  expect_error(ErrorCode::kInvalidModel, {"c.json: o.p is 300: must be"},
               [&] { fields_.object("o")->integer("p", {}, 0, 9); });
}

TEST_F(FieldsTest, RefusesOverflowAndWrongTypes) {
  constexpr int32_t kMax = 2147483647;
  for (const char* key : {"big", "huge", "f", "t", "s", "list", "o"}) {
    SCOPED_TRACE(key);
    expect_error(ErrorCode::kInvalidModel, {std::string("c.json: ") + key + " is "},
                 [&] { fields_.integer(key, 1, -5, kMax); });
  }
  expect_error(ErrorCode::kInvalidModel, {"t is true: must be an integer"},
               [&] { fields_.integer("t", {}, 0, 1); });
  expect_error(ErrorCode::kInvalidModel, {"i is 5: must be true or false"},
               [&] { fields_.boolean("i", false); });
  expect_error(ErrorCode::kInvalidModel, {"t is true: must be a number"},
               [&] { fields_.number("t", {}, 0, 9); });
  expect_error(ErrorCode::kInvalidModel, {"i is 5: must be a string"},
               [&] { fields_.string("i", ""); });
  expect_error(ErrorCode::kInvalidModel, {"mixed is [1,\"a\"]: must be"},
               [&] { fields_.integers("mixed", 0, 9); });
  expect_error(ErrorCode::kInvalidModel, {"mixed is", "must be a list of strings"},
               [&] { fields_.strings("mixed"); });
  expect_error(ErrorCode::kInvalidModel, {"c.json: i is 5: must be an object"},
               [&] { fields_.object("i"); });
  expect_error(ErrorCode::kInvalidModel, {"c.json: is [1,2]: must be an object"},
               [&] { const Fields list(json_["list"], "c.json"); });
}

TEST(Quote, EscapesAndShortens) {
  EXPECT_EQ(quote("a\"b\\c\n"), "\"a\\\"b\\\\c\\x0a\"");
  EXPECT_EQ(quote("西湖"), "\"西湖\"");
  EXPECT_EQ(quote("西湖", 4), "\"西湖\"");
  EXPECT_EQ(quote("西湖", 3), "\"西...\"");
  // Stray continuation, overlong form, surrogate, beyond U+10FFFF, cut off.
  EXPECT_EQ(quote("\x80"), "\"\\x80\"");
  EXPECT_EQ(quote("\xc0\xaf"), "\"\\xc0\\xaf\"");
  EXPECT_EQ(quote("\xed\xa0\x80"), "\"\\xed\\xa0\\x80\"");
  EXPECT_EQ(quote("\xf4\x90\x80\x80"), "\"\\xf4\\x90\\x80\\x80\"");
  EXPECT_EQ(quote("\xe8\xa5"), "\"\\xe8\\xa5\"");
}

}  // namespace
}  // namespace treadle::loader
