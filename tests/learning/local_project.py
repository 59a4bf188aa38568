"""A run's process for a project whose annotations are in the store already and whose images are files.

Run as a program: local_project.py STORE_URL DATA_DIR RUN
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from groundingml.inference import Label
from groundingml.learning.lease import RunLease
from groundingml.learning.process import run_here
from groundingml.learning.project_run import ProjectRun
from groundingml.store import open_store
from groundingml.store.tables import Run


class LocalSource:
    """The project's source, without Label Studio."""

    def synchronise(self) -> None:
        """Nothing to do."""

    def labels(self) -> list[Label]:
        return [Label("square"), Label("disc", ("red disc", "disc"))]

    def fetch(self, reference: str) -> bytes:
        return Path(reference).read_bytes()


def main(url: str, data_dir: str, run_id: str) -> int:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    with open_store(url) as store:

        def work(run: Run, lease: RunLease) -> str:
            return ProjectRun(store, Path(data_dir), run, LocalSource(), lease)()

        return run_here(store, int(run_id), work)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
