#!/usr/bin/env bash
# For a GPU machine without network: wheels of this checkout and of what it needs beside torch and
# Triton, into the folder $1; the interpreter $2 (default: that of .venv) must have pip and setuptools.
# There: tests/device/run.sh FOLDER python3 -m archkey doctor
set -eu
out=$1
python=${2:-.venv/bin/python}
rm -f "$out"/archkey*.whl
"$python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$out" ./core ./plugins/*/
"$python" -m pip download --quiet --no-deps --only-binary :all: --dest "$out" \
  pluggy packaging nvidia-ml-py click rich markdown-it-py mdurl pygments platformdirs filelock
ls "$out"
