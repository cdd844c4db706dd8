"""What is measured while training, beside the solve rates (those are the evaluation's)."""

import jax
import numpy as np

from alphallm.models import LanguageModel, ModelConfig
from alphallm.tasks import ArithmeticConfig, data, make_task
from alphallm.training import validation

TASK = make_task(ArithmeticConfig(name="game24", max_step_tokens=6))
MODEL = LanguageModel(
    ModelConfig(num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_dim=8, hidden_dim=16), TASK.vocabulary.size
)
PARAMS = MODEL.init(jax.random.key(0))


def test_kl_is_zero_from_itself_and_positive_from_others():
    problems = data.load_problems(TASK, ["4 9 10 13", "1 1 4 6", "3 3 8 8"])
    kl = jax.jit(lambda params, reference: validation._kl(MODEL, TASK, params, reference, problems))
    np.testing.assert_allclose(kl(PARAMS, PARAMS), 0.0, atol=1e-3)
    far = jax.tree.map(lambda x: x + 0.5 * jax.random.normal(jax.random.key(x.size), x.shape), PARAMS)
    assert kl(far, PARAMS) > 1.0
    assert kl(PARAMS, far) > 1.0
