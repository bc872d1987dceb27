# JSON for Modern C++, header only: a CMake package of the system, else the PyPI package
# nlohmann-json of the Python interpreter at hand. Used inside the library alone; no public header
# includes it.

find_package(nlohmann_json 3.10 CONFIG QUIET)

if(NOT nlohmann_json_FOUND)
  # Unversioned: any interpreter that can say where the package lies is good enough.
  find_package(Python COMPONENTS Interpreter QUIET)
  if(Python_Interpreter_FOUND)
    execute_process(
      COMMAND "${Python_EXECUTABLE}" -c
              "import importlib.util as u; s = u.find_spec('nlohmann_json'); \
print(s.submodule_search_locations[0] + '/include' if s else '', end='')"
      OUTPUT_VARIABLE treadle_json_hint ERROR_QUIET)
  endif()
  find_path(TREADLE_JSON_INCLUDE_DIR nlohmann/json.hpp HINTS "${treadle_json_hint}"
            DOC "Folder that holds nlohmann/json.hpp")
  if(NOT TREADLE_JSON_INCLUDE_DIR)
    message(FATAL_ERROR
      "nlohmann/json.hpp was not found. Install it with `pip install nlohmann-json` or "
      "`apt-get install nlohmann-json3-dev`, or pass -DTREADLE_JSON_INCLUDE_DIR=<folder>.")
  endif()
  add_library(nlohmann_json::nlohmann_json INTERFACE IMPORTED)
  target_include_directories(nlohmann_json::nlohmann_json SYSTEM INTERFACE
                             "${TREADLE_JSON_INCLUDE_DIR}")
endif()
