"""From an image and a prompt to labelled boxes: the one path that serving, evaluation and the command line
share."""

from groundingml.inference.bulk import WorkerError, detect_many
from groundingml.inference.bulk_worker import BulkResult
from groundingml.inference.detections import Detections
from groundingml.inference.detector import Detector
from groundingml.inference.encoded_image import EncodedImage
from groundingml.inference.images import ImageError, ImageSource, load_image
from groundingml.inference.labels import Label, Labels, prompt_digest
from groundingml.inference.loading import load_detector, source_digest
from groundingml.inference.object_detector import ObjectDetector, RunStopped
from groundingml.inference.phrases import Phrase, extract_phrases
from groundingml.inference.prompts import PromptError
from groundingml.inference.thresholds import Thresholds
from groundingml.inference.tiling import Tiling

__all__ = [
    "BulkResult",
    "Detections",
    "Detector",
    "EncodedImage",
    "ImageError",
    "ImageSource",
    "Label",
    "Labels",
    "ObjectDetector",
    "Phrase",
    "PromptError",
    "RunStopped",
    "Thresholds",
    "Tiling",
    "WorkerError",
    "detect_many",
    "extract_phrases",
    "load_detector",
    "load_image",
    "prompt_digest",
    "source_digest",
]
