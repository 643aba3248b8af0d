#!/usr/bin/env bash
# On a GPU machine without network: unpack the wheels in $1 and run the rest of the line with them.
set -eu
site=$(mktemp -d)
for wheel in "$1"/*.whl; do python3 -m zipfile -e "$wheel" "$site"; done
shift
PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" "$@"
