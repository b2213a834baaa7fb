#!/bin/sh
# All checks on a GPU with the Python that is on the PATH: see `gpu_check.sh --help`.
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu_check.py" "$@"
