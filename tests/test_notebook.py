"""The notebook's cells run, with a config small enough for a test."""

import pathlib

import nbclient
import nbformat

from experiments import survival

_NOTEBOOK = pathlib.Path("colab/quickstart.ipynb")


def test_every_cell_runs(tmp_path):
    overrides = {**survival.TINY, "training.overfit": "", "training.num_iterations": 2, "evaluation.num_problems": 4}
    small = {
        'workdir = "runs/quickstart"': f'workdir = "{tmp_path / "run"}"',
        'options = ""': f'options = "{" ".join(f"--config.{field}={value}" for field, value in overrides.items())}"',
        "--num_problems=64 --budgets=600,1200": "--num_problems=4 --budgets=600",
    }
    notebook = nbformat.read(survival.REPOSITORY / _NOTEBOOK, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if "git clone" not in cell.source]
    for written, changed in small.items():
        assert sum(written in cell.source for cell in notebook.cells) == 1, written
        for cell in notebook.cells:
            cell.source = cell.source.replace(written, changed)
    client = nbclient.NotebookClient(notebook, resources={"metadata": {"path": survival.REPOSITORY}}, timeout=600)
    client.execute()

    shown = ["".join(output.get("text", "") for output in cell.get("outputs", [])) for cell in notebook.cells]
    # A command that fails does not stop a notebook, but it says so.
    commands = {cell.source: text for cell, text in zip(notebook.cells, shown, strict=True) if "!python" in cell.source}
    assert len(commands) == 4
    for command, text in commands.items():
        assert "rror" not in text, f"{command}\n{text}"
    solved = next(text for command, text in commands.items() if "solve" in command)
    assert "accepts" in solved
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
