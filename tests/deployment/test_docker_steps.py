"""The Dockerfile's steps, run for real without a container engine: in a layer over this machine's own files,
which is thrown away afterwards."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.e2e


class Layer:
    """This machine's files with writes kept apart: what an image's layers are to a container."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name in ("upper", "work", "merged"):
            (folder / name).mkdir()

    def path(self, inside: str) -> Path:
        """Where a written file is, seen from outside."""
        return self._folder / "upper" / inside.lstrip("/")

    def run(self, script: str, cwd: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        merged = shlex.quote(str(self._folder / "merged"))
        layers = f"lowerdir=/,upperdir={self._folder / 'upper'},workdir={self._folder / 'work'}"
        inside = f"cd {shlex.quote(cwd)} && {script}"
        prepare = (
            f"mount -t overlay overlay -o {shlex.quote(layers)} {merged} && "
            f"mount --rbind /proc {merged}/proc && mount --rbind /dev {merged}/dev && "
            f"exec chroot {merged} sh -c {shlex.quote(inside)}"
        )
        return subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", prepare],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )


@pytest.fixture
def layer() -> Iterator[Layer]:
    folder = Path(tempfile.mkdtemp(prefix="docker-steps-"))
    try:
        made = Layer(folder)
        probe = made.run("touch /groundingml-probe", "/", {})
        if probe.returncode:
            pytest.skip(f"needs root and overlay mounts: {probe.stderr.strip()[-200:]}")
        yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def instructions(variant: str) -> list[tuple[str, str]]:
    """The instructions of the stages that `variant` is built from, in the order in which they run."""
    parser = pytest.importorskip("dockerfile_parse", reason="pip install dockerfile-parse")
    stages: dict[str, list[tuple[str, str]]] = {}
    bases: dict[str, str] = {}
    name = ""
    for step in parser.DockerfileParser(path=str(ROOT / "Dockerfile")).structure:
        kind, value = step["instruction"], step["value"].replace("${VARIANT}", variant)
        if kind == "FROM":
            base, _, name = value.partition(" AS ")
            name = name or "final"
            bases[name], stages[name] = base, []
        elif name and kind != "COMMENT":
            stages[name].append((kind, value))

    def with_bases(stage: str) -> list[tuple[str, str]]:
        return (with_bases(bases[stage]) if bases[stage] in stages else []) + stages[stage]

    return [*with_bases("build"), *with_bases("final")]


def test_the_steps_make_a_server_that_is_healthy(layer: Layer) -> None:
    # The index for CPU builds of PyTorch is not reached from everywhere; the default one will do. `pip` is
    # that of the tests' environment, which spares the download of what is there.
    environment = {
        "TORCH_INDEX": "",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": "",
        "PIP_ROOT_USER_ACTION": "ignore",
        "GROUNDINGML_NO_CUDA": "1",
    }
    place, command, health = "/", "", ""
    for kind, value in instructions("cpu"):
        if kind == "RUN":
            done = layer.run(value, place, environment)
            assert done.returncode == 0, f"RUN {value}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        elif kind == "WORKDIR":
            place = value
            assert layer.run(f"mkdir -p {shlex.quote(value)}", "/", {}).returncode == 0
        elif kind == "COPY" and "--from" not in value:
            *sources, target = shlex.split(value)
            for source in sources:
                full = layer.path(f"{place}/{target}")
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, full, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
                else:
                    shutil.copy(ROOT / source, full)
        elif kind in ("ENV", "ARG"):
            for assignment in shlex.split(value):
                variable, _, setting = assignment.partition("=")
                environment.setdefault(variable, setting)
        elif kind == "ENTRYPOINT":
            command = shlex.join(json.loads(value))
        elif kind == "CMD":
            command += " " + shlex.join(json.loads(value))
        elif kind == "HEALTHCHECK":
            health = shlex.join(json.loads(re.sub(r"^.*?CMD ", "", value)))

    assert layer.path("/data").stat().st_uid == 10001
    assert not layer.path("/wheels").exists()
    environment |= {"GROUNDINGML_PORT": "19090", "GROUNDINGML_HOST": "127.0.0.1", "HF_HUB_OFFLINE": "1"}
    script = (
        f"{command} > /serve.log 2>&1 & "
        f"for second in $(seq 120); do sleep 1; {health} 2>/dev/null && kill $! && wait $!; "
        "if ! kill -0 $! 2>/dev/null; then cat /serve.log; exit 0; fi; done; cat /serve.log; exit 1"
    )
    done = layer.run(script, "/", environment)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "stopped" in done.stdout, done.stdout[-3000:]
    # From the wheel, ops included, not from the sources that lie beside it.
    done = layer.run("groundingml env", "/", environment)
    assert re.search(r"compiled ops\s+yes", done.stdout), done.stdout + done.stderr
