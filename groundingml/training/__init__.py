"""Fine-tuning: read annotations, match and score, train, evaluate. Start at ``trainer.py``.

>>> annotations = read_coco("train.json", "images")
>>> dataset = CocoDataset(annotations, model.config, Augmentation())
>>> def evaluate(model):
...     return evaluate_detector(Detector(model, tokenizer), held_out).metrics()
>>> trainer = Trainer(model, tokenizer, dataset, TrainingConfig(epochs=20), "runs/first", evaluate=evaluate)
>>> result = trainer.fit(resume=True)
>>> load_weights(model, result.best)
"""

from groundingml.training.checkpoint import CheckpointError
from groundingml.training.coco import CocoAnnotations, DatasetError, ImageRecord, read_coco
from groundingml.training.dataset import Augmentation, CocoDataset, Sample, TrainingSet, View
from groundingml.training.denoising import DenoisingConfig
from groundingml.training.evaluation import Evaluation, evaluate_detector, score_detections
from groundingml.training.feature_cache import CachedBackbone
from groundingml.training.losses import LossConfig
from groundingml.training.matcher import HungarianMatcher
from groundingml.training.prompts import PromptConfig
from groundingml.training.trainer import StepReport, Trainer, TrainingConfig, TrainingResult, load_weights

__all__ = [
    "Augmentation",
    "CachedBackbone",
    "CheckpointError",
    "CocoAnnotations",
    "CocoDataset",
    "DatasetError",
    "DenoisingConfig",
    "Evaluation",
    "HungarianMatcher",
    "ImageRecord",
    "LossConfig",
    "PromptConfig",
    "Sample",
    "StepReport",
    "Trainer",
    "TrainingConfig",
    "TrainingResult",
    "TrainingSet",
    "View",
    "evaluate_detector",
    "load_weights",
    "read_coco",
    "score_detections",
]
