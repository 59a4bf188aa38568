"""`groundingml env`: what a bug report needs, and what is missing with the command that mends it."""

from __future__ import annotations

import json
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

import groundingml

_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "pillow",
    "safetensors",
    "scipy",
    "huggingface-hub",
)
_CAPABILITY = "GROUNDINGML_CPU_CAPABILITY"  # chooses the processor capability of the ops
_EXTRAS = {
    "cli": ("typer", "rich"),
    "serve": ("fastapi", "uvicorn", "httpx", "defusedxml"),
    "train": ("faster-coco-eval",),
    "supervision": ("supervision",),
    "cloud": ("dds-cloudapi-sdk",),
    "onnx": ("onnx", "onnxruntime", "openvino"),
}


def env(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Print versions, compiled ops, devices, and what is missing with the command that mends it.

    [bold]Examples[/bold]

      groundingml env

      groundingml env --json > environment.json
    """
    found = collect()
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        _print(found)


def collect() -> dict[str, Any]:
    """All facts as plain values; ``problems`` is a list of {what, why, run}."""
    problems: list[dict[str, str]] = []
    packages = {name: _version(name) for extra in (_PACKAGES, *_EXTRAS.values()) for name in extra}
    problems += [
        _problem(name, "it is not installed", f"{sys.executable} -m pip install {name}")
        for name in _PACKAGES
        if packages[name] is None
    ]
    return {
        "groundingml": groundingml.__version__,
        "installed_at": str(_package_folder()),
        "python": f"{platform.python_version()} ({sys.executable})",
        "os": _os_name(),
        "cpu": f"{_cpu_name()}, {_usable_cores()} of {os.cpu_count()} cores usable",
        "packages": packages,
        **_torch_facts(problems),
        "embedded_model": _embedded_model(problems),
        "models_not_ours": _models_not_ours(packages),
        "problems": problems,
    }


def _torch_facts(problems: list[dict[str, str]]) -> dict[str, Any]:
    """What only a running PyTorch tells: the ops and the devices."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library of PyTorch's own does not load
        install = f"{sys.executable} -m pip install --force-reinstall torch"
        problems.append(_problem("PyTorch", f"it does not import: {error}", install))
        return {"ops": None, "devices": []}
    devices = [{"name": "cpu", "about": f"{torch.get_num_threads()} threads"}]
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(number)
        memory = f"{about.total_memory / 2**30:.0f} GiB"
        devices.append(
            {
                "name": f"cuda:{number}",
                "about": f"{about.name}, compute capability {about.major}.{about.minor}, {memory}",
            }
        )
    return {
        "ops": _ops(problems),
        "torch_cuda": _torch_cuda(torch.version.cuda, torch.cuda.is_available()),
        "devices": devices,
    }


def _ops(problems: list[dict[str, str]]) -> dict[str, Any] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # missing ops are listed below as a problem
            from groundingml import ops

            status = ops.status()
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        run = f"{sys.executable} -m pip install --force-reinstall --no-deps SOURCE_FOLDER_OF_GROUNDINGML"
        if _CAPABILITY in os.environ and _CAPABILITY in str(error):
            run = f"unset {_CAPABILITY}"
        problems.append(_problem("compiled ops", str(error), run))
        return None
    if status.reason is not None:
        problems.append(_problem("compiled ops", status.reason, status.remedy or "see the README"))
    return {
        "compiled": status.available,
        "cpu_capability": status.cpu_capability,
        "cuda_archs": list(status.cuda_archs),
        "build": status.build,
    }


def _torch_cuda(built_with: str | None, usable: bool) -> str:
    if built_with is None:
        return "no: this PyTorch is built for the CPU only"
    return f"{built_with}, usable" if usable else f"{built_with}, but no usable GPU or driver is found"


def _embedded_model(problems: list[dict[str, str]]) -> str | None:
    folder = _package_folder() / "embedded" / "nano"
    weights = folder / "model.safetensors"
    missing = [
        name
        for name in ("config.json", "model.safetensors", "tokenizer.json")
        if not (folder / name).is_file()
    ]
    if missing:
        problems.append(
            _problem(
                "embedded model nano",
                f"{', '.join(missing)} not found in {folder}",
                f"{sys.executable} -m pip install --force-reinstall --no-deps SOURCE_FOLDER_OF_GROUNDINGML",
            )
        )
        return None
    return f"nano, {weights.stat().st_size / 1e6:.1f} MB, {folder}"


def _models_not_ours(packages: dict[str, str | None]) -> dict[str, str]:
    """What `hf:` and `api:` would run. The token's value is nobody's business."""
    sdk, token = packages["dds-cloudapi-sdk"], os.environ.get("DDS_CLOUDAPI_TOKEN")
    allowed = os.environ.get("GROUNDINGML_ALLOW_CLOUD", "").lower() in ("1", "true", "yes", "on")
    return {
        "hf:": f"OWL-ViT, OWLv2, OmDet-Turbo of transformers {packages['transformers'] or '(not installed)'}",
        "api:": f"dds-cloudapi-sdk {sdk or 'not installed'}, DDS_CLOUDAPI_TOKEN "
        f"{'set' if token else 'not set'}, {'allowed' if allowed else 'only with --allow-cloud'}",
    }


def _problem(what: str, why: str, run: str) -> dict[str, str]:
    return {"what": what, "why": why, "run": run}


def _package_folder() -> Path:
    return Path(groundingml.__file__).parent


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _os_name() -> str:
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        name = platform.system()
    return f"{name}, {platform.release()}, {platform.machine()}"


def _usable_cores() -> int | None:
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _print(found: dict[str, Any]) -> None:
    for name, value in _lines(found):
        typer.echo(f"{name:<28}{value}")
    for problem in found["problems"]:
        typer.echo("")
        typer.secho(f"Missing: {problem['what']}", fg="red", bold=True)
        typer.echo(f"  why: {problem['why']}")
        typer.echo(f"  run: {problem['run']}")
    if not found["problems"]:
        typer.echo("\nNothing is missing.")


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name in ("groundingml", "installed_at", "python", "os", "cpu"):
        yield name.replace("_", " "), found[name]
    installed = [f"{name} {version}" for name, version in found["packages"].items() if version is not None]
    yield "packages", ", ".join(installed)
    for extra, packages in _EXTRAS.items():
        absent = [name for name in packages if found["packages"][name] is None]
        if absent:
            yield "not installed", f"{', '.join(absent)} (optional: pip install 'groundingml[{extra}]')"
    ops = found["ops"]
    if ops is not None:
        yield "compiled ops", "yes" if ops["compiled"] else "no, the slower PyTorch reference is used"
        yield "processor capability", ops["cpu_capability"]
        yield "CUDA architectures", ", ".join(ops["cuda_archs"]) or "no CUDA kernels compiled"
        for name, value in ops["build"].items():
            yield f"ops built with {name}", value or "-"
    if found["devices"]:
        yield "CUDA of PyTorch", found["torch_cuda"]
    for device in found["devices"]:
        yield "device", f"{device['name']}: {device['about']}"
    yield "embedded model", found["embedded_model"] or "missing"
    for prefix, about in found["models_not_ours"].items():
        yield f"not ours, --model {prefix}", about
