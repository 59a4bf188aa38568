"""Fine-tuning: read annotations, match and score, train, evaluate. Start at ``trainer.py``.

>>> annotations = read_coco("train.json", "images")
>>> dataset = ImageDataset(annotations, model.config, Augmentation())
>>> def evaluate(model):
...     return evaluate_detector(Detector(model, tokenizer), held_out).metrics()
>>> trainer = Trainer(model, tokenizer, dataset, TrainingConfig(epochs=20), "runs/first", evaluate=evaluate)
>>> result = trainer.fit(resume=True)
>>> load_weights(model, result.best)
"""

from groundingml.training.adapters import AdapterConfig, merge_adapters
from groundingml.training.annotations import Annotations, DatasetError, ImageRecord
from groundingml.training.augmentation import Augmentation, View
from groundingml.training.checkpoint import CheckpointError
from groundingml.training.config import FitResult, StepReport, TrainingConfig
from groundingml.training.dataset import ImageDataset, Sample, TrainingSet
from groundingml.training.denoising import DenoisingConfig
from groundingml.training.evaluation import Evaluation, evaluate_detector, score_detections
from groundingml.training.feature_cache import CachedBackbone
from groundingml.training.losses import LossConfig
from groundingml.training.matcher import HungarianMatcher
from groundingml.training.prompts import PromptConfig
from groundingml.training.readers import read_annotations, read_coco
from groundingml.training.recipes import Recipe, recipe_for
from groundingml.training.run import Callbacks, TrainingResult, train_from_dataset
from groundingml.training.trainer import Trainer, load_weights

__all__ = [
    "AdapterConfig",
    "Annotations",
    "Augmentation",
    "CachedBackbone",
    "Callbacks",
    "CheckpointError",
    "DatasetError",
    "DenoisingConfig",
    "Evaluation",
    "FitResult",
    "HungarianMatcher",
    "ImageDataset",
    "ImageRecord",
    "LossConfig",
    "PromptConfig",
    "Recipe",
    "Sample",
    "StepReport",
    "Trainer",
    "TrainingConfig",
    "TrainingResult",
    "TrainingSet",
    "View",
    "evaluate_detector",
    "load_weights",
    "merge_adapters",
    "read_annotations",
    "read_coco",
    "recipe_for",
    "score_detections",
    "train_from_dataset",
]
