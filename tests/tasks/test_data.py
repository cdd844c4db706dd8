"""Splits and their datasets: disjoint, complete, the same everywhere, and clear about what is missing."""

import csv
import hashlib
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from alphallm.tasks import ArithmeticConfig as Config
from alphallm.tasks import arithmetic_data, data, make_task, splits

CSV = pathlib.Path(__file__).parents[3] / "shared" / "data" / "game24" / "24.csv"
needs_csv = pytest.mark.skipif(not CSV.is_file(), reason=f"the ranked csv is not at {CSV}")
COUNTDOWN = Config(name="countdown", num_numbers=3, max_number=20, max_target=100)
CONFIGS = [
    pytest.param(Config(), (1062, 100, 200), id="game24-default"),
    pytest.param(Config(dataset="tot", manual_dir=str(CSV.parent)), (1162, 100, 100), marks=needs_csv, id="tot"),
    pytest.param(Config(dataset="tsllm", manual_dir=str(CSV.parent)), (900, 100, 362), marks=needs_csv, id="tsllm"),
    pytest.param(Config(max_number=15), (1062 + 836, 100, 200), id="game24-extra"),
    pytest.param(Config(max_number=20), (1062 + 4344, 100, 200), id="game24-extra-listed"),
    pytest.param(Config(name="countdown", max_target=100), (8000, 1000, 1000), id="countdown-listed"),
    pytest.param(COUNTDOWN, (8000, 1000, 1000), id="countdown"),
]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


def in_any_order(text: str) -> tuple[tuple[int, ...], str]:
    numbers, _, target = text.partition(" -> ")
    return tuple(sorted(map(int, numbers.split()))), target


@pytest.mark.parametrize(("config", "sizes"), CONFIGS)
def test_no_problem_in_any_order_is_in_two_splits(config, sizes, data_dir):
    texts = [data.load_split(config, split, data_dir) for split in data.SPLITS]
    problems = [{in_any_order(text) for text in split} for split in texts]
    assert tuple(map(len, texts)) == tuple(map(len, problems)) == sizes  # nor twice in one split.
    assert len(set.union(*problems)) == sum(sizes)
    task = make_task(config)
    assert all(task.parse(text) for split in texts for text in split)


@needs_csv
@pytest.mark.parametrize(("dataset", "ranks"), [("tot", range(901, 1001)), ("tsllm", range(1001, 1363))])
def test_the_test_split_is_the_literature_s(dataset, ranks, data_dir):
    with CSV.open() as file:
        want = [row["Puzzles"] for row in csv.DictReader(file) if int(row["Rank"]) in ranks]
    config = Config(dataset=dataset, manual_dir=str(CSV.parent))
    assert list(map(in_any_order, data.load_split(config, "test", data_dir))) == list(map(in_any_order, want))
    default = {in_any_order(text) for split in splits.game24_default().values() for text in split}
    ranked = {in_any_order(text) for split in data.SPLITS for text in data.load_split(config, split, data_dir)}
    assert ranked == default  # the solver and the csv agree on what is solvable.


def test_generated_splits_never_change():
    """Published numbers stand on them. New values: print `digest(...)`, and raise the builder's VERSION."""

    def digest(made):
        return hashlib.sha256(repr([made[split] for split in data.SPLITS]).encode()).hexdigest()[:16]

    assert digest(splits.game24_default()) == "3e60c9a245c89fd0"
    assert digest(splits.countdown(3, 20, 100)) == "71202455d1d1bf7b"
    extra = splits.game24_extra(15)
    assert hashlib.sha256(repr(extra).encode()).hexdigest()[:16] == "8a24d6f5cbc388c6"


def test_a_dataset_is_built_once_and_keeps_the_order(data_dir, monkeypatch):
    first = data.load_split(Config(), "test", data_dir)
    monkeypatch.setattr(splits, "game24_default", lambda: pytest.fail("built again"))
    assert data.load_split(Config(), "test", data_dir) == first
    monkeypatch.undo()
    assert first == splits.game24_default()["test"]


def test_problems_become_one_batch():
    task = make_task(COUNTDOWN)
    batch = data.load_problems(task, ["3 5 7 -> 22", "20 1 1 -> 100"])
    assert [task.vocabulary.decode(row) for row in batch.tokens_P] == ["3 5 7 -> 22\n", "1 1 20 -> 100\n"]
    assert batch.state.num_n.tolist() == [[3, 5, 7], [1, 1, 20]] and batch.state.target_num.tolist() == [22, 100]
    assert batch.index.tolist() == [0, 1] and batch.tokens_P.dtype == np.int32
    with pytest.raises(ValueError, match="give at least one"):
        data.load_problems(task, [])


@pytest.mark.parametrize(
    ("config", "split", "message"),
    [
        (Config(), "tset", "Unknown split 'tset': give one of train, validation, test"),
        (Config(dataset="toot"), "test", "Unknown dataset 'toot' of game24: give one of default, tot, tsllm"),
        (
            Config(name="countdown", max_number=1, num_numbers=2, max_target=2),
            "test",
            "a split would be empty",
        ),
        (Config(dataset="tot", manual_dir="/nowhere"), "test", "/nowhere/24.csv does not exist: put 24.csv"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_a_sentence(config, split, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        data.load_split(config, split, str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file/.* cannot hold the dataset .*: give another data_dir"):
        data.load_split(Config(), "test", str(tmp_path / "file"))


@pytest.mark.parametrize("content", ["", "Rank,Puzzles\n1,1 1 4 6\n", "Rank,Puzzles\none,1 1 4 6\n", "a,b\n1,2\n"])
def test_a_wrong_csv_is_named(content, tmp_path):
    (tmp_path / "24.csv").write_text(content)
    with pytest.raises(ValueError, match="24.csv (is not the ranked csv|does not hold 1362 puzzles)"):
        data.load_split(Config(dataset="tot", manual_dir=str(tmp_path)), "test", str(tmp_path / "data"))


def test_a_csv_whose_ranks_start_at_0_is_named(tmp_path):
    texts = [text for split in splits.game24_default().values() for text in split]
    (tmp_path / "24.csv").write_text("Rank,Puzzles\n" + "".join(f"{i},{text}\n" for i, text in enumerate(texts)))
    with pytest.raises(ValueError, match="of ranks 1 to 1362"):
        data.load_split(Config(dataset="tot", manual_dir=str(tmp_path)), "test", str(tmp_path / "data"))


@needs_csv
def test_the_csv_is_downloaded_and_its_checksum_checked(tmp_path, monkeypatch):
    config = Config(dataset="tot")
    monkeypatch.setattr(arithmetic_data, "_CSV_URL", (tmp_path / "nothing").as_uri())
    with pytest.raises(ValueError, match="cannot be downloaded .*: put 24.csv"):
        data.load_split(config, "test", str(tmp_path))
    (tmp_path / "other").write_text("Rank,Puzzles\n")
    monkeypatch.setattr(arithmetic_data, "_CSV_URL", (tmp_path / "other").as_uri())
    with pytest.raises(ValueError, match="unexpected checksum"):
        data.load_split(config, "test", str(tmp_path))
    monkeypatch.setattr(arithmetic_data, "_CSV_URL", CSV.as_uri())
    assert len(data.load_split(config, "test", str(tmp_path))) == 100


def test_loading_is_quiet_and_needs_no_tensorflow(tmp_path):
    program = (
        "import sys; from alphallm.tasks import ArithmeticConfig, data\n"
        "assert 'tensorflow_datasets' not in sys.modules and 'grain' not in sys.modules\n"
        f"data.load_split(ArithmeticConfig(), 'test', {str(tmp_path)!r})\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
