"""A Label Studio project as a training run needs it: what annotators did, what is asked for, and the
images."""

from __future__ import annotations

import logging

from groundingml.inference import Label
from groundingml.inference.labels import normalise_labels
from groundingml.labelstudio.api_client import LabelStudioApi
from groundingml.labelstudio.images import ImageFetcher
from groundingml.labelstudio.label_config import LabelConfig, parse_label_config
from groundingml.labelstudio.remembered_prompts import learn_prompts
from groundingml.labelstudio.settings import Settings
from groundingml.labelstudio.sync import sync_project
from groundingml.store import Store
from groundingml.store.tables import Project

logger = logging.getLogger(__name__)


class LabelStudioSource:
    """Implements `learning.project_run.ProjectSource`.

    Without Label Studio's address it works with what the store knows, which may lack lost events.
    """

    def __init__(self, store: Store, settings: Settings, project: str) -> None:
        self._store = store
        self._project = project
        self._fetcher = ImageFetcher(settings)
        url = settings.label_studio_url
        self._api = None if url is None else LabelStudioApi(url, settings.label_studio_api_key)

    def synchronise(self) -> None:
        """Repair what webhooks lost.

        Raises:
            ApiError: Label Studio does not answer, or refuses the key.
        """
        if self._api is None:
            logger.warning("LABEL_STUDIO_URL is not set: annotations whose webhooks were lost are missing")
            return
        report = sync_project(self._store, self._api, self._project, learn=learn_prompts)
        logger.info(
            "Compared with Label Studio: %d annotations were new, %d changed, %d deleted",
            len(report.created),
            len(report.changed),
            len(report.deleted),
        )

    def labels(self) -> list[Label]:
        """The labels of the project's config with their prompts. Thresholds do not matter here.

        Raises:
            ValueError: the config is not known, cannot be read, or has no boxes.
        """
        with self._store.read() as session:
            row = session.get(Project, self._project)
        xml = None if row is None else row.label_config
        if self._api is not None:
            xml = str(self._api.project(int(self._project))["label_config"])
        if not xml:
            raise ValueError(
                f"the label config of project {self._project} is not known: set LABEL_STUDIO_URL, or let "
                "Label Studio ask this server once"
            )
        return labels_of_config(parse_label_config(xml, None if row is None else row.extra_params))

    def fetch(self, reference: str) -> bytes:
        """An image as Label Studio has it. Raises FetchError."""
        return self._fetcher.read(reference)


def labels_of_config(config: LabelConfig) -> list[Label]:
    """Everything a config's rectangles look for; a name in two controls is one label."""
    found = [
        Label(label.name, label.prompts, None, control.negative_prompts + label.negative_prompts)
        for control in config.controls
        for label in control.labels
        if label.is_searched
    ]
    return normalise_labels(found) if found else []
