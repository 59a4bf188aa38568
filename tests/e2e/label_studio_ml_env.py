"""Make the environment in which the end-to-end tests run label-studio-ml, and print its folder.

label-studio-ml 1.0.9 pins a Flask that nothing else should have, so it gets a virtual environment of its own,
the folder `.venv-label-studio-ml`, which sees this environment's packages behind its own. Run again, it does
nothing.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

VERSION = "1.0.9"
REPOSITORY = Path(__file__).resolve().parents[2]


def make(venv: Path) -> None:
    """Create the environment, unless it is there."""
    python = venv / "bin" / "python"
    ready = venv / f"ready-{VERSION}"
    if ready.exists():
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    # What it needs and does not declare: redis, rq.
    subprocess.run([*pip, f"label-studio-ml=={VERSION}", "redis", "rq"], check=True, stdout=sys.stderr)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    (Path(packages) / "of-the-tests.pth").write_text(
        f"{REPOSITORY}\n{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n"
    )
    ready.touch()


if __name__ == "__main__":
    folder = REPOSITORY / ".venv-label-studio-ml"
    make(folder)
    print(folder)
