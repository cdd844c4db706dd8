"""Text tasks: the data, the prompt, the answers, and the step."""

import dataclasses
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alphallm.errors import UserError
from alphallm.tasks import ProblemError, TextConfig, TextTask, answers, data, examples, make_task
from alphallm.tasks.examples import Example, Fields
from alphallm.tasks.grader import Grader, extract
from tests.tasks import worked

GSM8K = pathlib.Path(__file__).parents[3] / "shared" / "data" / "gsm8k"
FIELDS = Fields("question", "answer", "")
M = 256


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return worked.write(tmp_path_factory.mktemp("worked"))


@pytest.fixture(autouse=True)
def datasets(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.getbasetemp() / "tfds"))


def config_of(folder, **changes) -> TextConfig:
    small = TextConfig(
        name="jsonl", manual_dir=folder, vocabulary_size=400, max_prompt_tokens=64, max_step_tokens=40, max_steps=4
    )
    return dataclasses.replace(small, **changes)


# The data.


def test_splits_are_read_and_disjoint(folder):
    splits = {split: data.load_split(config_of(folder), split) for split in data.SPLITS}
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 54, "validation": 6, "test": 12}
    questions = [row.question for rows in splits.values() for row in rows]
    assert len(set(questions)) == len(questions) == 72
    assert splits["test"][0].question == worked.rows(60, 1)[0]["question"]
    assert splits["test"][0].answer == worked.rows(60, 1)[0]["answer"].rpartition("#### ")[2]


@pytest.mark.skipif(not GSM8K.is_dir(), reason=f"GSM8K is not at {GSM8K}")
def test_gsm8k_is_what_it_was(tmp_path):
    splits, skipped = examples.split(examples.locate("gsm8k", str(GSM8K), tmp_path), FIELDS)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 6973, "validation": 500, "test": 1319}
    assert skipped == []
    questions = [" ".join(row.question.lower().split()) for rows in splits.values() for row in rows]
    assert len(set(questions)) == len(questions)
    for split, (_, checksum) in examples.SOURCES["gsm8k"].urls.items():
        examples.download((GSM8K / f"{split}.jsonl").as_uri(), checksum, tmp_path / "copy", "no help")


def test_bad_rows_are_left_out_and_told(tmp_path):
    lines = [json.dumps(row) for row in worked.rows(0, 30)]
    lines[2] = '{"question": "no answer here"}'
    lines[4] = "{not json"
    lines[6] = '{"question": "What?", "answer": "It ends without one."}'
    lines[8] = '{"question": "What?", "answer": ["a", "list"]}'
    lines[10] = lines[11]
    lines[12] = json.dumps({"question": " ", "answer": "#### 5"})
    lines[14] = "[1, 2]"
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n\n")
    taken = worked.rows(29, 5)  # The first one is in the training rows too, in other words' case.
    taken[0]["question"] = taken[0]["question"].upper()
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, taken)))
    splits, skipped = examples.split(examples.locate("jsonl", str(tmp_path), tmp_path), FIELDS)
    assert sum(map(len, splits.values())) == 30 - 7 - 1 + 5
    assert skipped == [
        "train.jsonl row 3: it has no field 'answer', only 'question'.",
        "train.jsonl row 5: it is no JSON (Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1)).",
        "train.jsonl row 7: there is no answer in 'answer': it ends neither in '#### ANSWER' nor in \\boxed{ANSWER}.",
        "train.jsonl row 9: its field 'answer' is list, not text or a number.",
        "train.jsonl row 12: the question is that of an earlier row.",
        "train.jsonl: 2 more of 31 lines.",
        "train.jsonl: 1 questions that test.jsonl has too.",
    ]
    # The builder tells them too, also when the dataset is there already.
    for _ in range(2):
        read = data.load_split(config_of(str(tmp_path)), "train")
        assert read == splits["train"]


