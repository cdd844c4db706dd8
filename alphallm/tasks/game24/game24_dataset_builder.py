"""Game of 24 for tensorflow-datasets: puzzles as text, "4 9 10 13". Runs without TensorFlow (array_record)."""

import pathlib

import tensorflow_datasets as tfds

from alphallm.tasks import splits


class Builder(tfds.core.GeneratorBasedBuilder):
    """Three ways to split the 1,362 solvable puzzles; those of the literature need the ranked csv."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="default", description="Generated; 1062 train, 100 validation, 200 test."),
        tfds.core.BuilderConfig(name="tot", description="Test on ranks 901-1000 of the ranked csv."),
        tfds.core.BuilderConfig(name="tsllm", description="Test on ranks 1001-1362 of the ranked csv."),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"For the configs tot and tsllm: {splits.CSV_HELP}."

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"problem": tfds.features.Text()})
        # Not shuffled, so that a problem's number within its split is the one that `splits` gave it.
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        if self.builder_config.name == "default":
            texts = splits.game24_default()
        else:
            csv_path = pathlib.Path(dl_manager.manual_dir) / splits.CSV_NAME
            texts = splits.game24_ranked(self.builder_config.name, csv_path)
        return {split: self._generate_examples(texts[split]) for split in texts}

    def _generate_examples(self, texts: list[str]):
        for i, text in enumerate(texts):
            yield i, {"problem": text}
