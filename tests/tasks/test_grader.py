"""Equal answers are right, others are not, and no answer stops the grader.

ALPHALLM_FULL=1 grades all of GSM8K, 512 equal answers and 2,000 wrong ones, in two minutes; otherwise a sample of them.
"""

import json
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
import time

import pytest

from alphallm.errors import UserError
from alphallm.tasks import grader
from alphallm.tasks.grader import Grader, Outcome, Verdict, extract
from tests.tasks import answers

FULL = os.environ.get("ALPHALLM_FULL") == "1"
GSM8K = pathlib.Path(__file__).parents[3] / "shared" / "data" / "gsm8k"
RIGHT, WRONG, LIMITS = answers.by_hand()
RIGHT += answers.right_pairs(230 if FULL else 46)
WRONG += answers.wrong_pairs((2000 if FULL else 330) - len(WRONG))


@pytest.fixture(scope="module")
def graders():
    with Grader(seconds=30.0, processes=2) as graders:
        yield graders


def outcome(graders: Grader, given: str, reference: str) -> Outcome:
    return graders.grade([(given, reference)])[0].outcome


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("He has 2 + 3 = 5.\n#### 5", "5"),
        ("#### 4\nNo:\n####  1,234 \n", "1,234"),
        ("#### 5\nmore words", "5"),
        (r"so $x=\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"\boxed{1} and \boxed {2}", "2"),
        (r"\boxed{\left\{1, \{2\}\right\}}", r"\left\{1, \{2\}\right\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),  # an escaped brace needs no partner.
        (r"\boxed{7}, and then \boxed{8", "7"),
        (r"{ \boxed{7}", "7"),
        (r"} \boxed{7} }", "7"),
        (r"\boxed{a \boxed{b} c}", "b"),
        ("\\boxed{\n3\n}", "3"),
        ("\\boxed{1} #### 2", "2"),
        ("#### 1 \\boxed{2}", "2"),
        (r"#### \boxed{2}", "2"),
        ("no answer", None),
        (r"\boxed{}", None),
        ("####", None),
        ("#### \n", None),
        ("", None),
    ],
)
def test_the_answer_is_what_a_solution_ends_in(text, answer):
    assert extract(text) == answer


def test_extraction_takes_linear_time():
    started = time.perf_counter()
    assert extract(r"\boxed{" * 200_000) is None
    assert extract(r"\boxed{" * 200_000 + "1" + "}" * 200_000) == "1"
    assert extract("#### " * 200_000 + "1") == "1"
    assert time.perf_counter() - started < 5


