"""Whether two answers are equal, as Math-Verify sees it; and the worker process that `grader.Grader` asks.

Math-Verify reads LaTeX into SymPy and compares. What is done here before it is spelling only: units come off, and
decimals become fractions, so that they are compared exactly (the library rounds them to six digits). SymPy takes a
second to load: nothing but the worker imports this module, and the worker imports nothing else of AlphaLLM.
"""

import contextlib
import functools
import json
import logging
import re
import resource
import signal
import sys
from typing import Any, TextIO

from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
from math_verify import verify

RIGHT, WRONG, UNREADABLE, UNREADABLE_REFERENCE = "right", "wrong", "unreadable", "unreadable reference"
_MEMORY = 4 << 30  # bytes of a worker's address space: a huge number ends the worker, not the host.

# `_without_unit` takes units off: the library's list of them has "t", "h", "c" and other names of variables.
_NORMALIZATION = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
_UNICODE = {"−": "-", "×": r"\times ", "÷": r"\div ", "π": r"\pi ", "√": r"\sqrt ", "∞": r"\infty ", "∪": r"\cup "}
_UNICODE |= {"≤": r"\le ", "≥": r"\ge ", "°": r"^\circ", "²": "^2", "³": "^3"}
# One unit a line, first the name that stands for all. Names of one letter are units in \text{...} only.
_UNITS = {
    name: line.split()[0]
    for line in """percent percentage pct %
        dollar dollars
        cent cents
        degree degrees deg
        mm millimeter millimeters
        cm centimeter centimeters
        m meter meters
        km kilometer kilometers
        in inch inches
        ft foot feet
        yd yard yards
        mi mile miles
        g gram grams
        kg kilogram kilograms
        oz ounce ounces
        lb lbs pound pounds
        ml milliliter milliliters
        l liter liters
        s sec second seconds
        min minute minutes
        h hr hrs hour hours
        day days
        week weeks
        month months
        year years
        am
        pm
        2 square sq
        3 cubic cu
        4
        unit units mph kmh""".splitlines()
    for name in line.split()
}
_POWERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9}
_NAMES = "|".join(name for name in sorted([*_UNITS, *_POWERS], key=len, reverse=True) if len(name) > 1)
_TEXT = r"\\(?:text|textrm|textnormal|mbox|mathrm)"
_UNIT_AT_END = [
    rf"(?P<rest>(?!.*{_TEXT}.*{_TEXT}).*(?:\d|\\pi).*?) *{_TEXT} *\{{(?P<unit>[^{{}}]*)\}} *(?P<power>\^ *\{{?\d\}}?)?",
    rf"(?P<rest>.*(?:[\d)}}]|\\pi)) ?(?P<unit>(?:{_NAMES})(?:(?: per |[ /])(?:{_NAMES}))*)(?P<power>\^ *\{{?\d\}}?)?",
    r"(?P<rest>.*(?:[\d)}])) ?\\?(?P<unit>%)(?P<power>)",
    r"(?P<rest>-?[\d,.]+) (?P<unit>[a-zA-Z]{4}[a-zA-Z ]*)(?P<power>)",  # 18 apples
]
_BRACKETS = r"[(\[][^()\[\]]*[)\]]"  # one interval or tuple.
# Two numbers side by side, which the library adds (`\frac 1 2` and `\log_2 8` are none), and 1.2.3.
_AMBIGUOUS = re.compile(r"(?<!frac)(?<!frac )(?<!_)\d \d|\d\.\d+\.\d")


def compare(given: str, reference: str) -> str:
    """RIGHT or WRONG, or whose text cannot be read: UNREADABLE (the given answer) or UNREADABLE_REFERENCE.

    A unit, a percent sign or a base may be left out, but where both answers have one it must be the same. A percentage
    equals a number without the sign both as 75 and as 0.75. Lists are sets; tuples and intervals keep their order.
    """
    (given, unit), (reference, reference_unit) = _without_unit(given), _without_unit(reference)
    given, reference = _respelled(given), _respelled(reference)
    read_given, read_reference = _read(given), _read(reference)
    if read_reference is None:
        return RIGHT if given == reference != "" else UNREADABLE_REFERENCE
    if read_given is None:
        return UNREADABLE
    if unit and reference_unit and unit != reference_unit:
        return WRONG
    texts = (given, reference)
    if any(text.startswith(r"\{") for text in texts) and any(re.fullmatch(_BRACKETS, text) for text in texts):
        return WRONG  # the library takes an open interval for a set of two.
    if verify(read_reference, read_given, allow_set_relation_comp=True, timeout_seconds=None) or given == reference:
        return RIGHT
    if (unit == "percent") == (reference_unit == "percent"):
        return WRONG
    if unit == "percent":
        read_given = _read(rf"\frac{{{given}}}{{100}}")
    else:
        read_reference = _read(rf"\frac{{{reference}}}{{100}}")
    return RIGHT if verify(read_reference, read_given, timeout_seconds=None) else WRONG


