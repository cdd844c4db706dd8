"""Worked problems in words, made on the spot: for tests that must run without a download."""

import json
import pathlib

_NAMES = ("Ann", "Bo", "Cem", "Dana", "Eli", "Fay")


def rows(first: int, number: int) -> list[dict[str, str]]:
    """Problems `first` to `first + number - 1`, all different."""
    made = []
    for i in range(first, first + number):
        name, a, b = _NAMES[i % len(_NAMES)], 2 + i // len(_NAMES), 3 + i % 7
        made.append(
            {
                "question": f"{name} has {a} apples and gets {b} more. How many are left after eating 1?",
                "answer": f"{name} has {a} + {b} = <<{a}+{b}={a + b}>>{a + b} apples.\n"
                f"Then {a + b} - 1 = <<{a + b}-1={a + b - 1}>>{a + b - 1} are left.\n#### {a + b - 1}",
            }
        )
    return made


def write(folder: pathlib.Path, train: int = 60, test: int = 12) -> str:
    """A folder with train.jsonl and test.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, some in (("train", rows(0, train)), ("test", rows(train, test))):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return str(folder)
