"""`groundingml sync`: repair what webhooks lost."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from groundingml.cli.options import DataDir, LabelStudioApiKey, LabelStudioUrl, StoreUrl
from groundingml.cli.progress import LongRun
from groundingml.cli.stores import fail, open_data

if TYPE_CHECKING:
    from groundingml.labelstudio.api_client import LabelStudioApi
    from groundingml.labelstudio.sync import SyncReport
    from groundingml.store import Store

_INTERRUPTED = 130  # the exit status that shells give a command ended by Ctrl-C


def sync(
    url: LabelStudioUrl = None,
    api_key: LabelStudioApiKey = None,
    project: Annotated[
        list[int] | None,
        typer.Option(
            "--project", "-p", min=1, help="Number of a project; may be repeated. Otherwise all known."
        ),
    ] = None,
    forget_missing: Annotated[
        bool,
        typer.Option("--forget-missing", help="Forget what was corrected in projects that are gone."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON record a project.")] = False,
    data_dir: DataDir = None,
    store: StoreUrl = None,
) -> None:
    """Get the annotations that were submitted while the server could not be reached.

    [bold]Examples[/bold]

      groundingml sync --url http://localhost:8080 --api-key KEY --project 7

      groundingml sync                   [dim]# all projects that were ever connected[/dim]

    Label Studio tells of each annotation once, and waits one second. What that lost (the server was stopped,
    the disk full) is found by comparing all annotations: created, changed and deleted ones are repaired, and
    predictions that were not recorded. It is safe while the server runs, and done before every training.
    """
    if not url or not api_key:
        fail(
            "this needs Label Studio's address and an access token: --url http://localhost:8080 and "
            "--api-key (or LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY); the token is under Account & Settings",
            2,
        )
    from groundingml.labelstudio.addresses import FetchError
    from groundingml.labelstudio.api_client import LabelStudioApi
    from groundingml.store.annotations import known_projects

    _, opened = open_data(data_dir, store)
    shown = Console(stderr=True)
    with opened, _stopping_gently(shown) as stop:
        with opened.read() as session:
            projects = [str(one) for one in project or ()] or known_projects(session)
        if not projects:
            fail("no project is known here yet; name one: groundingml sync --project 7")
        try:
            api = LabelStudioApi(url, api_key, pause=stop.wait)
        except FetchError as error:
            fail(str(error), 2)
        records = []
        for one in projects:
            if stop.is_set():
                break
            records.append(_sync_one(opened, api, one, forget_missing, stop, shown))
            if as_json:
                typer.echo(json.dumps(records[-1], ensure_ascii=False))
        api.close()
    if not as_json:
        _print(records)
    if stop.is_set():
        typer.echo("groundingml: interrupted; what is repaired stays, start again for the rest", err=True)
        raise typer.Exit(_INTERRUPTED)
    if any("error" in record or record["problems"] for record in records):
        raise typer.Exit(1)


def _sync_one(
    store: Store, api: LabelStudioApi, project: str, forget: bool, stop: threading.Event, shown: Console
) -> dict[str, Any]:
    from sqlalchemy.exc import SQLAlchemyError

    from groundingml.labelstudio.api_client import ApiError
    from groundingml.labelstudio.remembered_prompts import learn_prompts
    from groundingml.labelstudio.sync import sync_project
    from groundingml.store import StoreError, utc_now
    from groundingml.store.annotations import delete_project

    try:
        with LongRun(f"project {project}", "tasks", shown) as progress:
            report = sync_project(
                store, api, project, learn=learn_prompts,
                on_start=progress.begin, on_task=progress.advance, should_stop=stop.is_set,
            )  # fmt: skip
    except ApiError as error:
        reason = str(error)
        if error.status == 404 and forget:
            with store.begin() as session:
                return {
                    "project": project,
                    "forgotten": delete_project(session, project, utc_now()),
                    "problems": [],
                }
        if error.status == 404:
            reason = (
                f"Label Studio has no project {project}, or this user may not see it; its corrections are "
                "kept (--forget-missing forgets them)"
            )
        typer.echo(f"groundingml: {reason}", err=True)
        return {"project": project, "error": reason}
    except (SQLAlchemyError, StoreError) as error:
        fail(f"the database cannot be used: {str(getattr(error, 'orig', None) or error).splitlines()[0]}")
    for problem in report.problems:
        typer.echo(f"groundingml: left out: {problem}", err=True)
    return _as_record(report)


def _as_record(report: SyncReport) -> dict[str, Any]:
    return {
        "project": report.project,
        "tasks": report.tasks,
        "annotations": report.annotations,
        "created": [int(one) for one in report.created],
        "changed": [int(one) for one in report.changed],
        "deleted": [int(one) for one in report.deleted],
        "predictions_recorded": report.predictions,
        "problems": report.problems,
    }


def _print(records: list[dict[str, Any]]) -> None:
    table = Table(caption="repaired: annotations that were not here as Label Studio has them")
    table.add_column("project")
    names = ("tasks", "annotations", "created", "changed", "deleted", "predictions recorded")
    for column in names:
        table.add_column(column, justify="right")
    for record in records:
        if "error" in record:
            table.add_row(record["project"], "[red]not compared[/]")
        elif "forgotten" in record:
            table.add_row(record["project"], "[yellow]forgotten[/]", str(record["forgotten"]))
        else:
            repaired = [len(record[name]) for name in ("created", "changed", "deleted")]
            numbers = [record["tasks"], record["annotations"], *repaired, record["predictions_recorded"]]
            table.add_row(record["project"], *(f"{number:,}" for number in numbers))
    Console().print(table)


@contextmanager
def _stopping_gently(shown: Console) -> Iterator[threading.Event]:
    """The first Ctrl-C sets the event; the second ends at once."""
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        shown.print("groundingml: stopping after this page ...")

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
