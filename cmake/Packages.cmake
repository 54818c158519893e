# SPDX-License-Identifier: Apache-2.0
# What is installed beside the library (lib/), and Debian packages of all of it: cpack -G DEB, or cmake --workflow --preset deb.
install(TARGETS icma RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT program)
if(TARGET icma_cuda)
    install(TARGETS icma_cuda LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}/icma COMPONENT cuda)
endif()
