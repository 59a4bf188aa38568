"""`groundingml connect`: a Label Studio project and its backend, in one go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from groundingml.cli.options import LabelStudioApiKey, LabelStudioUrl
from groundingml.cli.secret_files import read_secret
from groundingml.labelstudio.settings import SettingsError


def connect(
    project: Annotated[int, typer.Option("--project", "-p", min=1, help="Project to connect.")],
    url: LabelStudioUrl = None,
    api_key: LabelStudioApiKey = None,
    backend_url: Annotated[
        str, typer.Option(help="The backend's address, as Label Studio reaches it.")
    ] = "http://127.0.0.1:9090",
    title: Annotated[str, typer.Option(help="What Label Studio calls the connection.")] = "groundingml",
    basic_auth_user: Annotated[
        str | None,
        typer.Option(envvar="GROUNDINGML_BASIC_AUTH_USER", help="As given to `groundingml serve`."),
    ] = None,
    basic_auth_pass_file: Annotated[
        Path | None,
        typer.Option(envvar="GROUNDINGML_BASIC_AUTH_PASS_FILE", help="As given to `groundingml serve`."),
    ] = None,
    webhook_secret_file: Annotated[
        Path | None,
        typer.Option(envvar="GROUNDINGML_WEBHOOK_SECRET_FILE", help="As given to `groundingml serve`."),
    ] = None,
) -> None:
    """Connect a Label Studio project to a running backend, with a webhook that carries its credentials.

    [bold]Examples[/bold]

      groundingml connect --url http://localhost:8080 --api-key KEY --project 7

      groundingml connect --project 7 --backend-url http://192.168.1.20:9090 --webhook-secret-file secret.txt

    Label Studio sends no credentials with webhooks of its own making: with a backend that asks for some,
    corrections are lost. This gives the webhook the headers it needs. Doing it again changes what differs.
    """
    from groundingml.labelstudio.addresses import FetchError
    from groundingml.labelstudio.api_client import ApiError, LabelStudioApi
    from groundingml.labelstudio.connecting import ConnectError, Credentials, connect_backend

    if not url:
        _fail("say where Label Studio is with --url (or LABEL_STUDIO_URL), such as http://localhost:8080", 2)
    if (basic_auth_user is None) != (basic_auth_pass_file is None):
        _fail("--basic-auth-user and --basic-auth-pass-file belong together; only one of them is given", 2)
    try:
        credentials = Credentials(
            basic_auth_user,
            read_secret(basic_auth_pass_file, "password"),
            read_secret(webhook_secret_file, "webhook secret"),
        )
        api = LabelStudioApi(url, api_key, pauses_s=(0.5, 1.0, 2.0))
    except (SettingsError, FetchError) as error:
        _fail(str(error), 2)
    try:
        done = connect_backend(api, project, backend_url, credentials, title)
    except (ApiError, ConnectError) as error:
        _fail(str(error), 1)
    finally:
        api.close()
    for change in done.changed:
        typer.echo(f"groundingml: {change}")
    state = "is connected" if done.changed else "was connected so already"
    typer.echo(f'groundingml: project {project} "{done.project}" {state}; it predicts {done.model_version}')


def _fail(message: str, status: int) -> NoReturn:
    typer.echo(f"groundingml: {message}", err=True)
    raise typer.Exit(status)
