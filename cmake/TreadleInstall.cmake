# Installs the libraries, headers, CMake package and pkg-config file. Included from cpp/.

include(CMakePackageConfigHelpers)

set(treadle_cmake_dir "${CMAKE_INSTALL_LIBDIR}/cmake/treadle")

# One file of targets for each library: only the static one may need more than the system's.
foreach(library IN LISTS treadle_libraries)
  install(TARGETS ${library} EXPORT ${library}Targets
    LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT cpp
    ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT cpp
    RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}" COMPONENT cpp)
  install(EXPORT ${library}Targets NAMESPACE treadle::
    DESTINATION "${treadle_cmake_dir}" COMPONENT cpp)
endforeach()
install(DIRECTORY include/treadle "${CMAKE_CURRENT_BINARY_DIR}/include/treadle"
  DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" COMPONENT cpp
  FILES_MATCHING PATTERN "*.h")

configure_package_config_file(
  "${PROJECT_SOURCE_DIR}/cmake/treadleConfig.cmake.in" treadleConfig.cmake
  INSTALL_DESTINATION "${treadle_cmake_dir}"
  NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(treadleConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES
  "${CMAKE_CURRENT_BINARY_DIR}/treadleConfig.cmake"
  "${CMAKE_CURRENT_BINARY_DIR}/treadleConfigVersion.cmake"
  DESTINATION "${treadle_cmake_dir}" COMPONENT cpp)

# The prefix is found from the file's own place, so that an installed tree may be moved. How many
# folders lie between depends on the libdir (lib, lib64 or lib/<architecture>).
cmake_path(SET treadle_pc_dir NORMALIZE "/prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig")
file(RELATIVE_PATH treadle_pc_to_prefix "${treadle_pc_dir}" "/prefix")
set(treadle_pc_private -pthread)
if(TREADLE_HAS_CUDA)
  cmake_path(GET CUDA_cudart_static_LIBRARY PARENT_PATH treadle_pc_cudart_dir)
  string(PREPEND treadle_pc_private "-L${treadle_pc_cudart_dir} -lcudart_static -ldl -lrt ")
endif()
configure_file("${PROJECT_SOURCE_DIR}/cmake/treadle.pc.in" treadle.pc @ONLY)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/treadle.pc"
  DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig" COMPONENT cpp)