def test_what_is_left_out_is_said(folder):
    with pytest.raises(UserError, match=r"No test problem of jsonl can be used.*12 of 12 test problems for a prompt"):
        data.load_split(config_of(folder, max_prompt_tokens=5), "test")
    assert len(data.load_split(config_of(folder, max_solution_steps=3), "test")) == 12
    with pytest.raises(UserError, match="No test problem"):
        data.load_split(config_of(folder, max_solution_steps=2), "test")


def test_an_answer_that_could_never_be_right_is_left_out(folder, tmp_path):
    rows = worked.rows(0, 20)
    rows[3]["answer"] = rows[3]["answer"].rpartition("####")[0] + "#### 3.5"
    for name in ("train", "test"):
        some = [{**row, "question": f"{name}: {row['question']}"} for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, some)))
    assert len(data.load_split(config_of(str(tmp_path)), "test")) == 19
    assert len(data.load_split(config_of(str(tmp_path), equality="math"), "test")) == 20


def test_answers_may_have_a_field_of_their_own(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"q": "One?", "a": 1}\n{"q": "Two?", "a": "2"}\n{"q": "Three?", "a": 3}\n')
    (tmp_path / "test.jsonl").write_text('{"q": "Three?", "a": 3.5}')
    splits, _ = examples.split(examples.locate("jsonl", str(tmp_path), tmp_path), Fields("q", "", "a"))
    assert splits["test"] == [Example("Three?", "#### 3.5", "3.5")]


def test_files_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="has no train.jsonl"):
        data.load_split(config_of(str(tmp_path)), "train")
    with pytest.raises(UserError, match="give task.manual_dir"):
        data.load_split(config_of(""), "train")
    nowhere = examples._Source(FIELDS, {"train": ((tmp_path / "nothing").as_uri(), "")})
    monkeypatch.setitem(examples.SOURCES, "gsm8k", nowhere)
    with pytest.raises(UserError, match="can not be downloaded|cannot be downloaded"):
        examples.locate("gsm8k", "", tmp_path)
    (tmp_path / "nothing").write_text("something else")
    with pytest.raises(UserError, match="unexpected checksum"):
        examples.locate("gsm8k", "", tmp_path)


# Answers inside compiled code.


@jax.jit
@jax.vmap
def compiled_extract(text):
    return answers.extract(text)


def extracted(texts: list[str]) -> list[str | None]:
    batch = jax.tree.map(lambda *x: np.stack(x), *(answers.text_of(text, M) for text in texts))
    found, there = jax.device_get(compiled_extract(batch))
    return [
        bytes(row[:n]).decode(errors="replace") if ok else None
        for row, n, ok in zip(found.bytes_M, found.length, there, strict=True)
    ]


KNOWN_TEXTS = [
    "#### 72", "so 3\n#### 1,000\n", "####7\nmore", "#### ", "####", "no answer", r"It is \boxed{5}.",
    r"\boxed{\frac{1}{2}} and", r"\boxed {3}", r"\boxed{1} \boxed{2", r"\boxed{ {a} } #### 4", r"#### 4 \boxed{5}",
    r"\boxed{\boxed{7}}", r"\boxed{\}}", r"\\boxed{3}", r"a } \boxed{3}", r"\boxed{}", "####\n\n 12\n", r"\boxed",
]  # fmt: skip


def test_known_answers_are_extracted():
    assert extracted(KNOWN_TEXTS) == [extract(text) for text in KNOWN_TEXTS]


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.lists(st.sampled_from(["#", "####", "\\boxed{", "\\boxed", "{", "}", "\\", "7", " ", "\n"])),
        min_size=8,
        max_size=8,
    )
)
def test_answers_are_those_that_the_grader_extracts(pieces):
    texts = ["".join(each)[:M] for each in pieces]
    assert extracted(texts) == [extract(text) for text in texts]


@jax.jit
@jax.vmap
def compare(one, other):
    one, other = answers.integer(one), answers.integer(other)
    return answers.equal_integers(one, other), one.valid


