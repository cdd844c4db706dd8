"""The notebooks run from top to bottom, with settings small enough for a test, and give commands that there are."""

import re

import nbclient
import nbformat
import pytest

from alphallm.config import apply_overrides, load_config
from experiments import survival

_FOLDER = survival.REPOSITORY / "colab"
_NAMES = sorted(path.stem for path in _FOLDER.glob("*.ipynb"))
_TINY = {**survival.TINY, "training.overfit": "", "training.num_iterations": 2, "evaluation.num_problems": 4}
# What a notebook's settings are replaced with.
_SETTINGS = {
    "quickstart": {
        "options": " ".join(f"--config.{name}={value}" for name, value in _TINY.items()),
        "compared": "--num_problems=4 --budgets=100 --modes=verified",
    },
    "search_vs_best_of_n": {"options": "--num_problems=4 --budgets=100", "strategies": "greedy,best_of_n,search"},
}
_COMMANDS = {"quickstart": 3, "search_vs_best_of_n": 1}
_FIGURES = {"quickstart": 2, "search_vs_best_of_n": 4}


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(_FOLDER / f"{name}.ipynb", as_version=4)


def code_of(name: str) -> str:
    """The code of all cells, every command on one line."""
    cells = [cell.source for cell in read(name).cells if cell.cell_type == "code"]
    return "\n".join(cells).replace("\\\n", " ")


@pytest.mark.parametrize("name", _SETTINGS)
def test_every_cell_runs(name, tmp_path):
    notebook = read(name)
    settings = {**_SETTINGS[name], "workdir": str(tmp_path), "output": str(tmp_path)}
    place = next(number for number, cell in enumerate(notebook.cells) if "settings[platform]" in cell.source)
    lines = [f"{variable} = {value!r}" for variable, value in settings.items()]
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    # A TPU has room for one process: the commands', so the notebook's own must leave it alone.
    idle = "from jax._src import xla_bridge\n\nassert not xla_bridge.backends_are_initialized()"
    notebook.cells.append(nbformat.v4.new_code_cell(idle))
    client = nbclient.NotebookClient(notebook, resources={"metadata": {"path": survival.REPOSITORY}}, timeout=600)
    client.execute()

    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    commands = [cell for cell in cells if "!python -m" in cell.source]
    assert len(commands) == _COMMANDS[name]
    for cell in commands:  # A command that fails does not stop a notebook, but it says so.
        text = "".join(output.get("text", "") for output in cell.outputs)
        assert text and "rror" not in text, f"{cell.source}\n{text}"
    data = [output.get("data", {}) for cell in cells for output in cell.outputs]
    assert sum("image/png" in each for each in data) == _FIGURES[name]
    assert any("search" in each.get("text/plain", "") for each in data)
    pages = [each["text/html"] for each in data if "srcdoc" in each.get("text/html", "")]
    assert all("4 5 6 10" in page for page in pages) and len(pages) == (name == "quickstart")


@pytest.mark.parametrize("name", _NAMES)
def test_it_opens_in_colab_and_defines_nothing(name):
    notebook = read(name)
    nbformat.validate(notebook)
    link = f"https://colab.research.google.com/github/alphallm/alphallm/blob/main/colab/{name}.ipynb"
    assert f"({link})" in notebook.cells[0].source
    if name != "new_task":  # which is there to define one
        assert not re.search(r"^\s*(def|class|async def) ", code_of(name), re.MULTILINE)


@pytest.mark.parametrize("name", _NAMES)
def test_its_outputs_are_those_that_anybody_would_see(name):
    outputs = [output for cell in read(name).cells for output in cell.get("outputs", [])]
    if name in _FIGURES:
        assert sum("image/png" in output.get("data", {}) for output in outputs) == _FIGURES[name]
    assert "error" not in [output.output_type for output in outputs]
    words = [output.get("text", "") + str(output.get("data", {}).get("text/plain", "")) for output in outputs]
    assert not re.search(r"/(work|tmp|root|home|Users)/|Traceback|WARNING", "\n".join(words))


@pytest.mark.parametrize("name", _NAMES)
def test_every_flag_exists(name):
    code = code_of(name)
    # Flags may stand in variables, those of all devices in the dict of settings.
    kept = dict(re.findall(r'^(\w+) = f?"(--[^"\n]*)"', code, re.MULTILINE))
    kept["options"] = " ".join(re.findall(r'^    "\w+": "(--[^"\n]*)",$', code, re.MULTILINE))
    commands = re.findall(r"!python -m alphallm\.(\w+)([^|\n]*)", code)
    assert commands or name == "new_task"  # which calls the library instead
    for module, arguments in commands:
        main = (survival.REPOSITORY / "alphallm" / f"{module}.py").read_text(encoding="utf-8")
        known = set(re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', main))
        known |= {"config."} if "takes_overrides=True" in main else set()
        arguments = re.sub(r"\{(\w+)\}", lambda match: kept.get(match[1], match[0]), arguments)
        given = {"config." if "." in flag else flag for flag in re.findall(r"--([\w.]+)", arguments)}
        assert given <= known, f"{module} has no {given - known}"
    overrides = re.findall(r"--config\.([\w.]+)=([^\s\"'{}]+)", code)
    if overrides and name != "new_task":  # which writes its config itself
        config = load_config(survival.REPOSITORY / re.findall(r"configs/\w+\.py", code)[0])
        for field, value in overrides:
            apply_overrides(config, {field: value})
