# The CUDA half of a native package: a second extension module, `_cuda`, beside the CPU's `_native`,
# and `devices.py`, which finds it.
#
#   native_cuda_module(<package folder> <sources...>)   .cu files and the bindings
#   native_warnings(<target>)                           warnings, as errors where they are asked to be
#
# Settings, as CMake definitions or environment variables:
#   NATIVE_CUDA                AUTO (default: where nvcc is found), ON (an error without it), OFF
#   CMAKE_CUDA_ARCHITECTURES   e.g. 90; default: those of the GPUs present, else NATIVE_ARCHITECTURES
#   NATIVE_WERROR              ON: compiler warnings are errors

# Machine code for these, and PTX of the last, which the driver compiles for anything newer. Code for
# 8.0 also runs on 8.6 and 8.9.
set(NATIVE_ARCHITECTURES 75-real 80-real 90)
set(NATIVE_OLDEST_CUDA 11.8)

foreach(setting NATIVE_CUDA CMAKE_CUDA_ARCHITECTURES NATIVE_WERROR)
  if(NOT DEFINED ${setting} AND DEFINED ENV{${setting}})
    set(${setting} "$ENV{${setting}}")
  endif()
endforeach()
if(NOT DEFINED NATIVE_CUDA)
  set(NATIVE_CUDA AUTO)
endif()
set(NATIVE_COMMON_DIR "${CMAKE_CURRENT_LIST_DIR}/..")

function(native_warnings target)
  if(MSVC)
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:/W3>)
    return()
  endif()
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall$<SEMICOLON>-Wextra>
    $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra>)
  if(NATIVE_WERROR)
    target_compile_options(${target} PRIVATE
      $<$<COMPILE_LANGUAGE:CXX>:-Werror>
      $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings$<SEMICOLON>-Xcompiler=-Werror>)
  endif()
endfunction()

# Compute capabilities of the GPUs of this machine, as CMake writes them; empty where there are none.
function(native_present_architectures result)
  find_program(NATIVE_NVIDIA_SMI nvidia-smi)
  set(found "")
  if(NATIVE_NVIDIA_SMI)
    execute_process(
      COMMAND ${NATIVE_NVIDIA_SMI} --query-gpu=compute_cap --format=csv,noheader
      OUTPUT_VARIABLE text RESULT_VARIABLE failed ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
    if(NOT failed AND text MATCHES "^[0-9.\n\r ]+$")
      string(REGEX REPLACE "[\n\r ]+" ";" text "${text}")
      foreach(capability IN LISTS text)
        string(REPLACE "." "" capability "${capability}")
        list(APPEND found "${capability}-real")
      endforeach()
      list(REMOVE_DUPLICATES found)
    endif()
  endif()
  set(${result} "${found}" PARENT_SCOPE)
endfunction()

# A macro: enable_language must run at the top level of the package.
macro(native_cuda_module package)
  install(FILES "${NATIVE_COMMON_DIR}/python/devices.py" DESTINATION ${package})
  set(NATIVE_HAS_CUDA OFF)
  if(NATIVE_CUDA)
    include(CheckLanguage)
    check_language(CUDA)
    if(CMAKE_CUDA_COMPILER)
      if(NOT CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
        native_present_architectures(CMAKE_CUDA_ARCHITECTURES)
        if(NOT CMAKE_CUDA_ARCHITECTURES)
          set(CMAKE_CUDA_ARCHITECTURES ${NATIVE_ARCHITECTURES})
        endif()
      endif()
      enable_language(CUDA)
      if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS NATIVE_OLDEST_CUDA)
        message(WARNING "CUDA ${CMAKE_CUDA_COMPILER_VERSION} is older than ${NATIVE_OLDEST_CUDA}")
      else()
        set(NATIVE_HAS_CUDA ON)
      endif()
    endif()
    if(NOT NATIVE_HAS_CUDA AND NOT NATIVE_CUDA STREQUAL "AUTO")
      message(FATAL_ERROR "NATIVE_CUDA=${NATIVE_CUDA}, but there is no nvcc >= ${NATIVE_OLDEST_CUDA}")
    endif()
  endif()
  if(NATIVE_HAS_CUDA)
    message(STATUS "CUDA ${CMAKE_CUDA_COMPILER_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}")
    # The kernels are a library of their own: nanobind compiles its modules for size. Its runtime is
    # linked in, so that the module loads, and says what is wrong, on a machine without CUDA.
    set(NATIVE_KERNELS ${ARGN})
    set(NATIVE_BINDINGS ${ARGN})
    list(FILTER NATIVE_KERNELS INCLUDE REGEX "\\.cu$")
    list(FILTER NATIVE_BINDINGS EXCLUDE REGEX "\\.cu$")
    add_library(native_cuda_kernels STATIC ${NATIVE_KERNELS})
    set_target_properties(native_cuda_kernels PROPERTIES
      POSITION_INDEPENDENT_CODE ON CUDA_VISIBILITY_PRESET hidden CUDA_RUNTIME_LIBRARY Static)
    target_compile_features(native_cuda_kernels PUBLIC cuda_std_17 cxx_std_17)
    target_include_directories(native_cuda_kernels PUBLIC
      include src "${NATIVE_COMMON_DIR}/include" ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
    # Line numbers for the profiler and compute-sanitizer; they cost nothing at run time. No fast
    # math: Gaussians and points that are not finite are told apart by comparisons.
    target_compile_options(native_cuda_kernels PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-lineinfo>)
    native_warnings(native_cuda_kernels)
    nanobind_add_module(_cuda NB_STATIC ${NATIVE_BINDINGS})
    set_target_properties(_cuda PROPERTIES CUDA_RUNTIME_LIBRARY Static)
    target_link_libraries(_cuda PRIVATE native_cuda_kernels)
    native_warnings(_cuda)
    install(TARGETS _cuda LIBRARY DESTINATION ${package})
  else()
    message(STATUS "no CUDA: this build of ${package} computes on the CPU only")
  endif()
endmacro()
