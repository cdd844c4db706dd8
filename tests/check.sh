#!/usr/bin/env bash
# Every check there is: format, lint, types, tests. Arguments go to pytest. From anywhere: tests/check.sh
set -euo pipefail
cd "$(dirname "$0")/.."
ruff format --check .
ruff check .
mypy
# Two processes, each with whole files: most of the time goes to compilation, which uses one core.
python -m pytest -q -n 2 --dist loadfile "$@"
