"""`groundingml doctor`: what stands between a Label Studio project and its boxes."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from groundingml.cli.detect import load_detector
from groundingml.cli.options import AllowHosts, Device, LabelStudioApiKey, LabelStudioUrl

if TYPE_CHECKING:
    from groundingml.labelstudio.diagnosis import Finding

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}


def doctor(
    url: LabelStudioUrl = None,
    api_key: LabelStudioApiKey = None,
    project: Annotated[int | None, typer.Option("--project", "-p", min=1, help="Project to check.")] = None,
    backend_url: Annotated[
        str | None,
        typer.Option(help="The backend's URL, as Label Studio is to reach it; by default the connected one."),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            envvar="GROUNDINGML_MODEL",
            help="For a prediction on this machine when no backend is connected.",
        ),
    ] = "nano",
    device: Device = "auto",
    allow_host: AllowHosts = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Check Label Studio, token, backend, images, label config, predictions and webhook, one after the other.

    [bold]Examples[/bold]

      groundingml doctor --url http://localhost:8080 --api-key KEY --project 7

      groundingml doctor --backend-url http://127.0.0.1:9090     [dim]# can Label Studio reach it?[/dim]

    Says of each what is wrong and what to change; the exit status is 1 when something fails. A prediction
    is stored in one task and removed again; --backend-url may make a project for a trial and remove it.
    """
    from groundingml.labelstudio.addresses import FetchError
    from groundingml.labelstudio.api_client import LabelStudioApi
    from groundingml.labelstudio.diagnosis import Diagnosis
    from groundingml.labelstudio.settings import Settings, SettingsError

    logging.basicConfig(level=logging.ERROR, format="groundingml: %(message)s")
    if not url:
        _fail("say where Label Studio is with --url (or LABEL_STUDIO_URL), such as http://localhost:8080")
    try:
        settings = Settings(
            model=model,
            device=device,
            label_studio_url=url,
            label_studio_api_key=api_key or None,
            allow_hosts=tuple(allow_host or ()),
        )
        api = LabelStudioApi(url, api_key, pauses_s=(0.5, 1.0))
    except (SettingsError, FetchError) as error:
        _fail(str(error))
    shown = Console(stderr=True)
    diagnosis = Diagnosis(api, settings, project, backend_url, lambda: load_detector(model, device, shown))
    findings: list[Finding] = []
    try:
        for finding in diagnosis.run():
            findings.append(finding)
            if shown.is_terminal and not as_json:
                shown.print(f"{finding.check}: {finding.status}", markup=False, highlight=False)
    finally:
        api.close()
    failed = any(finding.status == "fail" for finding in findings)
    if as_json:
        report = {"ok": not failed, "findings": [finding.to_dict() for finding in findings]}
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        _print(findings)
    if failed:
        raise typer.Exit(1)


def _print(findings: Sequence[Finding]) -> None:
    table = Table("check", "", "found")
    for finding in findings:
        style = _STYLES[finding.status]
        text = finding.message.replace("[", r"\[")
        if finding.next_step:
            text += "\n[bold]-> " + finding.next_step.replace("[", r"\[") + "[/bold]"
        table.add_row(finding.check, f"[{style}]{finding.status}[/{style}]", text)
    Console().print(table)


def _fail(message: str) -> NoReturn:
    typer.echo(f"groundingml: {message}", err=True)
    raise typer.Exit(2)
