"""The example of docs/tasks.md is short and right, and trains. (That it keeps the contract says test_contract.py.)"""

from alphallm.config import apply_overrides, load_config
from alphallm.training.config import Config
from alphallm.training.loop import load_params, train

from . import page


def config_of_the_page(folder) -> Config:
    page.example()
    path = folder / "knight_cpu.py"
    path.write_text(page.blocks()[1], encoding="utf-8")
    return load_config(path)


def test_the_example_is_short():
    task, config = page.blocks()
    assert len(task.splitlines()) <= 80
    assert max(map(len, [*task.splitlines(), *config.splitlines()])) <= 120


def test_its_moves_are_those_of_chess():
    """There are 336 moves of a knight on the board, and every square is six moves or fewer away."""
    example = page.example()
    assert sum(map(len, example.JUMPS.values())) == 336
    assert all(a in example.JUMPS[b] for a in example.JUMPS for b in example.JUMPS[a])
    assert {*example.JUMPS["a1"]} == {"b3", "c2"}
    assert {*example.JUMPS["d4"]} == {"b3", "b5", "c2", "c6", "e2", "e6", "f3", "f5"}
    task = example.KnightConfig().make()
    lengths = [len(task.solutions(text)[0]) for text in example.PROBLEMS[::7]]
    assert max(lengths) <= 6 and len(task.solutions("a1 to h8")[0]) == 6 and len(task.solutions("a1 to b2")[0]) == 4


def test_it_trains_and_solves(tmp_path):
    """A problem of two moves is solved by heart."""
    config = apply_overrides(config_of_the_page(tmp_path), page.TINY)
    rates = train(config, str(tmp_path / "run"))
    assert rates["search"] == rates["greedy"] == 1
    assert load_params(str(tmp_path / "run"))[0] == config
