"""The version of prefkit, that of pyproject.toml."""

VERSION = "0.1.0"
