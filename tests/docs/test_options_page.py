"""docs/options.md is what the options' own fields say."""

from pathlib import Path

from prefkit.cli.options_page import page

FOUND = Path(__file__).parents[2] / "docs" / "options.md"


def test_the_page_is_up_to_date() -> None:
    """`python -m prefkit.cli.options_page > docs/options.md` makes it."""
    assert FOUND.read_text(encoding="utf-8") == page()
