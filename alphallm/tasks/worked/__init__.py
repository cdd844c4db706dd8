"""The TFDS dataset `worked`."""