@pytest.mark.skipif(not GSM8K.is_dir(), reason=f"GSM8K is not at {GSM8K}")
@pytest.mark.parametrize(("split", "rows"), [("train", 7473), ("test", 1319)])
def test_the_grader_agrees_with_gsm8k(split, rows, graders):
    """The given answers are extracted from the official solutions; the references are the last lines' digits."""
    solutions = [json.loads(line)["answer"] for line in (GSM8K / f"{split}.jsonl").read_text().splitlines()]
    assert len(solutions) == rows
    if not FULL:
        solutions = solutions[:: rows // 75]
    references = [str(int(re.sub(r"[^\d-]", "", solution.rsplit("\n", 1)[-1]))) for solution in solutions]
    pairs = [(extract(solution) or "", reference) for solution, reference in zip(solutions, references, strict=True)]
    pairs += [(extract(rf"so \boxed{{\${given}}}") or "", reference) for given, reference in pairs[::10]]
    verdicts = graders.grade(pairs)
    assert [(pair, verdict) for pair, verdict in zip(pairs, verdicts, strict=True) if not verdict.right] == []
    others = [(given, str(int(reference) + 1)) for given, reference in pairs[::10]]
    assert {verdict.outcome for verdict in graders.grade(others)} == {Outcome.WRONG}


def test_equal_answers_are_right(graders):
    assert len(RIGHT) >= 300 and len(set(RIGHT)) == len(RIGHT)
    verdicts = graders.grade(RIGHT)
    assert [pair for pair, verdict in zip(RIGHT, verdicts, strict=True) if verdict != Verdict(Outcome.RIGHT)] == []


def test_other_answers_are_wrong(graders):
    assert len(set(WRONG)) == len(WRONG) and not set(WRONG) & set(RIGHT)
    verdicts = graders.grade(WRONG)
    assert [pair for pair, verdict in zip(WRONG, verdicts, strict=True) if verdict != Verdict(Outcome.WRONG)] == []


def test_what_the_grader_cannot_do_is_known(graders):
    verdicts = graders.grade(LIMITS)
    assert [pair for pair, verdict in zip(LIMITS, verdicts, strict=True) if verdict.right] == []


@pytest.mark.parametrize(
    "given",
    [
        "",
        " \n",
        "\0",
        "\ud800",
        r"\frac{1}{2",
        "3 +",
        "(((1))",
        "1 2",
        "3 4 5",
        "1.2.3",
        "5 = ",
        r"5 \undefined 7",
        "$",
        "^^",
        r"^ \frac{1}{1}",
        r"^ \(1\)",
        "^$1$",
        "answer: $1$ ^",
    ],
)
def test_what_is_no_answer_is_unreadable(given, graders):
    """The library reads `1 2` as 3, the sum, and of other texts the part that it can read: it must not be asked so."""
    for reference in ("1", "3", "12"):
        verdict = graders.grade([(given, reference)])[0]
        assert verdict.outcome == Outcome.UNREADABLE and not verdict.right
        assert re.fullmatch(r"The answer .*(is empty|cannot be read as mathematics)\.", verdict.reason)


def test_a_reference_that_is_unreadable_is_named(graders):
    assert graders.grade([("1", "3 +"), ("3 +", "3 +"), ("1", " ")]) == [
        Verdict(Outcome.UNREADABLE, "The reference answer '3 +' cannot be read as mathematics."),
        Verdict(Outcome.RIGHT),  # the same text is the same answer.
        Verdict(Outcome.UNREADABLE, "The reference answer is empty."),
    ]


HOSTILE = [
    "9^{9^{9^{9}}}",
    "10^{10000}!",
    "2^{10^{10}}",
    r"\binom{10^9}{5000000}",
    r"\sum_{n=1}^{1000000000} \frac{1}{n^2}",
    "(x+1)^{10000}",
    "1e999999999",
    "(" * 400 + "1" + ")" * 400,
    "{" * 5000 + "1" + "}" * 5000,
    "(" * 5000,
    r"\frac{1}{" * 100 + "2" + "}" * 100,
    r"\sqrt{" * 120,
    "x" * 1_000_000,
    "1+" * 499 + "1",
    "$" * 999,
    "-" * 999,
    r"\text{" * 160,
    "1\0" * 300,
]


@pytest.mark.parametrize("given", HOSTILE, ids=lambda given: f"{given[:14]}-{len(given)}")
def test_no_answer_stops_the_grader(given, hasty):
    started = time.perf_counter()
    verdict = hasty.grade([(given, "2")])[0]
    assert time.perf_counter() - started < SECONDS + STARTING
    assert not verdict.right
    if verdict.outcome == Outcome.TOO_SLOW:
        assert re.fullmatch(r"The answer '.*' took more than 1 seconds\.", verdict.reason)
    assert [outcome(hasty, text, "2") for text in ("2", "3")] == [Outcome.RIGHT, Outcome.WRONG]


SECONDS, STARTING = 1.0, 10.0  # a new worker takes one second, and more on a busy machine.


@pytest.fixture(scope="module")
def hasty():
    with Grader(seconds=SECONDS) as hasty:
        yield hasty


def test_a_limit_holds_in_c_code_and_is_told(hasty):
    """Python cannot interrupt a power of whole numbers: only the end of the process can."""
    reason = "The answer '9^{9^{9^{9}}}' took more than 1 seconds."
    pairs = [("1", "1"), ("9^{9^{9^{9}}}", "1"), ("1", "1"), ("2", "1")]
    assert hasty.grade(pairs) == [
        Verdict(Outcome.RIGHT),
        Verdict(Outcome.TOO_SLOW, reason),
        Verdict(Outcome.RIGHT),
        Verdict(Outcome.WRONG),
    ]
    assert outcome(hasty, "1", "9^{9^{9^{9}}}") == Outcome.TOO_SLOW


def test_what_is_too_long_is_not_read(graders):
    verdicts = graders.grade([("1" * 1001, "1"), ("1", "1" * 1_000_000), ("1" * 1000, "1")])
    assert verdicts == [
        Verdict(Outcome.UNREADABLE, "The answer has 1,001 characters: the limit is 1,000."),
        Verdict(Outcome.UNREADABLE, "The reference answer has 1,000,000 characters: the limit is 1,000."),
        Verdict(Outcome.WRONG),
    ]


def test_a_worker_that_dies_is_replaced():
    with Grader(seconds=30.0) as one:
        assert outcome(one, "1", "1") == Outcome.RIGHT
        process = one._workers[0]._process
        assert resource.prlimit(process.pid, resource.RLIMIT_AS) == (4 << 30, 4 << 30)
        process.kill()
        process.wait()
        assert outcome(one, "1", "1") == Outcome.RIGHT
        assert one._workers[0]._process is not process


def test_an_answer_that_ends_its_worker_is_unreadable(monkeypatch, tmp_path):
    """Where the worker is not new, a new one is asked first: what ends a worker may be what earlier answers left."""
    program = (
        "import os, sys\nprint('ready', flush=True)\n"
        "for asked, line in enumerate(sys.stdin):\n"
        "    if 'always' in line or asked and 'late' in line: os._exit(3)\n"
        "    print('right', flush=True)\n"
    )
    (tmp_path / "worker.py").write_text(program)
    monkeypatch.setattr(grader, "_WORKER", tmp_path / "worker.py")
    ended = Verdict(Outcome.UNREADABLE, "The answer 'always' ended its worker (exit code 3).")
    with Grader() as one:
        for given in ("1", "always", "1", "late", "late"):
            assert one.grade([(given, "1")]) == [ended if given == "always" else Verdict(Outcome.RIGHT)]


def test_a_worker_without_a_host_ends():
    command = [sys.executable, "-P", str(grader._WORKER), "1"]
    for question, code in (('["9^{9^{9^{9}}}", "1"]\n', -signal.SIGALRM), ("", 0)):
        done = subprocess.run(command, input=question, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (code, "ready\n")


def test_verdicts_keep_the_order_and_doubles_are_read_once(graders, monkeypatch):
    asked = []
    ask = grader._Worker.ask
    monkeypatch.setattr(grader._Worker, "ask", lambda worker, *pair: asked.append(pair) or ask(worker, *pair))
    pairs = [(str(i % 7), str(i % 3)) for i in range(100)]
    verdicts = graders.grade(pairs)
    assert [verdict.right for verdict in verdicts] == [given == reference for given, reference in pairs]
    assert sorted(asked) == sorted(set(pairs))
    assert graders.grade([]) == []


def test_the_workers_end_with_the_grader():
    with Grader(processes=2) as two:
        two.grade([(str(i), "1") for i in range(8)])
        processes = [worker._process for worker in two._workers]
    assert all(process.poll() is not None for process in processes if process)
    with pytest.raises(RuntimeError):
        two.grade([("1", "1")])


def test_the_host_does_not_load_the_library_nor_the_worker_jax():
    host = (
        "import sys, jax; from alphallm.tasks.grader import Grader\n"
        "jax.numpy.zeros(3).block_until_ready()\n"
        "with Grader() as grader: assert grader.grade([('0.5', '1/2')])[0].right\n"
        "assert 'math_verify' not in sys.modules and 'sympy' not in sys.modules"
    )
    worker = (
        f"import runpy, sys; runpy.run_path({str(grader._WORKER)!r})\n"
        "assert 'math_verify' in sys.modules and 'jax' not in sys.modules and 'alphallm' not in sys.modules"
    )
    root = pathlib.Path(__file__).parents[2]
    for program in (host, worker):
        done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_worker_that_does_not_start_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(grader, "_WORKER", tmp_path / "none.py")
    with Grader() as broken, pytest.raises(UserError, match=r"worker does not start: run .*none\.py 1 to see why"):
        broken.grade([("1", "1")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 0.0}, "limit is 0.0 seconds for an answer: give a number above 0"),
        ({"seconds": float("nan")}, "limit is nan seconds"),
        ({"processes": 0}, "has 0 processes: give 1 or more"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(UserError, match=message):
        Grader(**options)
