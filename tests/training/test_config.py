import dataclasses
import math

import pytest

from alphallm.config import apply_overrides
from alphallm.errors import UserError
from alphallm.training.config import Config


def numbers():
    for group in ("warm_start", "optimizer", "search", "targets", "training", "evaluation", "checkpoints"):
        for field in dataclasses.fields(getattr(Config(), group)):
            if field.type in (int, float):
                yield f"{group}.{field.name}", field.type


@pytest.mark.parametrize(("path", "kind"), numbers())
def test_a_number_out_of_range_is_refused(path, kind):
    for value in (-1,) if kind is int else (-0.1, math.nan):
        with pytest.raises(UserError, match=f"{path.split('.')[0]}: {path.split('.')[1]} is {value}: give"):
            apply_overrides(Config(), {path: value})


@pytest.mark.parametrize(
    ("path", "value"), [("search.min_p", 1.5), ("targets.legal_share", 2.0), ("optimizer.ema_decay", 1.1)]
)
def test_a_share_is_at_most_one(path, value):
    with pytest.raises(UserError, match=f"is {value}: give a number from 0 to 1"):
        apply_overrides(Config(), {path: value})
