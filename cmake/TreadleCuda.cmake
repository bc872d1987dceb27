# Decides whether the CUDA backend is built, for which GPUs, and finds what it is built with. Included
# by the top-level file, because CUDA must be enabled there. Sets:
#
#   TREADLE_HAS_CUDA              whether cuda/ is built
#   CMAKE_CUDA_ARCHITECTURES      from TREADLE_CUDA_ARCHS
#   TREADLE_CUBLASLT_INCLUDE_DIR  folder of cublasLt.h; the library is loaded at run time

set(TREADLE_HAS_CUDA OFF)

string(TOUPPER "${TREADLE_CUDA}" treadle_cuda)
if(treadle_cuda MATCHES "^(1|TRUE|YES|Y)$")
  set(treadle_cuda ON)
elseif(treadle_cuda MATCHES "^(0|FALSE|NO|N)$")
  set(treadle_cuda OFF)
elseif(NOT treadle_cuda MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "TREADLE_CUDA is '${TREADLE_CUDA}'; it must be AUTO, ON or OFF.")
endif()
if(treadle_cuda STREQUAL "OFF")
  message(STATUS "CUDA backend: not built (TREADLE_CUDA is ${TREADLE_CUDA})")
  return()
endif()

# Ends the search: an error where CUDA was asked for, else a build for the CPU. `kind` is STATUS
# where that is what anybody would expect, WARNING where it may surprise.
macro(treadle_no_cuda kind)
  if(treadle_cuda STREQUAL "ON")
    message(FATAL_ERROR "TREADLE_CUDA is ON, but " ${ARGN})
  endif()
  message(${kind} "CUDA backend: not built, because " ${ARGN})
  return()
endmacro()

# nvcc: what the user names, what is on PATH, the toolkit's usual place.
if(NOT CMAKE_CUDA_COMPILER)
  if(DEFINED ENV{CUDACXX})
    set(treadle_nvcc "$ENV{CUDACXX}")
  else()
    find_program(TREADLE_NVCC nvcc PATHS "$ENV{CUDA_HOME}/bin" "$ENV{CUDA_PATH}/bin"
                 /usr/local/cuda/bin DOC "The CUDA compiler")
    mark_as_advanced(TREADLE_NVCC)
    set(treadle_nvcc "${TREADLE_NVCC}")
  endif()
  if(NOT treadle_nvcc)
    treadle_no_cuda(STATUS "nvcc was found neither on PATH nor in /usr/local/cuda/bin.")
  endif()
  set(CMAKE_CUDA_COMPILER "${treadle_nvcc}")
endif()

set(treadle_oldest_toolkit 12.4)
execute_process(COMMAND "${CMAKE_CUDA_COMPILER}" --version
  OUTPUT_VARIABLE treadle_nvcc_version ERROR_QUIET)
if(NOT treadle_nvcc_version MATCHES "release ([0-9]+\\.[0-9]+)")
  treadle_no_cuda(WARNING "`${CMAKE_CUDA_COMPILER} --version` names no CUDA release.")
endif()
set(treadle_nvcc_version "${CMAKE_MATCH_1}")
if(treadle_nvcc_version VERSION_LESS treadle_oldest_toolkit)
  treadle_no_cuda(WARNING "${CMAKE_CUDA_COMPILER} is CUDA ${treadle_nvcc_version}, "
                  "but ${treadle_oldest_toolkit} or newer is needed.")
endif()
string(REGEX MATCH "^[0-9]+" treadle_cuda_major "${treadle_nvcc_version}")

# cublasLt.h: from the toolkit, or from the PyPI package of the Python at hand. An isolated build sees
# only its own requirements there, so the interpreter's installation is looked at as well.
# nvcc on PATH may be a script that calls the toolkit's; `TOP` is where that one lies.
execute_process(COMMAND "${CMAKE_CUDA_COMPILER}" --dryrun -c -x cu /dev/null
  OUTPUT_QUIET ERROR_VARIABLE treadle_nvcc_paths)
if(treadle_nvcc_paths MATCHES "TOP=([^\r\n]+)")
  set(treadle_cublas_hints "${CMAKE_MATCH_1}/include" "${CMAKE_MATCH_1}/targets/x86_64-linux/include"
      "${CMAKE_MATCH_1}/targets/sbsa-linux/include")
endif()
find_package(Python COMPONENTS Interpreter QUIET)
if(Python_Interpreter_FOUND)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c
            "import sys, sysconfig; \
print(';'.join(p + '/nvidia/' + d + '/include' \
for p in [*sys.path, sysconfig.get_path('purelib'), sysconfig.get_path('platlib')] if p \
for d in ('cu${treadle_cuda_major}', 'cublas')), end='')"
    OUTPUT_VARIABLE treadle_python_hints ERROR_QUIET)
  list(APPEND treadle_cublas_hints ${treadle_python_hints})
