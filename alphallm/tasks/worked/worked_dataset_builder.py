"""Questions with worked solutions for tensorflow-datasets, from JSONL files. Runs without TensorFlow (array_record)."""

import dataclasses
import pathlib

import tensorflow_datasets as tfds

from alphallm.tasks import examples


@dataclasses.dataclass(eq=False)
class WorkedConfig(tfds.core.BuilderConfig):
    """Made by `examples.builder`, under a name that tells the contents of the files."""

    files: dict[str, pathlib.Path] = dataclasses.field(default_factory=dict)
    fields: examples.Fields = dataclasses.field(default_factory=lambda: examples.Fields("question", "answer", ""))


class Builder(tfds.core.GeneratorBasedBuilder):
    """Splits train, validation and test; no question is in two of them."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        names = [field.name for field in dataclasses.fields(examples.Example)]
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({name: tfds.features.Text() for name in names}),
            metadata=tfds.core.MetadataDict({}),
            disable_shuffling=True,  # so that a problem's number within its split is the one that `examples` gave it.
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        config = self.builder_config
        splits, skipped = examples.split(config.files, config.fields)
        self.info.metadata["skipped"] = skipped
        return {name: self._generate_examples(rows) for name, rows in splits.items()}

    def _generate_examples(self, rows: list[examples.Example]):
        for i, row in enumerate(rows):
            yield i, dataclasses.asdict(row)
