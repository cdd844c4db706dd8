"""The replay: a ring of rows for each lane."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alphallm.training import replay
from alphallm.training.targets import Row
from alphallm.types import Problem

LANES = 3


def batch(time, valid=True):
    """Rows and problems [lanes] whose numbers say where they come from: 100 * time + 10 * lane."""
    number = 100 * time + 10 * jnp.arange(LANES)
    fields = dict.fromkeys(Row.__dataclass_fields__, number) | {"valid": jnp.full(LANES, valid)}
    return Row(**fields), Problem(number[:, None], number, {"x": number}, number)


def filled(times, capacity=5, **options):
    stored = replay.empty(*batch(0), capacity)
    for time in times:
        stored = jax.jit(replay.add)(stored, *batch(time, **options))
    return stored


def draw(stored, num, seed=0, lanes=slice(None)):
    keys = jax.random.split(jax.random.key(seed), LANES)[lanes]
    return replay.sample(stored, keys, num)[0]


def test_new_rows_take_the_place_of_the_oldest():
    stored = filled([1, 2, 3], capacity=2)
    for lane in range(LANES):
        assert sorted(np.asarray(stored.rows.prompt_length[lane]) - 10 * lane) == [200, 300]
        assert sorted(np.asarray(stored.problem.index[lane]) - 10 * lane) == [200, 300]
    assert stored.added == 3


def with_fields(stored, **fields):
    return replay.Replay(Row(**(vars(stored.rows) | fields)), stored.problem, stored.added)


def test_only_valid_rows_are_drawn_each_as_often():
    valid = jnp.array([[True, False, True, True], [False, False, False, True], [False] * 4])
    rows = draw(with_fields(filled([1, 2, 3, 4], capacity=4), valid=valid), 3000)
    number = np.asarray(rows.prompt_length).reshape(LANES, -1)
    assert set(number[0]) == {100, 300, 400} and set(number[1]) == {410}
    np.testing.assert_allclose(np.unique(number[0], return_counts=True)[1] / 3000, 1 / 3, atol=0.05)
    np.testing.assert_array_equal(rows.valid, np.repeat([True, True, False], 3000))


def test_a_share_is_drawn_by_surprise():
    valid = jnp.array([[True, True, False, True], [True] * 4, [False] * 4])
    surprise = jnp.array([[1.0, 3.0, 50.0, 0.0], [0.0] * 4, [1.0] * 4])
    stored = with_fields(filled([1, 2, 3, 4], capacity=4), valid=valid, surprise=surprise)
    keys = jax.random.split(jax.random.key(0), LANES)
    rows, _ = replay.sample(stored, keys, 20_000, by_surprise=0.5)
    number = np.asarray(rows.prompt_length).reshape(LANES, -1)
    drawn = [[np.mean(number[lane] == 10 * lane + x) for x in (100, 200, 300, 400)] for lane in (0, 1)]
    np.testing.assert_allclose(drawn[0], [1 / 6 + 1 / 8, 1 / 6 + 3 / 8, 0, 1 / 6], atol=0.02)
    np.testing.assert_allclose(drawn[1], [1 / 4] * 4, atol=0.02)  # nothing surprises: uniform.
    np.testing.assert_array_equal(rows.valid, np.repeat([True, True, False], 20_000))
    rows, _ = replay.sample(stored, keys, 1000, by_surprise=1.0)
    assert set(np.asarray(rows.prompt_length[:1000])) == {100, 200}


@pytest.mark.parametrize("times", [[5], [5, 6], [5, 6, 7], [5, 6, 7, 8, 9]])
def test_a_row_is_as_old_as_the_batches_written_since(times):
    keys = jax.random.split(jax.random.key(0), LANES)
    rows, age = replay.sample(filled(times, capacity=2), keys, 50)
    np.testing.assert_array_equal(age, times[-1] - rows.prompt_length // 100)
    assert set(age.tolist()) == {0, 1} if len(times) > 1 else {0}


def test_a_partly_filled_ring_gives_only_what_was_stored():
    rows = draw(filled([1], capacity=8), 50)
    assert rows.valid.all() and (rows.prompt_length >= 100).all()
    assert not draw(filled([]), 5).valid.any()


def test_a_lane_is_drawn_the_same_in_any_company():
    stored = filled([1, 2])
    together = jax.tree.map(lambda x: x.reshape(LANES, -1), draw(stored, 4))
    alone = draw(replay.Replay(*jax.tree.map(lambda x: x[1:2], (stored.rows, stored.problem)), stored.added), 4,
                 lanes=slice(1, 2))  # fmt: skip
    np.testing.assert_array_equal(alone.prompt_length, together.prompt_length[1])


def test_problems_drawn_are_the_lanes_own_and_stored_ones():
    keys = jax.random.split(jax.random.key(0), LANES)
    seen = set()
    for i in range(20):
        folded = jax.vmap(lambda k, i=i: jax.random.fold_in(k, i))(keys)
        problem = replay.draw_problems(filled([1, 2], capacity=4), folded)
        seen |= set(np.asarray(problem.index) - 10 * np.arange(LANES))
        np.testing.assert_array_equal(problem.index, problem.state["x"])
    assert seen == {100, 200}
    assert (replay.draw_problems(filled([]), keys).index == 0).all()