endif()
find_path(TREADLE_CUBLASLT_INCLUDE_DIR cublasLt.h HINTS ${treadle_cublas_hints}
          DOC "Folder that holds cublasLt.h")
if(NOT TREADLE_CUBLASLT_INCLUDE_DIR)
  set(treadle_cublas_package nvidia-cublas)
  if(treadle_cuda_major LESS 13)
    set(treadle_cublas_package nvidia-cublas-cu${treadle_cuda_major})
  endif()
  treadle_no_cuda(WARNING
    "cublasLt.h was found neither in the CUDA toolkit nor in the PyPI package "
    "${treadle_cublas_package}. Install it with `pip install ${treadle_cublas_package}`, install "
    "the toolkit's cuBLAS, or pass -DTREADLE_CUBLASLT_INCLUDE_DIR=<folder>.")
endif()

# Which GPUs to compile for. "90a" is compute capability 9.0 with Hopper's own instructions.
if(NOT DEFINED CACHE{TREADLE_CUDA_ARCHS} OR NOT TREADLE_CUDA_ARCHS)
  set(treadle_archs "$ENV{TREADLE_CUDA_ARCHS}")
  string(REGEX REPLACE "[, ]+" ";" treadle_archs "${treadle_archs}")
  if(NOT treadle_archs)
    execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
      OUTPUT_VARIABLE treadle_gpus RESULT_VARIABLE treadle_failed ERROR_QUIET
      OUTPUT_STRIP_TRAILING_WHITESPACE)
    if(treadle_failed OR NOT treadle_gpus MATCHES "^[0-9]+\\.[0-9]")
      set(treadle_archs 80 86 89 90a)
    else()
      execute_process(COMMAND "${CMAKE_CUDA_COMPILER}" --list-gpu-arch
        OUTPUT_VARIABLE treadle_known ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
      string(REPLACE "\n" ";" treadle_known "${treadle_known}")
      string(REPLACE "\n" ";" treadle_gpus "${treadle_gpus}")
      foreach(gpu IN LISTS treadle_gpus)
        string(REPLACE "." "" arch "${gpu}")
        if(NOT "compute_${arch}" IN_LIST treadle_known)
          set(arch 89)  # newer than this nvcc: the driver compiles that code for it
        elseif(arch STREQUAL "90")
          set(arch 90a)
        endif()
        list(APPEND treadle_archs "${arch}")
      endforeach()
      list(REMOVE_DUPLICATES treadle_archs)
    endif()
  endif()
  set(TREADLE_CUDA_ARCHS "${treadle_archs}" CACHE STRING
      "GPU architectures to compile for, separated by ;" FORCE)
endif()
# Code of the newest portable one is kept in its intermediate form, too: a driver can compile that
# for GPUs newer than all of these.
set(CMAKE_CUDA_ARCHITECTURES "")
set(treadle_newest 0)
foreach(arch IN LISTS TREADLE_CUDA_ARCHS)
  if(NOT arch MATCHES "^[0-9]+[af]?$")
    message(FATAL_ERROR "TREADLE_CUDA_ARCHS holds '${arch}'; entries are like 80 or 90a.")
  endif()
  if(arch MATCHES "^([0-9]+)" AND CMAKE_MATCH_1 LESS 80)
    message(FATAL_ERROR "TREADLE_CUDA_ARCHS holds '${arch}'; the kernels need 80 or newer.")
  endif()
  list(APPEND CMAKE_CUDA_ARCHITECTURES "${arch}-real")
  if(arch MATCHES "^[0-9]+$" AND arch GREATER treadle_newest)
    set(treadle_newest ${arch})
  endif()
endforeach()
if(treadle_newest GREATER 0)
  list(APPEND CMAKE_CUDA_ARCHITECTURES "${treadle_newest}-virtual")
endif()

if(treadle_cuda STREQUAL "AUTO" AND NOT CMAKE_CUDA_COMPILER_LOADED)
  include(CheckLanguage)
  set(ENV{CUDACXX} "${CMAKE_CUDA_COMPILER}")
  unset(CMAKE_CUDA_COMPILER)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    unset(CMAKE_CUDA_COMPILER CACHE)  # looked for again the next time
    treadle_no_cuda(WARNING "nvcc does not work with this C++ compiler (CMake's log says why).")
  endif()
endif()
enable_language(CUDA)
find_package(CUDAToolkit ${treadle_oldest_toolkit} REQUIRED)

set(TREADLE_HAS_CUDA ON)
string(REPLACE ";" " " treadle_archs "${TREADLE_CUDA_ARCHS}")
message(STATUS "CUDA backend: built with CUDA ${CUDAToolkit_VERSION} for ${treadle_archs}")
