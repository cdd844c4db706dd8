"""The TFDS dataset `countdown`."""
