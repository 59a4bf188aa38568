"""What Prometheus may read at /metrics, counted by this process."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 100)
MOST_LABELS = 500
"""Label names with a counter of their own; those of further labels go to "(others)"."""


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "groundingml_requests",
            "HTTP requests by path and status.",
            ("path", "status"),
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "groundingml_request_seconds",
            "Seconds from a request's first byte to its answer.",
            ("path",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.detection_seconds = Histogram(
            "groundingml_detection_seconds",
            "Seconds a detector took for a group of images.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.images = Counter("groundingml_images", "Images detected.", registry=self.registry)
        self.shared = Counter(
            "groundingml_shared_runs",
            "Questions answered by a run that another request had asked for.",
            registry=self.registry,
        )
        self.features_reused = Counter(
            "groundingml_image_features_reused",
            "Questions answered from kept image features.",
            registry=self.registry,
        )
        self.refused = Counter(
            "groundingml_requests_refused",
            "Requests refused as the queue was full.",
            registry=self.registry,
        )
        self.out_of_memory = Counter(
            "groundingml_out_of_memory", "Times a device ran out of memory.", registry=self.registry
        )
        self.predictions = Counter(
            "groundingml_predictions",
            "Predicted tasks by outcome.",
            ("source", "outcome"),
            registry=self.registry,
        )
        self.boxes = Counter(
            "groundingml_predicted_boxes", "Predicted boxes by label.", ("label",), registry=self.registry
        )
        self._labels: set[str] = set()

    def detected(self, seconds: float, images: int) -> None:
        """A detector answered for a group of images."""
        self.detection_seconds.observe(seconds)
        self.images.inc(images)

    def predicted(self, label: str | None) -> None:
        """A box was predicted; None for one without a label."""
        name = label or "(none)"
        if name not in self._labels:
            # Labels may come with tasks, and Prometheus keeps each name for ever.
            if len(self._labels) >= MOST_LABELS:
                name = "(others)"
            else:
                self._labels.add(name)
        self.boxes.labels(name).inc()

    def watch(self, name: str, explanation: str, value: Callable[[], float]) -> None:
        """Add a value that is asked for when Prometheus reads."""
        Gauge(name, explanation, registry=self.registry).set_function(value)

    def watch_each(
        self, name: str, explanation: str, label: str, values: Callable[[], dict[str, float]]
    ) -> None:
        """Add a value for each name that ``values`` returns when Prometheus reads."""
        self.registry.register(_Each(name, explanation, label, values))

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)


class _Each(Collector):
    def __init__(
        self, name: str, explanation: str, label: str, values: Callable[[], dict[str, float]]
    ) -> None:
        self._name, self._explanation, self._label, self._values = name, explanation, label, values

    def describe(self) -> list[Metric]:
        return []  # else the registry would ask for the values to learn the name

    def collect(self) -> list[Metric]:
        family = GaugeMetricFamily(self._name, self._explanation, labels=[self._label])
        for key, value in self._values().items():
            family.add_metric([key], value)
        return [family]
