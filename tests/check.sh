#!/usr/bin/env bash
# Every check there is: format, lint, types, tests. Arguments go to pytest. From anywhere: tests/check.sh
set -euo pipefail
cd "$(dirname "$0")/.."
ruff format --check .
ruff check .
mypy
python -m pytest -q "$@"
