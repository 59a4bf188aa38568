"""`groundingml serve`: the Label Studio ML backend."""

from __future__ import annotations

import errno
import signal
import socket
import sys
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from groundingml.cli.options import (
    AllowCloud,
    AllowHosts,
    DataDir,
    Device,
    LabelStudioApiKey,
    LabelStudioUrl,
    LeastGain,
    Model,
    MostForgotten,
    Recipe,
    Retention,
    StoreUrl,
)
from groundingml.cli.secret_files import read_secret
from groundingml.labelstudio.settings import Settings, SettingsError

if TYPE_CHECKING:
    from fastapi import FastAPI


class LogFormat(str, Enum):
    """How log lines look."""

    TEXT = "text"
    JSON = "json"


class LogLevel(str, Enum):
    """The least level of what is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"


GRACE_S = 30
"""How long running requests may take to finish after SIGTERM or Ctrl-C; tasks of them that are not begun are
left out."""


def serve(
    model: Model = "nano",
    host: Annotated[
        str,
        typer.Option(
            envvar="GROUNDINGML_HOST", help="Address to listen on; 0.0.0.0 is all of this machine's."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(envvar="GROUNDINGML_PORT", min=1, max=65535, help="Port to listen on.")
    ] = 9090,
    device: Device = "auto",
    label_studio_url: LabelStudioUrl = None,
    label_studio_api_key: LabelStudioApiKey = None,
    basic_auth_user: Annotated[
        str | None,
        typer.Option(envvar="GROUNDINGML_BASIC_AUTH_USER", help="Ask for this user name on all but /health."),
    ] = None,
    basic_auth_pass_file: Annotated[
        Path | None,
        typer.Option(envvar="GROUNDINGML_BASIC_AUTH_PASS_FILE", help="File that holds the password for it."),
    ] = None,
    webhook_secret_file: Annotated[
        Path | None,
        typer.Option(
            envvar="GROUNDINGML_WEBHOOK_SECRET_FILE",
            help="File with a secret that webhooks have to show; see `groundingml connect`.",
        ),
    ] = None,
    allow_host: AllowHosts = None,
    allow_cloud: AllowCloud = False,
    data_dir: DataDir = None,
    store: StoreUrl = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            envvar="GROUNDINGML_BATCH_SIZE",
            min=1,
            help="Images computed together (8 on a GPU, 1 on a CPU).",
        ),
    ] = None,
    predict_budget: Annotated[
        float,
        typer.Option(
            envvar="GROUNDINGML_PREDICT_BUDGET",
            min=1,
            help="Seconds after which one request is answered with what is done; Label Studio waits 100.",
        ),
    ] = 85.0,
    train_every: Annotated[
        int | None,
        typer.Option(
            envvar="GROUNDINGML_TRAIN_EVERY",
            min=1,
            help="Train on a project by itself after so many corrections; without it when somebody asks.",
        ),
    ] = None,
    recipe: Recipe = "lora",
    retention: Retention = None,
    least_gain: LeastGain = 0.01,
    most_forgotten: MostForgotten = 0.2,
    log_format: Annotated[
        LogFormat, typer.Option(envvar="GROUNDINGML_LOG_FORMAT", help="text, or json: an object a line.")
    ] = LogFormat.TEXT,
    log_level: Annotated[
        LogLevel,
        typer.Option(envvar="GROUNDINGML_LOG_LEVEL", help="debug adds tracebacks and requests."),
    ] = LogLevel.INFO,
) -> None:
    """Serve the Label Studio ML backend.

    [bold]Examples[/bold]

      LABEL_STUDIO_URL=http://localhost:8080 LABEL_STUDIO_API_KEY=KEY groundingml serve

      groundingml serve --model llmdet-tiny --host 0.0.0.0 --basic-auth-user ann --basic-auth-pass-file pass

      groundingml connect --project 7 --backend-url http://127.0.0.1:9090     [dim]# then connect it[/dim]

    Its status page is at that address, its metrics for Prometheus at /metrics. SIGTERM and Ctrl-C let running
    requests finish.
    """
    try:
        settings = Settings(
            model=model,
            device=device,
            label_studio_url=label_studio_url or None,
            label_studio_api_key=label_studio_api_key or None,
            basic_auth_user=basic_auth_user or None,
            basic_auth_password=read_secret(basic_auth_pass_file, "password"),
            webhook_secret=read_secret(webhook_secret_file, "webhook secret"),
            allow_hosts=tuple(allow_host or ()),
            allow_cloud=allow_cloud,
            data_dir=data_dir,
            store_url=store or None,
            batch_size=batch_size,
            train_every=train_every,
            recipe=recipe,
            retention=retention,
            least_gain=least_gain,
            most_forgotten=most_forgotten,
            predict_budget_s=predict_budget,
        )
    except SettingsError as error:
        _fail(str(error))
    listener = _listen(host, port)
    # Before uvicorn takes over; after its clean shutdown it raises the signal again, for this handler.
    signal.signal(signal.SIGTERM, _exit_cleanly)
    typer.echo(f"groundingml: starting, model {model} ...")
    app = _create_app(settings)
    typer.echo(connecting_help(settings, host, port))
    from groundingml.labelstudio.server_log import configure_logging

    configure_logging(log_format.value, log_level.value, settings.secrets)
    _run(app, listener)


def connecting_help(settings: Settings, host: str, port: int) -> str:
    """What to do in Label Studio to use this backend."""
    shown = "127.0.0.1" if host in ("0.0.0.0", "::", "localhost") else host
    url = f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
    lines = [
        "",
        f"  The ML backend listens on {url}",
        "",
        f"  1. In Label Studio: project > Settings > Model > Connect Model, URL {url}",
        '     (switch on "Interactive preannotations" to type prompts).',
    ]
    if settings.basic_auth_user:
        lines.append(
            f"     Choose Basic auth with user {settings.basic_auth_user} and the password of your file."
        )
    lines += [
        "  2. Label Studio refuses backends on local and private addresses unless started with BOTH:",
        "       ML_BLOCK_LOCAL_IP=false SSRF_PROTECTION_ENABLED=false label-studio start",
        '     With neither it says "URL resolves to a reserved network address". With the first alone the',
        "     backend looks connected but gets no webhook, so corrections are lost silently.",
    ]
    if not settings.label_studio_url:
        lines += [
            "  3. NOT SET: LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY. Without them images uploaded to",
            "     Label Studio cannot be read. The key is under Account & Settings. For example:",
            "       LABEL_STUDIO_URL=http://localhost:8080 LABEL_STUDIO_API_KEY=... groundingml serve",
        ]
    elif not settings.label_studio_api_key:
        lines.append(
            "  3. NOT SET: LABEL_STUDIO_API_KEY. Without it images uploaded to Label Studio cannot be read."
        )
    else:
        lines.append(f"  3. Images are read from {settings.label_studio_url} with your API key.")
    return "\n".join([*lines, ""])


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket, so that a taken port is said at once and not after the model is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        _fail(
            f"{host} is not an address of this machine ({error.strerror}). Use --host 127.0.0.1 or 0.0.0.0."
        )
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            _fail(
                f"Port {port} on {host} is in use, perhaps by another groundingml serve. Stop that, or "
                f"choose another port: groundingml serve --port {port + 1 if port < 65535 else 9090}"
            )
        _fail(f"Cannot listen on {host}:{port}: {error.strerror}.")
    return listener


def _create_app(settings: Settings) -> FastAPI:
    try:
        import uvicorn  # noqa: F401  (its absence has to be said before anything is printed)

        from groundingml.labelstudio import create_app
        from groundingml.store import StoreError

        try:
            return create_app(settings)
        except StoreError as error:
            _fail(str(error))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("groundingml"):
            raise
        _fail(
            f"Serving needs the package {error.name!r}, which is not installed. Install the server "
            "libraries with: pip install 'groundingml[serve]'"
        )


def _run(app: FastAPI, listener: socket.socket) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        """Tells the application at the signal, not only when its last request is done."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            app.state.services.stopping.set()
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=GRACE_S
    )
    try:
        Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        typer.echo("groundingml: stopped.")
    finally:
        listener.close()


def _exit_cleanly(number: int, frame: FrameType | None) -> None:
    typer.echo("groundingml: stopped.")
    sys.exit(0)


def _fail(message: str) -> NoReturn:
    typer.echo(f"groundingml: {message}", err=True)
    raise typer.Exit(1)