def compared(pairs):
    size = answers.MOST_BYTES
    stack = lambda texts: jax.tree.map(lambda *x: np.stack(x), *(answers.text_of(text, size) for text in texts))
    one, other = zip(*pairs, strict=True)
    return [np.asarray(x).tolist() for x in compare(stack(one), stack(other))]


@pytest.mark.parametrize(
    ("given", "valid"),
    [
        ("72", True), ("1,000", True), ("1000", True), ("$18", True), ("\\$18", True), ("-5", True), ("+5", True),
        ("18.00", True), ("18.", True), ("007", True), ("-$5", True), ("$-5", True), ("1,234,567", True),
        ("18.5", False), ("1,00", False), ("1,0000", False), ("1,000000", False), (",100", False), ("100,", False),
        ("1 000", False), ("", False), ("-", False), ("$", False), ("5-", False), ("5$", False), ("5 apples", False),
        ("1/2", False), ("5.0.0", False), ("--5", False), (".0", False), ("9" * 33, False), ("1" * 32, True),
    ],
)  # fmt: skip
def test_what_an_integer_is(given, valid):
    assert compared([(given, given)]) == [[valid], [valid]]
    assert answers.is_integer(given) == valid


def test_equal_integers_are_equal_for_the_grader_too():
    forms = ["72", "$72", "72.00", "072", "+72", "-72", "1,072", "1072", "27", "0", "-0", "7.2", "72.5", "\\$72", "720"]
    pairs = [(one, other) for one in forms for other in forms]
    equal, valid = compared(pairs)
    by_text = dict(zip(pairs, equal, strict=True))
    whole = {one for (one, other), ok in zip(pairs, valid, strict=True) if ok}
    assert whole == set(forms) - {"7.2", "72.5"}
    with Grader() as grader:
        verdicts = grader.grade([pair for pair in pairs if set(pair) <= whole])
    for pair, verdict in zip([pair for pair in pairs if set(pair) <= whole], verdicts, strict=True):
        assert by_text[pair] == verdict.right, pair
    assert not any(same for pair, same in by_text.items() if not set(pair) <= whole)


# The task.


def walk(task: TextTask, example: Example, steps: list[list[int]]):
    """The transitions of steps one after the other, compiled."""
    state, found = task.load(example, 0).state, []
    step = jax.jit(task.step)
    for tokens in steps:
        padded = np.full(task.max_step, task.vocabulary.pad, np.int32)
        padded[: len(tokens)] = tokens
        found.append(step(state, jnp.asarray(padded), jnp.int32(len(tokens))))
        state = found[-1].state
    return found


@pytest.mark.parametrize("calculator", [False, True])
def test_a_reference_solution_is_right_and_another_answer_is_wrong(folder, calculator):
    config = config_of(folder, calculator=calculator)
    task = make_task(config)
    assert not task.self_verifying
    for example in data.load_split(config, "test")[:3]:
        (steps,) = task.solutions(example)
        text = "".join(task.vocabulary.decode(step) for step in steps)
        assert text == (example.solution if calculator else re.sub("<<.*?>>", "", example.solution))
        assert steps[-1][-1] == task.vocabulary.eos
        found = walk(task, example, steps)
        assert [bool(each.done) for each in found] == [False, False, True]
        assert [float(each.reward) for each in found] == [0.0, 0.0, 1.0]
        assert all(bool(each.legal) for each in found)
        # The reward is the only thing that depends on the answer.
        other = dataclasses.replace(example, answer="99999")
        changed = walk(task, other, steps)
        assert [float(each.reward) for each in changed] == [0.0, 0.0, 0.0]
        for one, two in zip(found, changed, strict=True):
            assert (one.done, one.legal, one.state.steps_done) == (two.done, two.legal, two.state.steps_done)


