"""The notebook that adds a task is the example of docs/tasks.md, and runs from top to bottom with a small setting."""

import re
import textwrap

import nbclient
import nbformat

from experiments import survival
from tests.tasks import page

_PATH = survival.REPOSITORY / "colab" / "new_task.ipynb"


def read() -> nbformat.NotebookNode:
    notebook = nbformat.read(_PATH, as_version=4)
    nbformat.validate(notebook)
    return notebook


def shown(notebook) -> str:
    """All text that the cells' outputs hold."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs)


def test_it_has_the_code_of_the_page():
    code = [cell.source for cell in read().cells if cell.cell_type == "code"]
    task, config = page.blocks()
    assert task.strip() in code
    fields = textwrap.dedent(config[config.index("    return Config(") :]).removeprefix("return ").strip()
    assert sum(f"config = {fields}" in source for source in code) == 1
    # It defines the task, and nothing else.
    assert not re.search(r"^\s*(def|class) ", "\n".join(source for source in code if source != task.strip()), re.M)


def test_its_outputs_are_as_a_user_sees_them():
    notebook = read()
    assert notebook.metadata == {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    words = shown(notebook)
    assert not re.search(r"/(work|tmp|root|home|Users)/|Traceback|WARNING", words)
    assert "iteration" in words and "right" in words
    ran = [
        cell
        for cell in notebook.cells
        if cell.cell_type == "code" and "skip-execution" not in cell.metadata.get("tags", [])
    ]
    assert [cell.execution_count for cell in ran] == list(range(1, len(ran) + 1))


def test_every_cell_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    notebook = read()
    notebook.cells = [cell for cell in notebook.cells if "skip-execution" not in cell.metadata.get("tags", [])]
    place = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    small = {**page.TINY, "training.overfit": "", "evaluation.num_problems": 4}
    lines = [
        "from alphallm.config import apply_overrides",
        f"config = apply_overrides(config, {small!r})",
        f"workdir = {str(tmp_path / 'run')!r}",
    ]
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    client = nbclient.NotebookClient(notebook, resources={"metadata": {"path": survival.REPOSITORY}}, timeout=300)
    client.execute()

    words = shown(notebook)
    assert re.search(r"^a1 to b2: .* \((right|wrong); 4 moves are needed\)$", words, re.M)
    assert "CpuDevice(id=1)" in words  # Both of the test's devices are used.
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
