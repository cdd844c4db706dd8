"""Every module can be imported by itself, and what is imported can be installed."""

import ast
import pathlib
import re
import subprocess
import sys

import jax
import pytest

REPOSITORY = pathlib.Path(__file__).parents[1]
# A distribution is named otherwise than what it is imported as.
DISTRIBUTIONS = {
    "orbax": "orbax-checkpoint",
    "absl": "absl-py",
    "tensorflow_datasets": "tensorflow-datasets",
    "math_verify": "math-verify",
}


def modules() -> list[str]:
    paths = sorted((REPOSITORY / "alphallm").rglob("*.py"))
    names = [".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in paths]
    return [name.removesuffix(".__init__") for name in names]


@pytest.mark.smallest
def test_every_module_can_be_imported():
    # One process, a fresh one: flags and compiled functions of the mains stay out of this one.
    code = f"import importlib\nfor name in {modules()!r}:\n    importlib.import_module(name)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_what_is_imported_is_required_by_setup():
    requirements = (REPOSITORY / "setup.py").read_text()
    required = {
        re.match(r"[\w-]+", text).group() for text in re.findall(r'^    "([^"]+)",', requirements, re.MULTILINE)
    }
    assert "jax" in required
    imported = set()
    for path in (REPOSITORY / "alphallm").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add((node.module or "").partition(".")[0])
    foreign = imported - sys.stdlib_module_names - {"alphallm"}
    assert {DISTRIBUTIONS.get(name, name) for name in foreign} <= required


def test_the_suite_runs_with_the_settings_of_conftest():
    assert jax.local_device_count() >= 2 or jax.default_backend() != "cpu"
    with pytest.raises(ValueError, match="rank_promotion"):
        jax.numpy.zeros((2, 3)) + jax.numpy.zeros(3)
