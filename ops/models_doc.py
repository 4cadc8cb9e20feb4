"""Writes the tables of docs/models.md from the catalogue: python -m ops.models_doc."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from ops.models import Row, count, rows, size
from routing.command import run_command

PAGE = Path(__file__).parents[1] / "docs/models.md"

#: What stands between them is made; the rest of the page is written by hand.
BEGIN = "<!-- From here on made by python -m ops.models_doc. -->"
END = "<!-- Made until here. -->"

LEVELS = (
    "Level 0: foundation",
    "Level 1: detection ensemble",
    "Level 2: multi-modal",
    "Level 3: fast VLMs, chosen by certainty",
    "Level 4: power",
    "Level 5: precision",
    "Level 6: consensus",
)


def rendered(page: str) -> str:
    """The page with its tables as the catalogue has them now.

    Args:
        page: its text, with both marks.

    Raises:
        ConfigError: the catalogue is damaged.
    """
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{tables()}\n{END}{tail}"


def tables() -> str:
    """Of each level a table, and how many models there are."""
    parts = [f"{count(rows())}.\n"]
    for level, title in enumerate(LEVELS):
        parts += [f"### {title}\n", *_table(rows(level)), ""]
    return "\n".join(parts)


def _table(found: Sequence[Row]) -> Iterator[str]:
    yield "| key | asked for as | state | weights | size | licence | engine | why, and how it votes |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in found:
        cells = (
            f"`{row.key}`",
            row.requested,
            f"{row.state}: see `{row.replaced_by}`" if row.replaced_by else row.state,
            _weights(row),
            f"{size(row.bytes)} in {row.precision}" if row.bytes else "",
            _licence(row),
            _engine(row),
            _words(row),
        )
        yield f"| {' | '.join(cells)} |"


def _weights(row: Row) -> str:
    if "://" in row.id:
        return f"<{row.id}>"
    at = f" at {row.revision}" if row.revision and row.revision != "main" else ""
    return f"`{row.id}`{at}" if row.id else ""


def _licence(row: Row) -> str:
    marks = [mark for mark, so in (("gated", row.gated), ("non-commercial", row.non_commercial)) if so]
    return f"{row.licence} ({', '.join(marks)})" if marks else row.licence


def _engine(row: Row) -> str:
    place = f" (environment {row.environment})" if row.environment else f" ({row.extra})" if row.extra else ""
    return f"{row.engine}{place}"


def _words(row: Row) -> str:
    abstains = f"abstains {row.abstains}" if row.abstains else ""
    shown = f"shown by {row.seen}" if row.seen else ""
    return "; ".join(part for part in (row.reason, row.score, abstains, shown) if part)


@click.command()
def main() -> None:
    """Writes the tables of docs/models.md anew."""
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
