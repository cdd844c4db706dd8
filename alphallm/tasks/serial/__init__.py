"""Inherently serial problems: words of groups, sums modulo p, iterated squaring, circuits."""

from alphallm.tasks.serial.serial import Serial, SerialConfig

__all__ = ["Serial", "SerialConfig"]
