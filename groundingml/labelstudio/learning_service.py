"""The learning part of a server: it starts the processes of training runs, and lets promoted versions serve.

It looks into the store every few seconds, so that whatever is asked for or decided by another process (a
command, another server) takes effect here too.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from groundingml.labelstudio.api_client import ApiError, LabelStudioApi
from groundingml.labelstudio.model_pool import ModelPool, ServedModel
from groundingml.labelstudio.settings import Settings
from groundingml.labelstudio.train_run import start_train_run
from groundingml.learning.project_run import RunOptions
from groundingml.learning.requests import device_name, due_projects, request_run
from groundingml.learning.versions import VersionError, open_version, process_lives, sweep
from groundingml.store import Store
from groundingml.store.runs import runs_without_owner
from groundingml.store.tables import Run
from groundingml.store.versions import serving_versions

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0
START_AGAIN_S = 30.0
"""A run's process that ended at once is not started again before so long."""
STOP_S = 20.0
_OUR_VERSION = re.compile(r"[0-9a-f]{12}-[0-9a-f]{12}")


class LearningService:
    """A thread that watches the store. ``close`` asks the runs that it started to go on later."""

    def __init__(self, store: Store, data_dir: Path, settings: Settings, pool: ModelPool) -> None:
        self._store = store
        self._data_dir = data_dir
        self._settings = settings
        self._pool = pool
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="learning", daemon=True)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._started_at: dict[int, float] = {}
        self._serving: dict[str, int] = {}
        self._broken: set[int] = set()

    def start(self) -> None:
        """Remove what crashed writers left, let the promoted versions serve, and begin to watch."""
        for folder in sweep(self._data_dir / "versions"):
            logger.info("Removed %s, which a crash had left half written", folder)
        self._switch(at_once=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching. Runs that this server started save their state; the next server goes on with
        them."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        running = [process for process in self._processes.values() if process.poll() is None]
        for process in running:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        for process in running:
            _end(process, deadline)

    def request(self, project: str, trigger: str) -> tuple[Run, bool]:
        """A training run with this server's settings, and whether it is a new one."""
        return request_run(self._store, project, trigger, self._options(), self._settings.recipe)

    def _options(self) -> RunOptions:
        settings = self._settings
        device = settings.device.split(",")[0].strip() or "auto"  # one is enough to train on
        return RunOptions(
            base=settings.model,
            device=device,
            retention=settings.retention,
            least_gain=settings.least_gain,
            most_forgotten=settings.most_forgotten,
        )

    def _watch(self) -> None:
        while not self._stopping.wait(LOOK_EVERY_S):
            self._look()

    def _look(self) -> None:
        try:
            self._switch()
            self._request_due()
            self._start_processes()
        except (SQLAlchemyError, OSError):
            logger.exception("The store could not be looked at; trying again")

    def _switch(self, at_once: bool = False) -> None:
        """Let each project be served by its version; whole and undamaged ones only."""
        with self._store.read() as session:
            wanted = {project: (row.id, row.folder) for project, row in serving_versions(session).items()}
        for project in [project for project in self._serving if project not in wanted]:
            logger.info("Project %s: the base model serves again", project)
            del self._serving[project]
            self._announce_when(self._pool.use(project, None), project)
        for project, (version, folder) in wanted.items():
            if self._serving.get(project) == version or version in self._broken:
                continue
            try:
                path = open_version(self._data_dir / folder).path
            except VersionError as error:
                self._broken.add(version)
                logger.error("Project %s: version %d cannot serve: %s", project, version, error)
                continue
            logger.info("Project %s: version %d serves from now on", project, version)
            self._serving[project] = version
            loaded = self._pool.use(project, str(path), at_once=at_once)
            if not at_once:
                self._announce_when(loaded, project)

    def _announce_when(self, loaded: concurrent.futures.Future[ServedModel], project: str) -> None:
        """Let Label Studio see the new version as soon as it serves, in the background."""
        url, key = self._settings.label_studio_url, self._settings.label_studio_api_key
        if url is None or not project.isdigit():
            return

        def tell(done: concurrent.futures.Future[ServedModel]) -> None:
            if done.exception() is None:
                arguments = (LabelStudioApi(url, key), int(project))
                threading.Thread(target=announce, args=arguments, name="announce", daemon=True).start()

        loaded.add_done_callback(tell)

    def _request_due(self) -> None:
        if self._settings.train_every:
            for project in due_projects(self._store, self._settings.train_every):
                run, is_new = self.request(project, "corrections")
                if is_new:
                    logger.info("Project %s: run %d, after new corrections", project, run.id)

    def _start_processes(self) -> None:
        for run_id in [run_id for run_id, process in self._processes.items() if process.poll() is not None]:
            del self._processes[run_id]
        with self._store.read() as session:
            alone = [run.id for run in runs_without_owner(session, process_lives)]
        for run_id in alone:
            recently = time.monotonic() - self._started_at.get(run_id, -START_AGAIN_S) < START_AGAIN_S
            if run_id in self._processes or recently:
                continue
            self._fill_in(run_id)
            self._started_at[run_id] = time.monotonic()
            self._processes[run_id] = start_train_run(run_id, self._data_dir, self._settings)
            logger.info("Run %d: started process %d", run_id, self._processes[run_id].pid)

    def _fill_in(self, run_id: int) -> None:
        """A run that was asked for without options gets this server's."""
        with self._store.begin() as session:
            run = session.get(Run, run_id)
            if run is not None and not run.options:
                options = self._options()
                run.options = dataclasses.asdict(options)
                run.device, run.recipe = device_name(options.device), self._settings.recipe


def announce(api: LabelStudioApi, project: int) -> None:
    """Make Label Studio ask this backend for its version, and show annotators the live model's predictions.

    A project that shows the predictions of one of our versions, which importing them makes it do, would go on
    showing those of the old one.
    """
    try:
        backends = api.backends(project)  # listing them makes Label Studio call /setup of each
        ours = [one for one in backends if _OUR_VERSION.fullmatch(str(one.get("model_version")))]
        shown = str(api.project(project).get("model_version"))
        if ours and _OUR_VERSION.fullmatch(shown):
            api.request("PATCH", f"/api/projects/{project}/", body={"model_version": ours[-1]["title"]})
            logger.info("Project %d shows the predictions of the live model, no longer of %s", project, shown)
    except ApiError as error:
        logger.warning("Project %d: Label Studio was not told of the new version: %s", project, error)
    finally:
        api.close()


def _end(process: subprocess.Popen[bytes], deadline: float) -> None:
    try:
        process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()  # its last checkpoint is whole, whenever that was
        process.wait()
