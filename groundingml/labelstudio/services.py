"""What the parts of one server share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import func, select

from groundingml.inference import ObjectDetector
from groundingml.labelstudio.capture import Capture
from groundingml.labelstudio.images import ImageFetcher
from groundingml.labelstudio.known_projects import KnownProjects
from groundingml.labelstudio.learning_service import LearningService
from groundingml.labelstudio.metrics import Metrics
from groundingml.labelstudio.model_pool import ModelPool
from groundingml.labelstudio.prediction_records import record_in
from groundingml.labelstudio.predictor import Predictor
from groundingml.labelstudio.remembered_prompts import RememberedPrompts, learn_prompts
from groundingml.labelstudio.server_log import RecentTroubles
from groundingml.labelstudio.settings import Settings
from groundingml.labelstudio.versions import ServedVersions
from groundingml.store import Store, default_data_dir, default_url, open_store
from groundingml.store.tables import Correction


@dataclass
class Services:
    """The parts of one server."""

    settings: Settings
    store: Store
    pool: ModelPool
    metrics: Metrics
    fetcher: ImageFetcher
    predictor: Predictor
    projects: KnownProjects
    prompts: RememberedPrompts
    capture: Capture
    learning: LearningService
    troubles: RecentTroubles
    served: ServedVersions = field(default_factory=ServedVersions)
    stopping: threading.Event = field(default_factory=threading.Event)
    """Set when the server is to end: what is begun is finished, nothing more is begun."""
    wake_jobs: Callable[[], None] = lambda: None
    """Has waiting labelling jobs begun at once, and not at the next look."""


def build_services(settings: Settings, detector: ObjectDetector | None = None) -> Services:
    """Make the parts of a server. Nothing runs yet.

    Raises:
        StoreError: the database cannot be used.
    """
    data_dir = settings.data_dir or default_data_dir()
    store = open_store(settings.store_url or default_url(data_dir))
    metrics = Metrics()
    pool = ModelPool(settings.model, settings.device, detector, allow_cloud=settings.allow_cloud)
    capture = Capture(store, learn_prompts)
    fetcher = ImageFetcher(settings, cache_folder=data_dir / "cache" / "images")

    predictor = Predictor(settings, pool, fetcher=fetcher, metrics=metrics, on_predicted=record_in(capture))
    services = Services(
        settings,
        store,
        pool,
        metrics,
        fetcher,
        predictor,
        KnownProjects(store),
        RememberedPrompts(store),
        capture,
        LearningService(store, data_dir, settings, pool),
        RecentTroubles(settings.secrets),
    )
    metrics.watch("groundingml_queue_waiting", "Images that wait.", lambda: predictor.queue.waiting)
    metrics.watch("groundingml_queue_running", "Images being detected.", lambda: predictor.queue.running)
    metrics.watch_each(
        "groundingml_model_loaded",
        "1 for each loaded model, by checkpoint digest.",
        "digest",
        lambda: {m.digest: 1.0 for m in pool.models() if m.digest and m.state == "ready"},
    )
    metrics.watch_each(
        "groundingml_corrections",
        "What became of predicted boxes in submitted annotations, by kind.",
        "kind",
        lambda: _corrections(store),
    )
    return services


def _corrections(store: Store) -> dict[str, float]:
    with store.read() as session:
        counted = session.execute(select(Correction.kind, func.count()).group_by(Correction.kind))
        return {kind: float(count) for kind, count in counted}
