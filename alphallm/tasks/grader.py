"""Grades final answers in text, such as those of GSM8K and MATH, against reference answers. Host side, no JAX.

Equality is Math-Verify's (see `equality`). Answers are hostile, 9^{9^{9^9}} is one: so they are read in processes of
their own, which have a limit on time and memory, know nothing of JAX, and are replaced when an answer ends them.
"""

import concurrent.futures
import contextlib
import dataclasses
import enum
import json
import pathlib
import queue
import re
import signal
import subprocess
import sys
from collections.abc import Sequence

from alphallm.errors import UserError

LONGEST = 1000  # characters of an answer; a large matrix fits, a solution does not.
_WORKER = pathlib.Path(__file__).with_name("equality.py")
# `{` and `}` that are not escaped, and where a box begins.
_BRACES = re.compile(r"(\\boxed\s*\{)|\\.|([{}])", re.DOTALL)


class Outcome(enum.StrEnum):
    RIGHT = "right"
    WRONG = "wrong"
    UNREADABLE = "unreadable"
    TOO_SLOW = "too slow"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of an answer, and why in a sentence; the sentence is empty where it is right or wrong."""

    outcome: Outcome
    reason: str = ""

    @property
    def right(self) -> bool:
        return self.outcome == Outcome.RIGHT


def extract(text: str) -> str | None:
    """The answer that a solution ends in: the rest of the line after the last `####`, or what the last \\boxed{} holds.

    Whichever comes last in the text; a box without its closing brace does not count. None if there is neither.
    """
    mark = text.rfind("####")
    answer = text[mark + 4 :].strip().partition("\n")[0] if mark >= 0 else ""
    opened: list[tuple[bool, int]] = []  # braces that are not closed yet: whether a box begins there, and where.
    for found in _BRACES.finditer(text):
        if found[1] or found[2] == "{":
            opened.append((bool(found[1]), found.end()))
        elif found[2] and opened:
            boxed, start = opened.pop()
            if boxed and start > mark:
                mark, answer = start, text[start : found.start()]
    return answer.strip() or None


class Grader:
    """Owns worker processes, `processes` of them, each started when it is first needed; a context manager.

    An answer may take `seconds` of wall time; one that takes longer costs another second or two, for a new worker.
    """

    def __init__(self, seconds: float = 5.0, processes: int = 1):
        if not 0 < seconds < 1e6:
            raise UserError(f"The grader's limit is {seconds} seconds for an answer: give a number above 0, below 1e6.")
        if processes < 1:
            raise UserError(f"The grader has {processes} processes: give 1 or more.")
        self._workers = [_Worker(seconds) for _ in range(processes)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = concurrent.futures.ThreadPoolExecutor(processes)  # they wait for the workers.

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Ends the workers. What is being graded in another thread is finished first."""
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.end()

    def grade(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """A verdict for each pair (given answer, reference answer), in order. A pair that occurs twice is read once."""
        different = list(dict.fromkeys(pairs))
        verdicts = dict(zip(different, self._threads.map(self._grade, different), strict=True))
        return [verdicts[pair] for pair in pairs]

    def _grade(self, pair: tuple[str, str]) -> Verdict:
        for name, text in zip(("answer", "reference answer"), pair, strict=True):
            if not text.strip():
                return Verdict(Outcome.UNREADABLE, f"The {name} is empty.")
            if len(text) > LONGEST:
                limit = f"the limit is {LONGEST:,}"
                return Verdict(Outcome.UNREADABLE, f"The {name} has {len(text):,} characters: {limit}.")
        worker = self._idle.get()
        try:
            return worker.ask(*pair)
        finally:
            self._idle.put(worker)


class _Worker:
    """One process, asked one question at a time; another takes its place when an answer has ended it."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._process: subprocess.Popen[str] | None = None

    def ask(self, given: str, reference: str) -> Verdict:
        fresh = self._process is None or self._process.poll() is not None
        if fresh:
            self._process = self._start()
        assert self._process and self._process.stdin and self._process.stdout
        answer = ""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps([given, reference]) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline().strip()
        if not answer:
            code = self._process.wait()
            if code == -signal.SIGALRM:
                reason = f"The answer {_short(given)} took more than {self._seconds:g} seconds."
                return Verdict(Outcome.TOO_SLOW, reason)
            if not fresh:  # what ended it may be an earlier answer: memory that was not given back.
                return self.ask(given, reference)
            return Verdict(Outcome.UNREADABLE, f"The answer {_short(given)} ended its worker (exit code {code}).")
        if answer.startswith("unreadable"):
            name, text = ("reference answer", reference) if answer.endswith("reference") else ("answer", given)
            return Verdict(Outcome.UNREADABLE, f"The {name} {_short(text)} cannot be read as mathematics.")
        return Verdict(Outcome(answer))

    def _start(self) -> "subprocess.Popen[str]":
        """A worker that has loaded all it needs. Not a fork: JAX has threads. Its own session: Ctrl-C is not for it."""
        self.end()
        process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER), str(self._seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert process.stdout
        if process.stdout.readline() != "ready\n":
            process.kill()
            process.communicate()
            raise UserError(f"The grader's worker does not start: run {sys.executable} -P {_WORKER} 1 to see why.")
        return process

    def end(self):
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "…")
