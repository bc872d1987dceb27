#include "treadle/error.h"

#include <set>
#include <string>

#include <gtest/gtest.h>

#include "treadle/request.h"
#include "treadle/version.h"

namespace treadle {
namespace {

TEST(Error, KeepsCodeAndMessage) {
  try {
    throw Error(ErrorCode::kTooLong, "prompt of 9 tokens, session_len is 8");
  } catch (const std::runtime_error& caught) {
    const auto* error = dynamic_cast<const Error*>(&caught);
    ASSERT_NE(error, nullptr);
    EXPECT_EQ(error->code(), ErrorCode::kTooLong);
    EXPECT_STREQ(error->what(), "prompt of 9 tokens, session_len is 8");
  }
}

TEST(Error, EveryCodeHasANameOfItsOwn) {
  std::set<std::string> names;
  for (int code = 0; code <= static_cast<int>(ErrorCode::kInternal); ++code) {
    std::string name = error_code_name(static_cast<ErrorCode>(code));
    EXPECT_EQ(name.find_first_not_of("abcdefghijklmnopqrstuvwxyz_"), std::string::npos) << name;
    EXPECT_NE(name, "unknown");
    EXPECT_TRUE(names.insert(name).second) << name;
  }
  EXPECT_STREQ(error_code_name(static_cast<ErrorCode>(999)), "unknown");
}

TEST(FinishReason, Names) {
  EXPECT_STREQ(finish_reason_name(FinishReason::kNone), "");
  EXPECT_STREQ(finish_reason_name(FinishReason::kStop), "stop");
  EXPECT_STREQ(finish_reason_name(FinishReason::kLength), "length");
  EXPECT_STREQ(finish_reason_name(FinishReason::kCancelled), "cancelled");
  EXPECT_STREQ(finish_reason_name(FinishReason::kError), "error");
}

TEST(Version, HeaderAndLibraryAgree) {
  EXPECT_STREQ(version(), TREADLE_VERSION);
  EXPECT_EQ(std::string(backends()).rfind("cpu", 0), 0U);
}

}  // namespace
}  // namespace treadle
