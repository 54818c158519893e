# SPDX-License-Identifier: Apache-2.0
# Finds what the project stands on and, where something is missing, names the Debian package that brings it.
find_package(Threads REQUIRED)
find_package(PkgConfig)
if(NOT PKG_CONFIG_FOUND)
    message(FATAL_ERROR "pkg-config is missing; install it (Debian: pkg-config), or run scripts/bootstrap")
endif()

function(icma_require target module package)
    pkg_check_modules(${target} IMPORTED_TARGET GLOBAL ${module})
    if(NOT ${target}_FOUND)
        message(FATAL_ERROR "${module} is missing; install it (Debian: ${package}), or run scripts/bootstrap")
    endif()
endfunction()

icma_require(ZSTD libzstd libzstd-dev)
icma_require(XXHASH libxxhash libxxhash-dev)
icma_require(CJSON libcjson libcjson-dev)
icma_require(LIBARCHIVE libarchive libarchive-dev)
icma_require(ZLIB zlib zlib1g-dev)
icma_require(OPENBLAS openblas libopenblas-dev)

find_library(LAPACKE_LIBRARY lapacke)
find_path(LAPACKE_INCLUDE lapacke.h)
if(NOT LAPACKE_LIBRARY OR NOT LAPACKE_INCLUDE)
    message(FATAL_ERROR "LAPACKE is missing; install it (Debian: liblapacke-dev), or run scripts/bootstrap")
endif()

find_library(CMOCKA_LIBRARY cmocka)
if(ICMA_TESTS AND NOT CMOCKA_LIBRARY)
    message(FATAL_ERROR "cmocka is missing; install it (Debian: libcmocka-dev), run scripts/bootstrap --tests, "
                        "or configure with -DICMA_TESTS=OFF")
endif()

# Optional: threads. Without OpenMP everything runs on one.
find_package(OpenMP COMPONENTS C)

# Optional: CUDA. Sanitizers do not go with what nvcc makes; the emulation stands in for it there.
if(NOT ICMA_CUDA STREQUAL "OFF" AND NOT ICMA_SANITIZE)
    include(CheckLanguage)
    check_language(CUDA)
    if(CMAKE_CUDA_COMPILER)
        set(CMAKE_CUDA_ARCHITECTURES ${ICMA_CUDA_ARCHITECTURES})
        enable_language(CUDA)
        find_package(CUDAToolkit REQUIRED)
    elseif(ICMA_CUDA STREQUAL "ON")
        message(FATAL_ERROR "ICMA_CUDA is ON, and nvcc is not found; put it on the PATH or set CUDACXX")
    endif()
endif()
