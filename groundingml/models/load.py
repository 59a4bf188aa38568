"""From the name of a model to a network ready to run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from groundingml.models.checkpoints import glip, huggingface, native, plain
from groundingml.models.checkpoints.errors import CheckpointError, mismatch_report
from groundingml.models.checkpoints.formats import to_huggingface_names
from groundingml.models.checkpoints.renaming import rename
from groundingml.models.checkpoints.sizes import config_from_shapes
from groundingml.models.checkpoints.sources import EMBEDDED, CheckpointFiles, resolve
from groundingml.models.checkpoints.weights import read_weights
from groundingml.models.glip import Glip, GlipConfig
from groundingml.models.grounding_dino.config import GroundingDinoConfig
from groundingml.models.grounding_dino.network import GroundingDino
from groundingml.models.skeleton import without_values
from groundingml.models.tokenizer import FastTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BERT_POSITIONS = 512
FITTED_THRESHOLDS = "thresholds.json"
_Network = TypeVar("_Network", GroundingDino, Glip)
_SIZES = ("family", "d_model", "num_levels", "num_queries", "encoder_layers", "decoder_layers")


def load_model(
    source: str | Path, config: GroundingDinoConfig | GlipConfig | Mapping[str, Any] | None = None
) -> GroundingDino | Glip:
    """Load a model for inference: eval mode, float32, on the CPU.

    Args:
        source: a short name (`nano`, `grounding-dino-tiny`, `llmdet-base`, ...), a hub id, a folder or a
            file. The format is told by the parameters' names: Hugging Face, original .pth, MMDetection .pth
            (LLMDet's too), and GLIP's of the last two kinds.
        config: a config of ours, or the dict of a Hugging Face config.json. Without it the config.json beside
            the weights is read, and without that the sizes are read off the weights.

    Returns:
        A `GroundingDino`, or a `Glip` where the weights are GLIP's.

    Raises:
        CheckpointError: nothing found, nothing fetched, an unreadable file, or parameters that do not fit;
            the message names them and says what to do.
    """
    files = resolve(source)
    values = _read_config(files)
    try:
        if values is not None and values.get("model_type") == native.MODEL_TYPE and files.folder is not None:
            if config is not None:
                raise CheckpointError("a model in our own layout has its config; leave `config` out")
            return _build(*native.read_native(files.folder))
        if values is not None and values.get("model_type") == plain.MODEL_TYPE and files.folder is not None:
            if config is not None:
                raise CheckpointError("a model in our own layout has its config; leave `config` out")
            return _load_plain(files.folder)
        weights = read_weights(files.weights)
        if glip.is_glip(weights):
            return _load_glip(config, weights)
        weights = to_huggingface_names(weights)
        chosen = _choose_config(config, values, weights)
        weights = huggingface.from_huggingface_names(weights, chosen)
        return _build(chosen, weights)
    except CheckpointError as error:
        raise CheckpointError(f"cannot load {files.name!r}: {error}") from error


def load_tokenizer(source: str | Path) -> FastTokenizer | PreTrainedTokenizerFast:
    """The tokenizer of a model: that of its folder, else the BERT vocabulary shipped with the package.

    Every published model of the family uses bert-base-uncased. A folder with a vocab.txt and no
    tokenizer.json gives transformers' tokenizer, which is called in the same way.
    """
    folder = resolve(source).folder
    if folder is not None and not (folder / "tokenizer.json").is_file() and (folder / "vocab.txt").is_file():
        from transformers import BertTokenizerFast

        return BertTokenizerFast.from_pretrained(str(folder), model_max_length=BERT_POSITIONS)
    return FastTokenizer(tokenizer_file(source), model_max_length=BERT_POSITIONS)


def tokenizer_file(source: str | Path) -> Path:
    """The tokenizer.json of a model: that of its folder, else BERT's vocabulary shipped with the package."""
    folder = resolve(source).folder
    if folder is not None and (folder / "tokenizer.json").is_file():
        return folder / "tokenizer.json"
    return EMBEDDED / "nano" / "tokenizer.json"


def checkpoint_digest(source: str | Path) -> str:
    """12 hexadecimal digits that identify what decides a model's answers: the SHA-256 of its weights, or of
    several files' together, which are its shards and the thresholds that were fitted for it."""
    files = resolve(source)
    fitted = [] if files.folder is None else [files.folder / FITTED_THRESHOLDS]
    return digest_of_files([*sorted(files.weights), *(file for file in fitted if file.is_file())])


def digest_of_files(files: Iterable[Path]) -> str:
    """12 hexadecimal digits for the contents of some files, in their order."""
    digests = []
    for file in files:
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        digests.append(digest.hexdigest())
    whole = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return whole[:12]


def model_folder(source: str | Path) -> Path | None:
    """The folder that a model's files lie in; None for a single file that belongs to none."""
    return resolve(source).folder


def _read_config(files: CheckpointFiles) -> dict[str, Any] | None:
    if files.config is None:
        return None
    try:
        values = json.loads(files.config.read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{files.config} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{files.config} is not the config of a model")
    return values


def _load_plain(folder: Path) -> GroundingDino | Glip:
    config, weights = plain.read_plain(folder)
    if isinstance(config, GroundingDinoConfig):
        return _build(config, weights)
    with without_values():
        model = Glip(config)
    report = _compare(model.state_dict(), weights, dict)
    if report:
        raise CheckpointError(f"its parameters do not fit the model\n{report}")
    return _fill(model, weights)


def _load_glip(
    given: GroundingDinoConfig | GlipConfig | Mapping[str, Any] | None, weights: Mapping[str, Tensor]
) -> Glip:
    if isinstance(given, GroundingDinoConfig):
        raise CheckpointError("the weights are GLIP's, but the config is one of Grounding DINO")
    named = glip.from_glip_names(weights)
    try:
        if isinstance(given, Mapping):
            given = GlipConfig.from_dict(given)
        config = given or glip.config_from_shapes(named)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"its config does not describe a GLIP model: {error}") from error
    with without_values():
        model = Glip(config)
    report = _compare(model.state_dict(), named, glip.to_glip_names)
    if report:
        raise CheckpointError(f"its parameters do not fit the model\n{report}")
    return _fill(model, named)


def _choose_config(
    given: GroundingDinoConfig | GlipConfig | Mapping[str, Any] | None,
    found: Mapping[str, Any] | None,
    weights: Mapping[str, Tensor],
) -> GroundingDinoConfig:
    if isinstance(given, GlipConfig):
        raise CheckpointError("the config is one of GLIP, but the weights are not GLIP's")
    if isinstance(given, GroundingDinoConfig):
        return given
    values = given or found or config_from_shapes(weights)
    try:
        return GroundingDinoConfig.from_dict(values)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"its config does not describe a model of this family: {error}") from error


