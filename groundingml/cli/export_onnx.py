"""`groundingml export onnx`: a model of the Grounding DINO family as one ONNX file."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

from groundingml.cli.options import Model

if TYPE_CHECKING:
    from groundingml.models.grounding_dino.network import GroundingDino

_TOLERANCE = 1e-3


def export_onnx(
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write: model.onnx.")],
    model: Model = "nano",
    msda_op: Annotated[
        str,
        typer.Option(
            metavar="standard|custom",
            help="Deformable attention from standard operators, which every runtime has, or as one node "
            "groundingml::MSDeformAttnFromOffsets for a runtime with a kernel for it.",
        ),
    ] = "standard",
    check: Annotated[
        bool, typer.Option(help="Run the file in ONNX Runtime and compare it with PyTorch.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
) -> None:
    """Write a model as one ONNX file for any image size, batch and prompt.

    [bold]Examples[/bold]

      groundingml export onnx --output nano.onnx

      groundingml export onnx --model llmdet-tiny --output llmdet-tiny.onnx

      groundingml export onnx --model grounding-dino-tiny --msda-op custom --output dino.onnx

    The file also holds its tokenizer and how to prepare images; examples/onnx_runtime.py goes from a photo to
    boxes with it, without PyTorch. Needs: pip install 'groundingml\\[onnx]'.
    """
    shown = Console(stderr=True)
    if msda_op not in ("standard", "custom"):
        _fail(f"--msda-op must be standard or custom, got {msda_op!r}", 2)
    if output.exists() and not overwrite:
        _fail(f"{output} exists; add --overwrite to replace it", 2)
    if not output.parent.is_dir():
        _fail(f"there is no folder {output.parent}", 2)
    network, about = _load(model)
    from groundingml.models import onnx_export

    try:
        with shown.status(f"Tracing {model} ...") if shown.is_terminal else nullcontext():
            onnx_export.export_onnx(network, output, msda_op, about)  # type: ignore[arg-type]
    except ImportError as error:
        _fail(f"{error}: pip install 'groundingml[onnx]'", 1)
    except OSError as error:
        _fail(f"{output} cannot be written: {error}", 1)
    except KeyboardInterrupt:
        typer.echo("groundingml: interrupted; nothing was written", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"{output}: {model}, {output.stat().st_size / 1e6:.1f} MB, deformable attention: {msda_op}")
    if check and msda_op == "standard":
        _check(network, output)


def _load(model: str) -> tuple[GroundingDino, dict[str, str]]:
    from groundingml.models import CheckpointError, checkpoint_digest, load_model, tokenizer_file
    from groundingml.models.grounding_dino import GroundingDino

    if model.startswith(("hf:", "api:")):
        _fail(f"{model} is not ours to export; models of the Grounding DINO family are", 1)
    try:
        network = load_model(model)
        about = {"name": model, "digest": checkpoint_digest(model)}
        about["tokenizer"] = tokenizer_file(model).read_text("utf-8")
    except (CheckpointError, OSError) as error:
        _fail(str(error), 1)
    if not isinstance(network, GroundingDino):
        _fail(f"{model} is a GLIP model; only the Grounding DINO family can be exported", 1)
    return network, about


def _check(network: GroundingDino, file: Path) -> None:
    """Two sizes, batches and prompts, with the file's own choice of queries: ties may fall either way."""
    import numpy as np
    import torch

    try:
        import onnxruntime
    except ImportError as error:
        typer.echo(f"groundingml: not checked: {error}", err=True)
        return
    onnxruntime.set_default_logger_severity(3)  # it warns of shapes that are right
    session = onnxruntime.InferenceSession(str(file))
    worst = 0.0
    generator = torch.Generator().manual_seed(0)
    for batch, height, width, tokens in ((1, 160, 224, (4937,)), (2, 131, 97, (4937, 1012, 6556, 2491))):
        pixels = torch.randn(batch, 3, height, width, generator=generator)
        ids = torch.tensor([[101, *tokens, 1012, 102]] * batch).clamp(
            max=network.config.text_config["vocab_size"] - 1
        )
        inputs: dict[str, Any] = {
            "pixel_values": pixels,
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
        }
        logits, boxes, chosen = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        with torch.inference_mode():
            expected = network(pixels, None, ids, topk_indices=torch.from_numpy(chosen))
        real = np.isfinite(expected.logits.numpy())
        difference = np.abs(logits[real] - expected.logits.numpy()[real]).max()
        worst = max(worst, float(difference), float(np.abs(boxes - expected.boxes_cxcywh.numpy()).max()))
    if worst > _TOLERANCE:
        _fail(f"ONNX Runtime differs from PyTorch by {worst:.1e}, more than {_TOLERANCE:.0e}", 1)
    typer.echo(
        f"checked in ONNX Runtime {onnxruntime.__version__}: differs from PyTorch by at most {worst:.0e}"
    )


def _fail(message: str, status: int) -> NoReturn:
    typer.echo(f"groundingml: {message}", err=True)
    raise typer.Exit(status)
