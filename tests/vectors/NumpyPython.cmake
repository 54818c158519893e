# SPDX-License-Identifier: Apache-2.0
# ICMA_NUMPY_PYTHON: a Python that has numpy; not set where there is none. The first one on the path may be one without, so the system's is tried as well.
if(NOT ICMA_NUMPY_PYTHON)
    find_package(Python3 COMPONENTS Interpreter)
    find_program(ICMA_SYSTEM_PYTHON NAMES python3 PATHS /usr/bin NO_DEFAULT_PATH)
    mark_as_advanced(ICMA_SYSTEM_PYTHON)
    foreach(python IN ITEMS ${Python3_EXECUTABLE} ${ICMA_SYSTEM_PYTHON})
        execute_process(COMMAND ${python} -c "import numpy" RESULT_VARIABLE failed OUTPUT_QUIET ERROR_QUIET)
        if(NOT failed)
            set(ICMA_NUMPY_PYTHON ${python} CACHE FILEPATH "A Python that has numpy")
            break()
        endif()
    endforeach()
endif()
