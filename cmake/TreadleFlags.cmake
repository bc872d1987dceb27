# Compiler flags of Treadle's own code, as the interface target treadle_flags.

add_library(treadle_flags INTERFACE)
target_compile_features(treadle_flags INTERFACE cxx_std_20)

if(CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
  target_compile_options(treadle_flags INTERFACE
    -Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual -Wvla
    # {.max_new_tokens = 64} leaves the rest at its default on purpose.
    -Wno-missing-field-initializers
    # A fused a * b + c rounds once. Whether the compiler fuses must not decide a result, so only
    # explicit std::fma and intrinsics do.
    -ffp-contract=off)
  if(TREADLE_WERROR)
    target_compile_options(treadle_flags INTERFACE -Werror)
  endif()
  if(TREADLE_SANITIZE)
    # For everything in the build, GoogleTest included: containers must agree on their annotations.
    add_compile_options(-fsanitize=${TREADLE_SANITIZE} -fno-omit-frame-pointer
                        -fno-sanitize-recover=all)
    add_link_options(-fsanitize=${TREADLE_SANITIZE})
  endif()
elseif(TREADLE_SANITIZE)
  message(FATAL_ERROR "TREADLE_SANITIZE='${TREADLE_SANITIZE}' needs GCC or Clang, "
                      "but the compiler is ${CMAKE_CXX_COMPILER_ID}.")
endif()

# Gives files named for an instruction set the flags to use it. The rest of the library is built for
# the plain architecture; cpp/src/ops/cpu chooses among these files at run time. On other
# architectures the files get no flags and are expected to compile to nothing.
function(treadle_set_isa_flags target)
  if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$"
     OR NOT CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
    return()
  endif()
  set(avx2 -mavx2 -mfma -mf16c)
  set(avx512 ${avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq)
  get_target_property(sources ${target} SOURCES)
  foreach(source IN LISTS sources)
    if(source MATCHES "_(avx2|avx512)\\.cc$")
      set_property(SOURCE "${source}" APPEND PROPERTY COMPILE_OPTIONS ${${CMAKE_MATCH_1}})
    endif()
  endforeach()
endfunction()