@functools.lru_cache(maxsize=256)  # one reference has many answers.
def _read(text: str) -> Any:
    """SymPy's object of the whole text, or None. Not Math-Verify's `parse`, which looks for any part it can read."""
    try:
        return latex2sympy(normalize_latex(text, _NORMALIZATION), is_real=True, normalization_config=None)
    except MemoryError:  # earlier answers may be to blame: the grader asks a new worker.
        raise
    except Exception:  # the parser has no error of its own.
        return None


def _without_unit(text: str) -> tuple[str, str]:
    """Text without spaces and delimiters around it, without its unit, and the unit's name; "" for none or unknown."""
    for character, latex in _UNICODE.items():
        text = text.replace(character, latex)
    text = re.sub(r"\\(?:left|right|displaystyle)(?![a-zA-Z])|\\!", "", text)
    text = re.sub(r"(?:(?<!\\)\\[,;: ]|[\s~])+", " ", text).strip().rstrip(". ")
    for start, end in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        if text.startswith(start) and text.endswith(end) and len(text) > len(start + end):
            text = text[len(start) : -len(end)].strip().rstrip(". ")
    based = re.fullmatch(r"(\d+)_\{?(\d+)\}?", text)
    if based:
        return based[1], f"base {based[2]}"
    unit = ""
    money = re.fullmatch(r"(-?) ?\\?\$ ?(.*)", text)
    if money:
        text, unit = money[1] + money[2], "dollars"
    for pattern in _UNIT_AT_END:
        found = re.fullmatch(pattern, text)
        if found:
            text, unit = found["rest"].strip(), f"{unit} {found['unit']}{found['power'] or ''}"
            break
    angle = re.fullmatch(r"(.*?) ?\^ ?(?:\{ ?\\circ ?\}|\\circ)", text)
    if angle:
        text, unit = angle[1], f"{unit} degrees"
    for power in set(_POWERS) & set(unit.split()):
        text, unit = rf"{text}\times 10^{_POWERS[power]}", unit.replace(power, "")
    return text, _unit_name(unit)


def _unit_name(unit: str) -> str:
    """Square centimeters and cm^2 are one name; "" for a unit that is not in the list."""
    names = [
        _UNITS.get(name, "unit") for name in re.findall(r"[a-z]+|\d|%", unit.lower().replace(".", "")) if name != "per"
    ]
    return "" if "unit" in names else " ".join(sorted(names))


def _respelled(text: str) -> str:
    """Spellings of numbers and words that the library does not know, in those that it does; "" if it would misread."""
    text = text.replace("{,}", ",").replace("infinity", r"\infty").replace(r"\varnothing", r"\emptyset")
    if re.fullmatch(r"(?:\w ?= ?)?-?\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+)(?:\.\d+)?", text):
        text = re.sub(r"(?<=\d)[, ]", "", text)
    if re.fullmatch(r"(?=.*[a-zA-Z]{4})[a-zA-Z ]+", text):
        return rf"\text{{{text}}}"  # else the word is a product of letters, in any order.
    text = re.sub(r"^(-?[\d.]+)[eE]\+?(-?\d+)$", r"\1 \\times 10^{\2}", text)
    text = re.sub(r"(\d+) (\d+)/(\d+)", r"\1\\frac{\2}{\3}", text)
    if "_" not in text:  # where it is no index, i is the library's I; its own i is a variable.
        text = re.sub(r"(?<![a-zA-Z\\])i(?![a-zA-Z])", "I", text)
    if _AMBIGUOUS.search(text):
        return ""
    text = re.sub(r"\^ ?(-?\d*\.\d+)", r"^{\1}", text)
    text = re.sub(r"(\d*)\.(\d*)\\overline ?\{(\d+)\}", _recurring, text)
    return re.sub(r"(\d*)\.(\d+)", lambda found: _fraction(found[1] + found[2], 10 ** len(found[2])), text)


def _recurring(found: re.Match) -> str:
    """The fraction of 0.1\\overline{6}: the digits with the period less those without it, over 90."""
    whole, fixed, period = found.groups()
    numerator = int(whole + fixed + period) - int(whole + fixed or "0")
    return _fraction(numerator, 10 ** len(fixed) * (10 ** len(period) - 1))


def _fraction(numerator: int | str, denominator: int) -> str:
    return rf"\frac{{{int(numerator)}}}{{{denominator}}}"


def serve(seconds: float, questions: TextIO, answers: TextIO):
    """Answers lines of [given, reference] until there are none. The kernel ends the process after `seconds` on a line.

    So the limit holds in C code too, and for a worker whose host is gone.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    with contextlib.suppress(ValueError, OSError):  # not every system can.
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    for line in questions:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        answer = compare(*json.loads(line))
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # the library warns that its own time limit is off, and of every failure.
    answers, sys.stdout = sys.stdout, sys.stderr
    compare("1", "1")  # what is loaded and compiled on first use is not in anyone's time.
    print("ready", file=answers, flush=True)
    serve(float(sys.argv[1]), sys.stdin, answers)
