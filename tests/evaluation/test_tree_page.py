"""The page of a searched tree: its data, and, where there is a Chromium, what a browser makes of it."""

import dataclasses
import html.parser
import json
import re
import shutil
import subprocess
import types

import numpy as np
import pytest

from alphallm.errors import UserError
from alphallm.evaluation import tree_page
from alphallm.search import SearchConfig, best_answer
from tests.search import tabular

MODEL = tabular.TabularModel()
TASK = tabular.TabularTask(max_steps=4, done=0.15, illegal=0.1)
PARAMS = MODEL.init(0)
PUCT = SearchConfig(policy="puct", num_simulations=24, num_candidates=5)
# Tokens as text, with what must be escaped in a page.
TEXTS = types.SimpleNamespace(
    vocabulary=types.SimpleNamespace(decode=lambda tokens: f"<b>{[*map(int, tokens)]}</script>")
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def searched(config, seeds=(0, 1, 2), task=TASK):
    return tabular.searched(MODEL, task, config, PARAMS, seeds, True, True)


def first_of(tree, b):
    return dataclasses.replace(
        tree, **{field.name: getattr(tree, field.name)[b : b + 1] for field in dataclasses.fields(tree)}
    )


def page(tree):
    return tree_page.page(TEXTS, "4 < 9 & </script>", tree, best_answer(tree, 4, 0), "how", "what")


def content(text):
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)[1])


def test_the_replay_is_what_shorter_searches_know():
    """A simulation of PUCT does not depend on how many follow, so a short search begins a longer one."""
    tree = searched(PUCT)
    compared = 0
    for simulations in (2, 11):
        shorter = searched(dataclasses.replace(PUCT, num_simulations=simulations))
        for b in range(3):
            full, part = tree_page.histories(tree, b), tree_page.histories(shorter, b)
            for n in range(simulations + 1):
                if n not in part or len(np.flatnonzero(shorter.expanded_BN[b])) <= simulations:
                    continue  # A tree known exactly before its end: the last entries are summed up.
                seen = sum(at <= simulations for at in full[n].simulation)
                assert seen == shorter.visits_BN[b, n]
                assert full[n].value[seen - 1] == pytest.approx(float(shorter.value_BN[b, n]), abs=1e-5)
                compared += 1
    assert compared > 15


@pytest.mark.parametrize("policy", ["gumbel", "puct"])
def test_a_history_ends_with_the_tree_s_own_visits_and_values(policy):
    # Short answers, so that some trees are known exactly before their simulations are over.
    task = tabular.TabularTask(max_steps=2, done=0.5)
    tree = searched(dataclasses.replace(PUCT, policy=policy), seeds=range(8), task=task)
    exhausted = 0
    for b in range(8):
        exhausted += tree.expanded_BN[b].sum() < 25
        for n, history in tree_page.histories(tree, b).items():
            assert len(history.simulation) == len(history.value) == tree.visits_BN[b, n]
            assert history.simulation[0] == n and history.simulation == sorted(history.simulation)
            assert history.value[-1] == pytest.approx(float(tree.value_BN[b, n]), abs=1e-5)
    assert exhausted


def test_the_page_holds_every_candidate_and_nothing_from_elsewhere():
    tree = first_of(searched(PUCT), 0)
    text = page(tree)
    data = content(text)
    assert data["problem"] == "4 < 9 & </script>" and data["last"] <= data["simulations"] == 24
    assert not re.search(r"(src|href|url)\s*[=(]|https?:", text)
    written = [(n, int(k)) for n in np.flatnonzero(tree.expanded_BN[0]) for k in np.flatnonzero(tree.written_BNK[0, n])]
    shown = [(n, c["k"]) for n, node in enumerate(data["nodes"]) if node for c in node["candidates"]]
    assert shown == written
    best = best_answer(tree, 4, 0)
    assert data["path"] == [[n, k] for n, k in zip(best.node_BD[0], best.action_BD[0], strict=True) if n >= 0]
    for n, k in written:
        shown_one = next(c for c in data["nodes"][n]["candidates"] if c["k"] == k)
        assert shown_one["reward"] == pytest.approx(float(tree.reward_BNK[0, n, k]), abs=1e-5)
        assert shown_one["done"] == tree.done_BNK[0, n, k] and shown_one["legal"] == tree.legal_BNK[0, n, k]
        child = tree.children_BNK[0, n, k]
        assert shown_one["child"] == (child if child > 0 and tree.expanded_BN[0, child] else -1)


def test_a_folder_that_is_not_there_is_told(tmp_path):
    tree = first_of(searched(PUCT), 0)
    with pytest.raises(UserError, match="give another --tree"):
        tree_page.write(tmp_path / "no" / "tree.html", TEXTS, "", tree, best_answer(tree, 4, 0), "", "")


class _Rows(html.parser.HTMLParser):
    """The text of every row of the tree, and the body's data."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.data, self._inside = [], {}, False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag == "body":
            self.data = values
        if values.get("role") == "treeitem":
            self.rows.append([values["class"].split(), ""])
            self._inside = True
        if tag in ("noscript", "script"):
            self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.rows[-1][1] += data + " "


def browsed(folder, text, fragment, width=1200):
    """The page's rows after its script has run in a window of this width."""
    path = folder / "tree.html"
    measure = (
        "<script>document.body.dataset.overflow = document.documentElement.scrollWidth - innerWidth</script></body>"
    )
    path.write_text(text.replace("</body>", measure), encoding="utf-8")
    options = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        f"--disable-component-update --disable-sync --window-size={width},900 --virtual-time-budget=5000 --dump-dom"
    )
    command = [CHROMIUM, *options.split(), f"--user-data-dir={folder / 'profile'}", f"{path.as_uri()}#{fragment}"]
    return _Rows(subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("simulations", [9, 99, 999])
def test_a_browser_draws_it(tmp_path, simulations):
    task = tabular.TabularTask(max_steps=8, max_step=3, vocabulary_size=8, done=0.05, illegal=0.1)
    tree = first_of(searched(dataclasses.replace(PUCT, num_simulations=simulations, num_candidates=8), task=task), 0)
    text = tree_page.page(TEXTS, "4 < 9 & </script>", tree, best_answer(tree, 8, 0), "how", "what")
    expanded = int(tree.expanded_BN[0].sum())
    assert expanded == simulations + 1
    for width in (500, 1200):
        shown = browsed(tmp_path, text, "open=all", width)
        assert int(shown.data["data-overflow"]) <= 0
        assert len([row for row in shown.rows if "more" not in row[0]]) >= expanded
        assert len([row for row in shown.rows if "path" in row[0]]) == len(content(text)["path"])
        assert sum("accepted" in row[1] for row in shown.rows) > 0
    half = simulations // 2
    earlier = browsed(tmp_path, text, f"open=all&simulation={half}")
    assert int(re.search(r"visits\s+(\d+)", earlier.rows[0][1])[1]) == half + 1
    assert any("now" in row[0] for row in earlier.rows)
