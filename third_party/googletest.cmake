# GoogleTest for the C++ tests: the system's package, else the official release.

find_package(GTest 1.10 QUIET)

if(NOT GTest_FOUND)
  message(STATUS "GoogleTest is not installed; downloading the release "
                 "(or install it: apt-get install libgtest-dev)")
  include(FetchContent)
  FetchContent_Declare(googletest
    URL https://github.com/google/googletest/archive/refs/tags/v1.14.0.tar.gz
    URL_HASH SHA256=8ad598c73ad796e0d8280b082cebd82a630d73e73cd3c70057938a6501bba5d7
    DOWNLOAD_EXTRACT_TIMESTAMP ON)
  set(INSTALL_GTEST OFF)
  set(BUILD_GMOCK OFF)
  FetchContent_MakeAvailable(googletest)
endif()
