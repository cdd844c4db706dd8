"""The TFDS dataset `game24`."""
