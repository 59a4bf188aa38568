"""`groundingml serve`: the Label Studio ML backend."""

from __future__ import annotations

import errno
import logging
import signal
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from groundingml.cli.options import AllowCloud, AllowHosts, Device, LabelStudioApiKey, LabelStudioUrl, Model
from groundingml.labelstudio.settings import Settings, SettingsError

if TYPE_CHECKING:
    from fastapi import FastAPI

GRACE_S = 30
"""How long running requests may take to finish after SIGTERM or Ctrl-C."""


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
    allow_host: AllowHosts = None,
    allow_cloud: AllowCloud = False,
) -> None:
    """Serve the Label Studio ML backend."""
    try:
        settings = Settings(
            model=model,
            device=device,
            label_studio_url=label_studio_url or None,
            label_studio_api_key=label_studio_api_key or None,
            basic_auth_user=basic_auth_user or None,
            basic_auth_password=_read_password(basic_auth_pass_file),
            allow_hosts=tuple(allow_host or ()),
            allow_cloud=allow_cloud,
        )
    except SettingsError as error:
        _fail(str(error))
    listener = _listen(host, port)
    # Before uvicorn takes over; after its clean shutdown it raises the signal again, for this handler.
    signal.signal(signal.SIGTERM, _exit_cleanly)
    typer.echo(f"groundingml: starting, model {model} ...")
    app = _create_app(settings)
    typer.echo(connecting_help(settings, host, port))
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

        return create_app(settings)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("groundingml"):
            raise
        _fail(
            f"Serving needs the package {error.name!r}, which is not installed. Install the server "
            "libraries with: pip install 'groundingml[serve]'"
        )


def _run(app: FastAPI, listener: socket.socket) -> None:
    import uvicorn

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for chatty in ("httpx", "httpcore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=GRACE_S
    )
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        typer.echo("groundingml: stopped.")
    finally:
        listener.close()


def _exit_cleanly(number: int, frame: FrameType | None) -> None:
    typer.echo("groundingml: stopped.")
    sys.exit(0)


def _read_password(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8").strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"The password file {file} cannot be read: {error}.") from error


def _fail(message: str) -> NoReturn:
    typer.echo(f"groundingml: {message}", err=True)
    raise typer.Exit(1)
