# Finds what the extension needs: a working C++ compiler, Python headers, nanobind. The first one missing
# goes into QUIRE_SKIP_REASON; nothing here is fatal.

include(CheckLanguage)
if(NOT CMAKE_CXX_COMPILER)
  unset(CMAKE_CXX_COMPILER CACHE)  # an earlier "not found": look again
endif()
check_language(CXX)
if(NOT CMAKE_CXX_COMPILER)
  set(QUIRE_SKIP_REASON "no working C++ compiler was found at install time")
  return()
endif()
enable_language(CXX)

find_package(Python 3.11 QUIET COMPONENTS Interpreter Development.Module)
if(NOT Python_Development.Module_FOUND)
  set(QUIRE_SKIP_REASON "the Python headers were not found at install time (Debian and Ubuntu: python3-dev)")
  return()
endif()

execute_process(
  COMMAND "${Python_EXECUTABLE}" -m nanobind --cmake_dir
  OUTPUT_STRIP_TRAILING_WHITESPACE OUTPUT_VARIABLE nanobind_ROOT ERROR_QUIET)
find_package(nanobind CONFIG QUIET)
if(NOT nanobind_FOUND)
  set(QUIRE_SKIP_REASON "nanobind was not found at install time")
  return()
endif()