def test_how_a_chain_ends(folder):
    task = make_task(config_of(folder))
    example = data.load_split(task.config, "test")[0]
    line, eos = task.vocabulary.encode("Ann has 2 apples.\n"), task.vocabulary.eos
    right = task.vocabulary.encode(f"#### {example.answer}\n")
    done = lambda steps: [bool(each.done) for each in walk(task, example, steps)]
    assert done([line, [*line[:-1], eos]]) == [False, True]  # ended without an answer
    assert done([line] * 4) == [False, False, False, True]  # no room for another step
    found = walk(task, example, [right, right])
    assert [float(each.reward) for each in found] == [1.0, 0.0]  # what follows an answer earns nothing
    assert [bool(each.legal) for each in found] == [True, False]
    unknown = walk(task, Example(example.question), [right])
    assert float(unknown[0].reward) == 0.0


def test_other_answers_are_graded_on_the_host(folder):
    config = config_of(folder, equality="math", max_step_tokens=48)
    task = make_task(config)
    cases = [
        (r"\frac{1}{2}", r"\boxed{0.5}", 1.0), (r"\frac{1}{2}", r"\boxed{\frac{2}{4}}", 1.0),
        ("7", r"\boxed{7.0}", 1.0),
        (r"\frac{1}{2}", r"\boxed{\frac{1}{3}}", 0.0), ("7", r"\boxed{8}", 0.0), ("7", r"\boxed{x}", 0.0),
        (r"\frac{1}{2}", "no answer", 0.0),
    ]  # fmt: skip
    problems = [task.load(Example("What?", "", answer), i) for i, (answer, _, _) in enumerate(cases)]
    batch = jax.tree.map(lambda *x: np.stack(x), *problems)
    tokens, lengths = np.full((len(cases), task.max_step), task.vocabulary.pad, np.int32), []
    for row, (_, text, _) in zip(tokens, cases, strict=True):
        encoded = task.vocabulary.encode(f"So {text}\n")
        row[: len(encoded)] = encoded
        lengths.append(len(encoded))
    # As the search calls it: over problems, over candidates, and on two devices.
    over = jax.vmap(jax.vmap(task.step, in_axes=(None, 0, 0)))
    candidates = (tokens[:, None], np.array(lengths, np.int32)[:, None])
    once = jax.jit(over)(batch.state, *candidates)
    assert once.reward[:, 0].tolist() == [reward for _, _, reward in cases]
    twice = jax.pmap(over)(*jax.tree.map(lambda x: np.stack([x, x]), (batch.state, *candidates)))
    assert (np.asarray(twice.reward) == np.asarray(once.reward)[None]).all()
    integers = dataclasses.replace(config, equality="integers")
    plain = jax.jit(jax.vmap(jax.vmap(make_task(integers).step, in_axes=(None, 0, 0))))(batch.state, *candidates)
    assert plain.reward[:, 0].tolist() == [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_prompts(folder):
    task = make_task(config_of(folder))
    assert task.vocabulary.decode(task.prompt("How many?")) == "Question: How many?\nAnswer:\n"
    shots = make_task(config_of(folder, num_shots=2, max_prompt_tokens=400))
    train = data.load_split(shots.config, "train")
    text = shots.vocabulary.decode(shots.prompt("How many?"))
    assert text.startswith(f"Question: {train[0].question}\nAnswer:\n") and text.endswith("How many?\nAnswer:\n")
    assert text.count("####") == 2 and "<<" not in text
    with pytest.raises(UserError, match="no chat template"):
        make_task(config_of(folder, prompt="chat")).prompt("How many?")


def test_bad_problems_are_refused(folder):
    task = make_task(config_of(folder))
    with pytest.raises(ProblemError, match="The question is empty"):
        task.problem("  ")
    with pytest.raises(ProblemError, match=r"The prompt has \d+ tokens, and task.max_prompt_tokens is 64: 'word word"):
        task.problem("word " * 100)
    with pytest.raises(UserError, match="lists no steps"):
        task.legal_steps(None)
