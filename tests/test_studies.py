"""What the studies share."""

import pytest

from alphallm.errors import UserError
from experiments import studies


def test_whole_numbers_are_read_or_refused():
    assert studies.whole_numbers("depths", ["1", " 12"], 1) == [1, 12]
    for values in ([], ["0"], ["-1"], ["1.5"], ["two"]):
        with pytest.raises(UserError, match=f"--depths={','.join(values)}: give whole numbers of 1 or more"):
            studies.whole_numbers("depths", values, 1)


def test_a_table_has_a_line_for_each(tmp_path):
    studies.write_markdown(str(tmp_path / "table.md"), [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}])
    assert (tmp_path / "table.md").read_text() == "| a | b |\n| --- | --- |\n| 1 | x |\n| 2 | y |\n"
