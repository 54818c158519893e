#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Decoding gives the same bits whatever compiles it: builds icma with four compilers and levels below a folder, and decodes the
# golden vectors with each, and those with other numbers that mutants.py makes, on --device cpu and --device reference.
set -euo pipefail

if [ $# -ne 3 ]; then
    echo 'usage: compare_builds.sh SOURCE BUILDS PYTHON' >&2
    exit 2
fi
source=$1 builds=$2 python=$3
generator=()
if command -v ninja >/dev/null; then
    generator=(-G Ninja)
fi
native=-march=native
failed=0 compared=0

# NAME COMPILER FLAGS...: Debug takes nothing from a preset's flags but CMAKE_C_FLAGS_DEBUG; the project adds -ffp-contract=off.
compare() {
    local name=$1 compiler=$2 folder=$builds/$1 start=$SECONDS
    shift 2
    if ! command -v "$compiler" >/dev/null; then
        echo "SKIPPED $name: no $compiler"
        return
    fi
    if ! { cmake -S "$source" -B "$folder" "${generator[@]}" -DICMA_TESTS=OFF -DICMA_FUZZ=OFF -DCMAKE_C_COMPILER="$compiler" \
        -DCMAKE_BUILD_TYPE=Debug "-DCMAKE_C_FLAGS_DEBUG=$*" && cmake --build "$folder" --target icma --parallel; } \
        >"$builds/$name.log" 2>&1; then
        echo "FAILED $name: does not build"
        tail -n 30 "$builds/$name.log"
        failed=1
        return
    fi
    local built=$((SECONDS - start))
    if ! ICMA=$folder/icma "$python" -B "$source/tests/vectors/check_vectors.py" --only golden --program-only ||
        ! ICMA=$folder/icma "$python" -B "$source/tests/vectors/check_vectors.py" --only mutants 'shuffled-*' 'scale-[236]*'; then
        echo "FAILED $name ($compiler $*)"
        failed=1
    fi
    compared=$((compared + 1))
    echo "$name: $compiler $*, built in $built s, decoded in $((SECONDS - start - built)) s"
}

mkdir -p "$builds"
if ! echo 'int main(void) { return 0; }' | cc $native -x c -o /dev/null - 2>/dev/null; then
    echo "SKIPPED $native: the compiler does not know it here"
    native=
fi
compare gcc-O0 gcc -O0
compare gcc-O3 gcc -O3
compare clang-O0 clang -O0
compare clang-O3-native clang -O3 $native
echo "$compared builds compared"
[ "$failed" -eq 0 ] && [ "$compared" -gt 0 ]
