# CPU kernels for several instruction sets in one module; which of them run is decided when it is
# loaded, see include/native/isa.h.
#
#   native_kernel_options(<target>)          how kernels are compiled, whatever the instruction set
#   native_kernels(<target> <sources...> [OPTIONS ...] [AVX512_OPTIONS ...])
#                                            adds the sources to the target, once per level
#
# Settings, as CMake definitions or environment variables:
#   NATIVE_LEVELS   some of baseline;avx2;avx512 (default: all that the compiler has; one builds faster)

set(NATIVE_COMMON_DIR "${CMAKE_CURRENT_LIST_DIR}/..")
set(NATIVE_ALL_LEVELS baseline avx2 avx512)
# baseline: what every processor of the architecture has, SSE2 or NEON. The others must be what
# native::runs_<level>() asks for, no more; which of their instructions are quick is that of the first
# processors that had them.
set(NATIVE_ISA_avx2 -mavx2 -mfma -mbmi -mbmi2)
set(NATIVE_ISA_avx512 ${NATIVE_ISA_avx2} -mavx512f -mavx512dq -mavx512bw -mavx512vl)
set(NATIVE_OPTIONS_avx2 ${NATIVE_ISA_avx2} -mtune=haswell)
set(NATIVE_OPTIONS_avx512 ${NATIVE_ISA_avx512} -mtune=skylake-avx512)
set(NATIVE_PROBE_avx2 avx2)
set(NATIVE_PROBE_avx512 avx512vl)

if(NOT DEFINED NATIVE_LEVELS AND DEFINED ENV{NATIVE_LEVELS})
  set(NATIVE_LEVELS "$ENV{NATIVE_LEVELS}")
endif()
if(NOT NATIVE_LEVELS)
  set(NATIVE_LEVELS ${NATIVE_ALL_LEVELS})
endif()

function(native_kernel_options target)
  target_compile_features(${target} PUBLIC cxx_std_17)
  target_include_directories(${target} PUBLIC "${NATIVE_COMMON_DIR}/include")
  set_target_properties(${target} PROPERTIES
    POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden)
  if(MSVC)
    target_compile_options(${target} PRIVATE /O2 /W3)
    return()
  endif()
  # No -ffast-math: what is not finite is told apart by comparisons.
  target_compile_options(${target} PRIVATE
    -O3 -Wall -Wextra -ffp-contract=fast -fno-math-errno -fno-trapping-math)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # GCC 12 warns about the undefined operands inside its own AVX-512 intrinsics.
    target_compile_options(${target} PRIVATE -Wno-maybe-uninitialized -Wno-uninitialized)
  endif()
endfunction()

# Whether the compiler has a level, and can ask a processor for it.
function(native_has_level level result)
  if(level STREQUAL "baseline")
    set(${result} ON PARENT_SCOPE)
    return()
  endif()
  include(CheckCXXSourceCompiles)
  string(REPLACE ";" " " CMAKE_REQUIRED_FLAGS "${NATIVE_OPTIONS_${level}}")
  string(TOUPPER "__${NATIVE_PROBE_${level}}__" macro)
  check_cxx_source_compiles("
#include <immintrin.h>
#if !defined(${macro})
#error
#endif
int main() { return __builtin_cpu_supports(\"${NATIVE_PROBE_${level}}\") ? 0 : 1; }
" NATIVE_COMPILES_${level})
  set(${result} ${NATIVE_COMPILES_${level}} PARENT_SCOPE)
endfunction()

# Fails the build if the objects of a level define what the linker could take for another level's.
function(native_check_level target level)
  if(NOT CMAKE_NM)
    return()
  endif()
  add_custom_command(TARGET ${target} POST_BUILD VERBATIM COMMAND ${CMAKE_COMMAND}
    "-DNM=${CMAKE_NM}" -DLEVEL=${level} "-DOBJECTS=$<JOIN:$<TARGET_OBJECTS:${target}_${level}>,|>"
    -P "${NATIVE_COMMON_DIR}/cmake/CheckLevel.cmake")
endfunction()

function(native_kernels target)
  cmake_parse_arguments(PARSE_ARGV 1 kernels "" "" "OPTIONS;AVX512_OPTIONS")
  set(sources ${kernels_UNPARSED_ARGUMENTS})
  set(extra_avx512 ${kernels_AVX512_OPTIONS})
  target_include_directories(${target} PRIVATE "${NATIVE_COMMON_DIR}/include")
  set(added "")
  foreach(level IN LISTS NATIVE_LEVELS)
    if(NOT level IN_LIST NATIVE_ALL_LEVELS)
      message(FATAL_ERROR "NATIVE_LEVELS: no level ${level}; there are ${NATIVE_ALL_LEVELS}")
    endif()
    native_has_level(${level} has)
    if(NOT has)
      continue()
    endif()
    list(APPEND added ${level})
    add_library(${target}_${level} OBJECT ${sources})
    native_kernel_options(${target}_${level})
    target_compile_options(${target}_${level} PRIVATE
      ${NATIVE_OPTIONS_${level}} ${kernels_OPTIONS} ${extra_${level}})
    target_compile_definitions(${target}_${level} PRIVATE NATIVE_LEVEL=${level})
    target_include_directories(${target}_${level} PRIVATE
      $<TARGET_PROPERTY:${target},INCLUDE_DIRECTORIES>)
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:${target}_${level}>)
    string(TOUPPER ${level} upper)
    target_compile_definitions(${target} PUBLIC NATIVE_HAS_${upper})
    if(NOT level STREQUAL "baseline")
      native_check_level(${target} ${level})
    endif()
  endforeach()
  if(NOT added)
    message(FATAL_ERROR "NATIVE_LEVELS=${NATIVE_LEVELS}: this compiler has none of them")
  endif()
  message(STATUS "kernels of ${target} for ${added}")
endfunction()
