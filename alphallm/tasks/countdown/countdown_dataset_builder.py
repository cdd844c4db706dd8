"""Countdown for tensorflow-datasets: problems as text, "3 5 7 -> 22". Runs without TensorFlow (array_record)."""

import dataclasses

import tensorflow_datasets as tfds

from alphallm.tasks import splits


@dataclasses.dataclass(eq=False)
class CountdownConfig(tfds.core.BuilderConfig):
    """Make it with `countdown_config`, whose name tells one choice of numbers from another."""

    num_numbers: int = 4
    max_number: int = 13
    max_target: int = 100


def countdown_config(num_numbers: int, max_number: int, max_target: int) -> CountdownConfig:
    """The config of problems with `num_numbers` numbers from 1 to `max_number` and targets from 1 to `max_target`."""
    return CountdownConfig(
        name=f"numbers{num_numbers}_max{max_number}_target{max_target}",
        description="Generated with a fixed seed.",
        num_numbers=num_numbers,
        max_number=max_number,
        max_target=max_target,
    )


class Builder(tfds.core.GeneratorBasedBuilder):
    """At most 10,000 generated problems, split 80 / 10 / 10."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [countdown_config(num_numbers=4, max_number=13, max_target=100)]

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"problem": tfds.features.Text()})
        # Not shuffled, so that a problem's number within its split is the one that `splits` gave it.
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        config = self.builder_config
        texts = splits.countdown(config.num_numbers, config.max_number, config.max_target)
        return {split: self._generate_examples(texts[split]) for split in texts}

    def _generate_examples(self, texts: list[str]):
        for i, text in enumerate(texts):
            yield i, {"problem": text}
