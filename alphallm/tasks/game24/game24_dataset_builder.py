"""Game of 24 for tensorflow-datasets: puzzles as text, "4 9 10 13". Runs without TensorFlow (array_record)."""

import dataclasses
import pathlib

import tensorflow_datasets as tfds

from alphallm.tasks import splits


@dataclasses.dataclass(eq=False)
class ExtraConfig(tfds.core.BuilderConfig):
    """Puzzles with larger numbers, for training alone. Make it with `extra_config`."""

    max_number: int = 24


def extra_config(max_number: int) -> ExtraConfig:
    """The config of the solvable puzzles whose largest number is from 14 to `max_number`."""
    description = "Generated; train only, since no split of the others has such puzzles."
    return ExtraConfig(name=f"extra{max_number}", description=description, max_number=max_number)


class Builder(tfds.core.GeneratorBasedBuilder):
    """Three ways to split the 1,362 solvable puzzles, two of them with the ranked csv; and extra ones to train on."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="default", description="Generated; 1062 train, 100 validation, 200 test."),
        tfds.core.BuilderConfig(name="tot", description="Test on ranks 901-1000 of the ranked csv."),
        tfds.core.BuilderConfig(name="tsllm", description="Test on ranks 1001-1362 of the ranked csv."),
        extra_config(max_number=20),
        extra_config(max_number=24),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"For the configs tot and tsllm: {splits.CSV_HELP}."

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"problem": tfds.features.Text()})
        # Not shuffled, so that a problem's number within its split is the one that `splits` gave it.
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        if isinstance(self.builder_config, ExtraConfig):
            texts = {"train": splits.game24_extra(self.builder_config.max_number)}
        elif self.builder_config.name == "default":
            texts = splits.game24_default()
        else:
            csv_path = pathlib.Path(dl_manager.manual_dir) / splits.CSV_NAME
            texts = splits.game24_ranked(self.builder_config.name, csv_path)
        return {split: self._generate_examples(texts[split]) for split in texts}

    def _generate_examples(self, texts: list[str]):
        for i, text in enumerate(texts):
            yield i, {"problem": text}
