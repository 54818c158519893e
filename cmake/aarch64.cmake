# SPDX-License-Identifier: Apache-2.0
# Toolchain of scripts/check-aarch64: Debian's cross compiler, arm64 libraries unpacked below ICMA_SYSROOT, tests under qemu-user.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)

# Also for the projects with which CMake tries the compiler.
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES ICMA_SYSROOT)
set(CMAKE_SYSROOT ${ICMA_SYSROOT})
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
set(ENV{PKG_CONFIG_SYSROOT_DIR} ${ICMA_SYSROOT})
set(ENV{PKG_CONFIG_LIBDIR} ${ICMA_SYSROOT}/usr/lib/aarch64-linux-gnu/pkgconfig:${ICMA_SYSROOT}/usr/lib/pkgconfig:${ICMA_SYSROOT}/usr/share/pkgconfig)

# What libraries need in their turn is looked for here; the linker does not read the sysroot's ld.so.conf.
set(CMAKE_EXE_LINKER_FLAGS_INIT -Wl,-rpath-link,${ICMA_SYSROOT}/usr/lib/aarch64-linux-gnu:${ICMA_SYSROOT}/lib/aarch64-linux-gnu)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64-static -L ${ICMA_SYSROOT})
