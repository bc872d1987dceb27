# rapidcheck for the property tests: the system's package, or not at all. There is no release of it
# to pin, and the seeded random tests beside the property tests check the same promises.

find_package(rapidcheck QUIET)

if(NOT rapidcheck_FOUND)
  message(STATUS "rapidcheck is not installed: the property tests are left out "
                 "(to have them: apt-get install librapidcheck-dev)")
endif()
