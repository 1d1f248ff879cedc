#!/usr/bin/env bash
# Builds the C++ module with AddressSanitizer and UndefinedBehaviorSanitizer into a folder of its own and runs the
# tests of the CPU kernels with it: `tests/run_asan.sh [test files]`.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "${PYTHON:-.venv/bin/python}")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
git ls-files -z | xargs -0 cp --parents -t "$scratch"
cd "$scratch"
# unsigned wrap-around and unaligned vector access are meant; everything else that UBSan knows is a bug
flags="-fsanitize=address,undefined -fno-sanitize=alignment -fno-sanitize-recover=undefined -fno-omit-frame-pointer -O1"
BIGKERN_CXXFLAGS="$flags" "$python" setup.py -q build_ext --inplace
# The scratch copy shadows the installed package; torch's own leaks at exit are not ours to report.
export PYTHONPATH="$scratch" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
export LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
# A run of the fast build would prove nothing.
"$python" -c 'import bigkern._C as c, os; path = c.best().__file__; assert path.startswith(os.getcwd()), path'
tests=("$@")
((${#tests[@]})) || tests=(tests/test_{quantize,linear_act,cross_entropy,attention,int8_linear,sgd,adam,rmsprop,adagrad,grad_norm,optim}.py)
"$python" -m pytest -q -p no:cacheprovider -k "cpu and not opcheck and not compile" "${tests[@]}"
