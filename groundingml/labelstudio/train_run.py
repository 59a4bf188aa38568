"""The program of a training run's process: ``python -m groundingml.labelstudio.train_run RUN``.

The server and `groundingml train --project` start it; what it may need of their settings, keys among it,
comes in one environment variable, which other users cannot read.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from groundingml.labelstudio.settings import Settings

SETTINGS_VARIABLE = "GROUNDINGML_TRAIN_RUN"


def start_train_run(
    run_id: int, data_dir: Path, settings: Settings, threads: int | None = None
) -> subprocess.Popen[bytes]:
    """Start the process of a run."""
    from groundingml.learning.process import start_process

    told = {
        "data_dir": str(data_dir.absolute()),
        "store_url": settings.store_url,
        "label_studio_url": settings.label_studio_url,
        "label_studio_api_key": settings.label_studio_api_key,
        "allow_hosts": list(settings.allow_hosts),
    }
    command = [sys.executable, "-m", "groundingml.labelstudio.train_run", str(run_id)]
    return start_process(
        command, data_dir / "runs" / str(run_id), {SETTINGS_VARIABLE: json.dumps(told)}, threads
    )


def main(arguments: list[str], environment: Mapping[str, str]) -> int:
    """Claim the run and do it; the exit status."""
    from groundingml.labelstudio.project_source import LabelStudioSource
    from groundingml.learning.lease import RunLease
    from groundingml.learning.process import run_here
    from groundingml.learning.project_run import ProjectRun
    from groundingml.store import default_url, open_store
    from groundingml.store.tables import Run

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for chatty in ("httpx", "httpcore", "matplotlib", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    told = json.loads(environment[SETTINGS_VARIABLE])
    data_dir = Path(told["data_dir"])
    settings = Settings(
        data_dir=data_dir,
        store_url=told["store_url"],
        label_studio_url=told["label_studio_url"],
        label_studio_api_key=told["label_studio_api_key"],
        allow_hosts=tuple(told["allow_hosts"]),
    )
    with open_store(settings.store_url or default_url(data_dir)) as store:

        def work(run: Run, lease: RunLease) -> str:
            assert run.project is not None
            source = LabelStudioSource(store, settings, run.project)
            return ProjectRun(store, data_dir, run, source, lease)()

        return run_here(store, int(arguments[0]), work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
