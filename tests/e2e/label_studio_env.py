"""Make the environment in which the end-to-end tests run Label Studio, and print its folder.

Label Studio's requirements do not go together with ours, so it gets a virtual environment of its own: the
folder `.venv-label-studio`, or the one that GROUNDINGML_LS_VENV names. A migrated, empty database is kept in
it, since the first start of a new one takes minutes. Run again, it does nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

VERSION = "1.23.2"
REPOSITORY = Path(__file__).resolve().parents[2]


def venv_folder() -> Path:
    return Path(os.environ.get("GROUNDINGML_LS_VENV") or REPOSITORY / ".venv-label-studio").absolute()


def install(venv: Path) -> None:
    """Create the environment and install Label Studio, unless it is there in the right version."""
    python = venv / "bin" / "python"
    if python.exists() and installed_version(python) == VERSION:
        return
    say(f"installing Label Studio {VERSION} in {venv} (about two minutes) ...")
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, f"label-studio=={VERSION}"], check=True, stdout=sys.stderr)


def installed_version(python: Path) -> str:
    code = "import importlib.metadata as m; print(m.version('label-studio'))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=False).stdout.strip()


def migrate(venv: Path) -> None:
    """Make the template database, unless it is there. A half-made one never gets its name."""
    template = venv / f"template-{VERSION}.sqlite3"
    if template.exists():
        return
    say("preparing Label Studio's database (two to three minutes, once) ...")
    unfinished = template.with_suffix(".unfinished")
    unfinished.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("LABEL_STUDIO_")},
            "LABEL_STUDIO_BASE_DATA_DIR": folder,
            "DATABASE_NAME": str(unfinished),
            "COLLECT_ANALYTICS": "false",
            "SENTRY_DSN": "",
            "LATEST_VERSION_CHECK": "false",
        }
        done = subprocess.run(
            [venv / "bin" / "label-studio", "init", "-q"],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        sys.exit(f"Label Studio could not make its database:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    unfinished.rename(template)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    folder = venv_folder()
    install(folder)
    migrate(folder)
    print(folder)
