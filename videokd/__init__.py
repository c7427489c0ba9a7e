"""videokd: distil a big video model into a small, fast one."""

__version__ = "0.1.0"