def _build(config: GroundingDinoConfig, weights: dict[str, Tensor]) -> GroundingDino:
    """A network made of the very tensors in ``weights`` (emptied on the way): no memory is filled twice."""
    with without_values():
        model = GroundingDino(config)
    report = _compare(model.state_dict(), weights, _file_names)
    if report:
        raise CheckpointError(
            f"its parameters do not fit the model\n{report}{_likely_cause(config, weights)}"
        )
    return _fill(model, weights)


def _fill(model: _Network, weights: dict[str, Tensor]) -> _Network:
    expected = model.state_dict()
    state = {name: weights.pop(name).to(parameter.dtype) for name, parameter in expected.items()}
    model.load_state_dict(state, assign=True)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    return model.eval()


def _compare(
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    file_names: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
) -> str | None:
    """What does not fit, in names that are nearer to the file than ours."""
    if expected.keys() == found.keys() and all(
        found[name].shape == expected[name].shape for name in expected
    ):
        return None
    shapes = [{name: tuple(t.shape) for name, t in file_names(side).items()} for side in (expected, found)]
    return mismatch_report(*shapes)


def _file_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of the Hugging Face layout."""
    renamed = rename(weights, {ours: theirs for theirs, ours in huggingface.NAMES.items()})
    return renamed.weights | {name: weights[name] for name in renamed.unknown}


def _likely_cause(config: GroundingDinoConfig, weights: Mapping[str, Tensor]) -> str:
    if not config.class_bias and any("class_head" in name for name in weights):
        return (
            "\nThe config says Grounding DINO, but the class heads have a bias as in MM-Grounding-DINO and "
            "LLMDet. The first published LLMDet conversions (fushh7/llmdet_swin_*_hf) are like that and not "
            "supported: use llmdet-tiny, llmdet-base or llmdet-large"
        )
    try:
        values = config_from_shapes(_file_names(weights), config.encoder_heads, config.decoder_heads)
        file = GroundingDinoConfig.from_dict(values)
    except (CheckpointError, ValueError):
        return "\nThe file may hold a part of the model only (one shard of several, or a cut state dict)"
    sizes = [(name, getattr(file, name), getattr(config, name)) for name in _SIZES]
    if type(config.backbone) is type(file.backbone):
        theirs, ours = vars(file.backbone), vars(config.backbone)
        sizes += [(f"backbone.{name}", theirs[name], ours[name]) for name in ours]
    differing = [
        f"{name} is {one} in the file, {other} in the config" for name, one, other in sizes if one != other
    ]
    return f"\nThe config is of another model: {'; '.join(differing)}" if differing else ""
