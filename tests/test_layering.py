"""Imports run one way, downwards, and each third-party library has one home."""

import ast
import pathlib
from collections.abc import Iterator

import pytest

REPOSITORY = pathlib.Path(__file__).parents[1]

# A module may import those of the rows above its own, and of its own package.
LAYERS = [
    {"errors"},
    {"types", "config", "display", "noise"},
    {"tasks", "models", "losses"},
    {"decode"},
    {"search"},
    {"evaluation"},
    {"training"},
    {"train", "evaluate", "solve", "convert", "memory", "filter_calls"},  # the mains
]
MAINS = LAYERS[-1]
LAYER = {unit: number for number, units in enumerate(LAYERS) for unit in units}

# Who may import what from outside. Libraries that are not named are free.
HOMES = {
    "absl.app": {"config", *MAINS},
    "absl.flags": {"config", *MAINS},
    "rich": {"display"},
    "tensorflow_datasets": {"tasks"},
    "array_record": {"tasks"},
    "grain": {"tasks"},
    "tokenizers": {"tasks"},
    "math_verify": {"tasks"},
    "latex2sympy2_extended": {"tasks"},
    "flax": {"models"},
    "safetensors": {"models"},
    "mctx": {"search"},
    "matplotlib": {"evaluation"},
    "optax": {"training"},
    "orbax": {"training"},
    "tensorboardX": {"training"},
    "tensorflow": set(),
    "configs": set(),
    "experiments": set(),
    "colab": set(),
    "tests": set(),
}
PMAP_HOME = "alphallm/training/parallel.py"


def imported_names(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, relative ones made absolute, `from a import b` as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def violations(root: pathlib.Path) -> list[str]:
    """What is wrong with the imports of `root`/alphallm, a sentence each."""
    found = []
    for path in sorted((root / "alphallm").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts == ("alphallm", "__init__"):
            continue
        unit, where = parts[1], path.relative_to(root).as_posix()
        if unit not in LAYER:
            found.append(f"{where}: {unit!r} has no layer; give it one in LAYERS of tests/test_layering.py.")
            continue
        tree = ast.parse(path.read_text())
        for line, name in imported_names(tree, parts[:-1]):
            found += [f"{where}:{line}: {problem}" for problem in problems_of_import(unit, name)]
        found += [f"{where}:{line}: pmap belongs into {PMAP_HOME}" for line in pmaps(tree) if where != PMAP_HOME]
    return found


def problems_of_import(unit: str, name: str) -> list[str]:
    first, _, rest = name.partition(".")
    if first == "alphallm":
        other = rest.partition(".")[0]
        if other == unit:
            return []
        if other not in LAYER:
            return [f"imports {name}, which has no layer"]
        if LAYER[other] < LAYER[unit]:
            return []
        return [f"{unit} imports {'sideways' if LAYER[other] == LAYER[unit] else 'upwards'}: {name}"]
    return [
        f"{library} may be imported in {', '.join(sorted(homes)) or 'no module'} only"
        for library, homes in HOMES.items()
        if (name == library or name.startswith(library + ".")) and unit not in homes
    ]


def pmaps(tree: ast.AST) -> list[int]:
    """The lines that use JAX's own pmap."""
    lines = [line for line, name in imported_names(tree, ()) if name == "jax.pmap"]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "pmap" and ast.unparse(node.value) == "jax":
            lines.append(node.lineno)
    return lines


def test_the_library_keeps_its_layers():
    assert violations(REPOSITORY) == []


@pytest.mark.parametrize(
    ("path", "code", "words"),
    [
        ("tasks/game24.py", "from alphallm.search import tree", "tasks imports upwards: alphallm.search.tree"),
        ("tasks/game24.py", "from alphallm import models", "tasks imports sideways: alphallm.models"),
        ("tasks/game24.py", "def f():\n    import alphallm.training.loop", "game24.py:2: tasks imports upwards"),
        ("evaluation/run.py", "from ..training import loop", "evaluation imports upwards: alphallm.training.loop"),
        ("evaluation/deep/run.py", "from ...training import loop", "upwards"),
        ("errors.py", "from alphallm.config import x", "upwards"),
        ("solve.py", "import alphallm.train", "sideways"),
        ("losses.py", "import optax", "optax may be imported in training only"),
        ("decode.py", "import mctx", "mctx may be imported in search only"),
        ("decode.py", "from math_verify import verify", "math_verify may be imported in tasks only"),
        ("training/loop.py", "import flax.nnx as nnx", "flax may be imported in models only"),
        ("training/loop.py", "from absl import flags", "absl.flags"),
        ("training/loop.py", "from configs import debug", "configs may be imported in no module"),
        ("training/loop.py", "import jax\nf = jax.pmap(g)", "loop.py:2: pmap belongs into"),
        ("training/loop.py", "from jax import pmap", "pmap belongs into"),
        ("extra/x.py", "", "'extra' has no layer"),
        ("decode.py", "from alphallm import extra", "which has no layer"),
    ],
)
def test_a_violation_is_found(tmp_path, path, code, words):
    file = tmp_path / "alphallm" / path
    file.parent.mkdir(parents=True)
    file.write_text(code)
    found = violations(tmp_path)
    assert len(found) == 1
    assert words in found[0]


def test_what_is_allowed_is_not_a_violation(tmp_path):
    files = {
        "__init__.py": "",
        "errors.py": "",
        "config.py": "from alphallm.errors import UserError\nfrom absl import app",
        "search/__init__.py": "from alphallm.search.tree import search",
        "search/tree.py": "import mctx\nfrom . import puct\nfrom alphallm import decode\nfrom absl import logging",
        "training/parallel.py": "import jax\nimport optax\npmap = jax.pmap",
        "training/loop.py": "from alphallm.evaluation import run\nfrom .parallel import pmap\nf = parallel.pmap(g)",
        "train.py": "from absl import flags\nfrom alphallm.training import loop",
    }
    for name, code in files.items():
        (tmp_path / "alphallm" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "alphallm" / name).write_text(code)
    assert violations(tmp_path) == []
