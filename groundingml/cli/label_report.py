"""What a labelling command did, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from groundingml.labelstudio.labelling_report import LabellingReport

_MOST_FAILURES = 20  # that are listed; --json lists all


def print_report(report: LabellingReport, item: str, shown: Console) -> None:
    """The report on stdout, failures on the console ``shown``; ``item`` is what was labelled."""
    console = Console()
    done = f"{report.labelled} of {report.total} {item}s labelled by version {report.model_version}"
    if report.already:
        done += f"; {report.already} had been labelled before"
    console.print(done, markup=False, highlight=False, soft_wrap=True)
    if report.labelled:
        table = Table("label", "boxes")
        table.columns[1].justify = "right"
        for name, count in report.boxes.most_common():
            table.add_row(name.replace("[", r"\["), str(count))
        if report.without_boxes:
            table.add_row(f"({item}s without boxes)", str(report.without_boxes), style="dim")
        console.print(table)
        slowest = ", ".join(f"{name} {seconds:.2f} s" for seconds, name in report.slowest)
        console.print(f"Slowest: {slowest}", markup=False, highlight=False, soft_wrap=True)
    for name, reason in report.failed[:_MOST_FAILURES]:
        shown.print(
            f"groundingml: {name}: {reason}", style="red", markup=False, highlight=False, soft_wrap=True
        )
    if len(report.failed) > _MOST_FAILURES:
        typer.echo(
            f"groundingml: ... and {len(report.failed) - _MOST_FAILURES} more; --json lists all", err=True
        )
    if report.failed:
        typer.echo(f"groundingml: {len(report.failed)} {item}s failed", err=True)
    if report.left:
        typer.echo(f"groundingml: {report.left} {item}s are left", err=True)
