"""The memory planner: what it adds up is what the run holds."""

import types

import jax
import pytest

from alphallm import memory
from alphallm.config import apply_overrides, load_config
from alphallm.errors import UserError
from alphallm.training.loop import Trainer
from experiments import survival

CONFIG = apply_overrides(
    load_config(survival.REPOSITORY / survival.CONFIG), {**survival.TINY, "training.problems_per_iteration": 8}
)


@pytest.fixture(scope="module")
def plan():
    # The planner's functions are those of one device; the tests have two.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_device_count", lambda: 1)
        patch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
        yield memory.Plan(CONFIG)


def test_the_state_is_what_a_run_holds(plan):
    state = Trainer(CONFIG).initial_state()
    assert memory.size_of(plan.state) == memory.size_of(state)
    table = {row["part"]: row["GiB"] * memory.GIB for row in plan.table()}
    parts = ("trained parameters", "frozen parameters", "average of the trained", "optimizer", "replay")
    # The learner's step is a number, and so is the count of what the replay was given.
    assert sum(table[name] for name in parts) == pytest.approx(memory.size_of(state), abs=16)
    assert table["trained parameters"] == memory.size_of(state.learner.params)
    assert plan.needs["learn"].arguments >= memory.size_of(state)


def test_pages_are_those_of_the_search(plan):
    from alphallm.search.tree_search import _Expander

    key_B = jax.random.split(jax.random.key(0), 8)
    expander = _Expander(plan.trainer.model, plan.trainer.task, CONFIG.search, None, key_B, None, None)
    assert plan.pages == memory.size_of(expander.empty_pool())
    assert plan.needs["self-play"].temporary > plan.pages


def test_the_peak_is_that_of_the_function_that_needs_most(plan):
    assert plan.peak >= max(need.peak for need in plan.needs.values())
    assert set(plan.needs) == {"self-play", "learn", "warm start"}


def test_a_share_of_the_batch_and_wrong_options(monkeypatch):
    share = memory.share_of(CONFIG, 4)
    assert share.training.problems_per_iteration == 2
    with pytest.raises(UserError, match="--num_devices=3 must divide training.problems_per_iteration, which is 8"):
        memory.share_of(CONFIG, 3)
    for changed, words in (({"device": "v99"}, "Unknown device 'v99'"), ({"config": ""}, "Give --config=FILE")):
        options = {"config": survival.CONFIG, "device": "", "num_devices": 1, "measure": False, **changed}
        monkeypatch.setattr(memory.flags, "FLAGS", types.SimpleNamespace(**options))
        with pytest.raises(UserError, match=words):
            memory.main([], {})
