# GoogleTest for the C++ tests: the system's package, else the official release.

find_package(GTest 1.10 QUIET)

if(NOT GTest_FOUND)
  set(url https://github.com/google/googletest/archive/refs/tags/v1.14.0.tar.gz)
  set(archive "${CMAKE_BINARY_DIR}/googletest-1.14.0.tar.gz")
  if(NOT EXISTS "${archive}")
    message(STATUS "GoogleTest is not installed; downloading ${url}")
    file(DOWNLOAD "${url}" "${archive}.part" STATUS status TIMEOUT 120)
    list(GET status 0 code)
    if(NOT code EQUAL 0)
      list(GET status 1 reason)
      file(REMOVE "${archive}.part")
      message(FATAL_ERROR
        "The C++ tests need GoogleTest, which is not installed and could not be downloaded "
        "(${reason}). Install it, for example with `apt-get install libgtest-dev`, or configure "
        "with -DTREADLE_BUILD_TESTS=OFF.")
    endif()
    file(RENAME "${archive}.part" "${archive}")
  endif()

  include(FetchContent)
  FetchContent_Declare(googletest
    URL "${archive}"
    URL_HASH SHA256=8ad598c73ad796e0d8280b082cebd82a630d73e73cd3c70057938a6501bba5d7
    DOWNLOAD_EXTRACT_TIMESTAMP ON)
  set(INSTALL_GTEST OFF)
  set(BUILD_GMOCK OFF)
  FetchContent_MakeAvailable(googletest)
endif()
