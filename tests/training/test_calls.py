"""Toolformer's filter, with a model of which it is known what helps it."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alphallm.models import LanguageModel, ModelConfig
from alphallm.tasks import TextConfig, make_task
from alphallm.tasks.examples import Example
from alphallm.training.calls import Call, calls_of, without_useless
from tests.tasks import worked


class Copying(LanguageModel):
    """Finds every token likelier that occurs before, in the prompt or in the solution."""

    def trunk(self, params, tokens_BX, positions_BX, mask_BXX, past=()):
        seen = jnp.einsum("bxs,bsv->bxv", mask_BXX.astype(jnp.float32), jax.nn.one_hot(tokens_BX, self.vocabulary_size))
        return types.SimpleNamespace(hidden_BXE=seen)

    def logits(self, params, hidden_E):
        return 4.0 * jnp.minimum(hidden_E, 1.0)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder / "tfds"))
        yield make_task(TextConfig(name="jsonl", manual_dir=worked.write(folder), vocabulary_size=400, calculator=True))


def model_of(task) -> LanguageModel:
    shape = ModelConfig(num_layers=1, width=8, num_heads=1, num_kv_heads=1, head_dim=8, hidden_dim=8)
    return Copying(shape, task.vocabulary.size)


def test_a_call_helps_where_its_result_is_used(task):
    # The result 99 is written next; 88 is not, and the digit 4 stands in the question.
    example = Example("What about 4?", "So <<66+33=99>>99 is it.\nAnd <<77+11=88>>: none.\nOr <<2+2=4>>4.\n#### 4", "4")
    (calls,) = calls_of(model_of(task), {}, task, [example])
    assert [example.solution[call.start : call.end] for call in calls] == ["<<66+33=99>>", "<<77+11=88>>", "<<2+2=4>>"]
    helps, useless, known = (call.gain for call in calls)
    assert helps > 0.8 and useless < 0.1 and known < 0.1
    kept = without_useless(example, calls, 0.8)
    assert kept.solution == "So <<66+33=99>>99 is it.\nAnd : none.\nOr 4.\n#### 4"
    assert (kept.question, kept.answer) == (example.question, example.answer)


def test_the_gain_is_that_of_its_definition(task):
    model = model_of(task)
    example = Example("Ann has 3?", "Ann has <<30*3=90>>90 and more.\n#### 90", "90")
    (calls,) = calls_of(model, {}, task, [example])
    weights, after = [1 / 3, 0.8 / 3, 0.2, 0.4 / 3, 0.2 / 3], task.encode_solution("90 and more.\n#### 90")[:5]

    def loss(call):
        tokens, total = task.prompt(example.question) + task.encode_solution("Ann has ") + call, 0.0
        for weight, token in zip(weights, after, strict=True):
            seen = np.isin(np.arange(task.vocabulary.size), tokens)
            log_probs = np.asarray(jax.nn.log_softmax(4.0 * seen))
            total -= weight * log_probs[token]
            tokens = [*tokens, token]
        return total

    without_result = task.vocabulary.encode("<<30*3=") + task.vocabulary.encode(">>")
    losses = [loss(call) for call in ([], without_result, task.encode_solution("<<30*3=90>>"))]
    assert calls[0].gain == pytest.approx(min(losses[:2]) - losses[2], abs=1e-4)
    assert [type(call) for call in calls] == [Call]


def test_more_sequences_than_fit_at_once_change_nothing(task):
    examples = [Example(row["question"], row["answer"]) for row in worked.rows(0, 20)]
    together = calls_of(model_of(task), {}, task, examples)
    assert [len(calls) for calls in together] == [2] * 20
    for example, calls in list(zip(examples, together, strict=True))[::7]:
        (alone,) = calls_of(model_of(task), {}, task, [example])
        np.testing.assert_allclose([c.gain for c in alone], [c.gain for c in calls], atol=1e-4)
    assert calls_of(model_of(task), {}, task, [Example("No calls?", "None.\n#### 1", "1")]) == [[]]
