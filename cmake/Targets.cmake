# SPDX-License-Identifier: BSD-3-Clause

# pmirror_library(NAME SOURCES ... LINKS ...): the static library of one folder. Headers are included from the root:
# #include "replication/frame.h".
function(pmirror_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINKS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_include_directories(${name} PUBLIC ${PROJECT_SOURCE_DIR})
  target_link_libraries(${name} PUBLIC ${ARG_LINKS})
endfunction()

# pmirror_test(NAME SOURCES ... LINKS ... [LABELS ...] [TIMEOUT seconds]): one GoogleTest binary, one ctest entry a case.
# Labels: `unit` (the default), `model` and `sim` also run under address and undefined-behaviour sanitizers, `tsan` also under the thread
# sanitizer, `grpc` (links gRPC) keeps a test out of the sanitizer builds, `cluster` and `bench` run alone on the machine.
function(pmirror_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;LINKS;LABELS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 60)
  endif()
  if(NOT ARG_LABELS)
    set(ARG_LABELS unit)
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  target_link_libraries(${name} PRIVATE ${ARG_LINKS} GTest::gmock GTest::gtest_main)

  set(labels ${ARG_LABELS})
  if(NOT "grpc" IN_LIST labels)
    if("unit" IN_LIST labels OR "model" IN_LIST labels OR "sim" IN_LIST labels)
      list(APPEND labels asan)
      add_dependencies(asan_tests ${name})
    endif()
    if("tsan" IN_LIST labels)
      add_dependencies(tsan_tests ${name})
    endif()
  endif()
  set(alone FALSE)
  if("cluster" IN_LIST labels OR "bench" IN_LIST labels)
    set(alone TRUE)
  endif()
  gtest_discover_tests(${name} DISCOVERY_TIMEOUT 60 PROPERTIES TIMEOUT ${ARG_TIMEOUT} RUN_SERIAL ${alone})
  # Labels are a list, which gtest_discover_tests cannot pass on: ctest sets them when it has read the names of the cases.
  set(file ${CMAKE_CURRENT_BINARY_DIR}/${name}_labels.cmake)
  file(WRITE ${file} "if(${name}_TESTS)\n"
                     "  set_tests_properties(\${${name}_TESTS} PROPERTIES LABELS \"${labels}\")\n"
                     "endif()\n")
  set_property(DIRECTORY APPEND PROPERTY TEST_INCLUDE_FILES ${file})
endfunction()
