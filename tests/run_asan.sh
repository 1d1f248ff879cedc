#!/usr/bin/env bash
# Builds the C++ module with AddressSanitizer and UndefinedBehaviorSanitizer into a folder of its own and runs the
# tests of the CPU kernels with it: `tests/run_asan.sh [test files]`.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "${PYTHON:-.venv/bin/python}")
scratch=$PWD/build/asan
rm -rf "$scratch" && mkdir -p "$scratch"
git ls-files -z | xargs -0 cp --parents -t "$scratch"

# The highest instruction set is what users run. Its masked loads and stores are invisible to AddressSanitizer; the
# baseline reads and writes the same elements without them.
highest=$("$python" -c 'import bigkern._C as c; print(c.supported_instruction_sets()[-1])')
export BIGKERN_INSTRUCTION_SETS
BIGKERN_INSTRUCTION_SETS=$(printf '%s\n' baseline "$highest" | uniq | xargs)
cd "$scratch"
# unsigned wrap-around and unaligned vector access are meant; everything else that UBSan knows is a bug
flags="-fsanitize=address,undefined -fno-sanitize=alignment -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
echo "== building $BIGKERN_INSTRUCTION_SETS with AddressSanitizer and UBSan in build/asan"
BIGKERN_CXXFLAGS="$flags -O1 -g1 -w" "$python" setup.py -q build_ext --inplace

# The scratch copy shadows the installed package; torch's own leaks at exit are not ours to report.
export PYTHONPATH=$scratch ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
export LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
# A run of the fast build would prove nothing.
"$python" - <<'END'
import os
import bigkern._C as c
assert c.__file__.startswith(os.getcwd()), c.__file__
assert c.supported_instruction_sets() == os.environ["BIGKERN_INSTRUCTION_SETS"].split(), c.build_error()
END
tests=("$@")
((${#tests[@]})) || tests=(tests/test_*.py)
# A sanitizer's report goes to the file descriptor that pytest's default capture would take, and then the process ends.
"$python" -m pytest -q --capture=sys -p no:cacheprovider --durations=0 --durations-min=5 \
    -k "cpu- and not derivatives" "${tests[@]}" | tee pytest.log
echo "== AddressSanitizer and UBSan found nothing in csrc/cpu ($BIGKERN_INSTRUCTION_SETS): $(tail -n 1 pytest.log)"
