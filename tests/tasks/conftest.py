"""Fixtures of the task tests."""

import jax
import pytest


@pytest.fixture(autouse=True)
def raise_on_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield
