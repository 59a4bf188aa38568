"""Names, hub ids, folders and files; the hub's cache without network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
from huggingface_hub import constants, errors

from groundingml.models.checkpoints import hub, sources
from groundingml.models.checkpoints.errors import CheckpointError
from groundingml.models.checkpoints.sources import HUB_FILES, HUB_IDS, resolve

TINY = "IDEA-Research/grounding-dino-tiny"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache and no network."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def add_to_cache(cache: Path, hub_id: str, files: dict[str, bytes]) -> Path:
    """The layout that the hub's client keeps: blobs, and a snapshot of links to them."""
    commit = "a" * 40
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    for folder in (repository / "blobs", repository / "refs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    for name, content in files.items():
        blob = repository / "blobs" / f"{abs(hash(name)):064x}"
        blob.write_bytes(content)
        (snapshot / name).unlink(missing_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def make_folder(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"{}")
    return folder


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("grounding-dino-tinny", "grounding-dino-tiny"),
        ("LLMDet-Tiny", "llmdet-tiny"),
        ("llmdet_base", "llmdet-base"),
        ("nan", "nano"),
        ("mm-grounding-dino", "mm-grounding-dino-tiny"),
    ],
)
def test_unknown_name_lists_near_matches(name, near):
    with pytest.raises(CheckpointError, match=f"there is no model.*{name}.*Did you mean .*{near}"):
        resolve(name)


def test_unknown_name_without_near_match_lists_all():
    with pytest.raises(CheckpointError) as error:
        resolve("resnet")
    assert all(name in str(error.value) for name in ("nano", *HUB_IDS, *HUB_FILES))


@pytest.mark.parametrize("missing", ["/no/such/folder", "no/such/file.pth", "weights.safetensors"])
def test_missing_path(cache, missing):
    for source in (missing, Path(missing)):
        with pytest.raises(CheckpointError, match=f"there is no folder or file '{missing}'.*looked from"):
            resolve(source)


def test_every_official_checkpoint_has_a_short_name():
    published = {
        "IDEA-Research/grounding-dino-tiny",
        "IDEA-Research/grounding-dino-base",
        *(
            f"openmmlab-community/mm_grounding_dino_{variant}"
            for variant in (
                "tiny_o365v1_goldg",
                "tiny_o365v1_goldg_grit",
                "tiny_o365v1_goldg_v3det",
                "tiny_o365v1_goldg_grit_v3det",
                "base_o365v1_goldg_v3det",
                "base_all",
                "large_o365v2_oiv6_goldg",
                "large_all",
            )
        ),
        *(f"iSEE-Laboratory/llmdet_{size}" for size in ("tiny", "base", "large")),
    }
    assert set(HUB_IDS.values()) == published
    files = (
        "a_tiny_o365",
        "tiny_model_o365",
        "tiny_model_o365_goldg",
        "tiny_model_o365_goldg_cc_sbu",
        "large_model",
    )
    assert set(HUB_FILES.values()) == {f"GLIPModel/GLIP/glip_{name}.pth" for name in files}


def test_a_short_name_of_a_single_file(cache):
    snapshot = add_to_cache(cache, "GLIPModel/GLIP", {"glip_a_tiny_o365.pth": b"x"})
    found = resolve("glip-tiny-a")
    assert found.weights == (snapshot / "glip_a_tiny_o365.pth",)
    assert (found.name, found.config, found.folder) == ("glip-tiny-a", None, None)


@pytest.mark.parametrize("source", ["grounding-dino-tiny", TINY])
def test_from_the_cache_without_network(cache, source):
    snapshot = add_to_cache(cache, TINY, {"config.json": b"{}", "model.safetensors": b"x", "vocab.txt": b""})
    found = resolve(source)
    assert found.weights == (snapshot / "model.safetensors",)
    assert found.config == snapshot / "config.json"
    assert found.folder == snapshot


def test_sharded_and_pytorch_weights_from_the_cache(cache):
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = json.dumps({"weight_map": {"a": shards[0], "b": shards[1]}}).encode()
    sharded = {"config.json": b"{}", "model.safetensors.index.json": index, shards[0]: b"", shards[1]: b""}
    snapshot = add_to_cache(cache, "someone/sharded", sharded)
    assert resolve("someone/sharded").weights == tuple(snapshot / name for name in shards)
    snapshot = add_to_cache(cache, "someone/old", {"config.json": b"{}", "pytorch_model.bin": b""})
    assert resolve("someone/old").weights == (snapshot / "pytorch_model.bin",)


def test_a_file_of_a_hub_repository(cache):
    snapshot = add_to_cache(cache, "ShilongLiu/GroundingDINO", {"groundingdino_swint_ogc.pth": b""})
    found = resolve("ShilongLiu/GroundingDINO/groundingdino_swint_ogc.pth")
    assert found.weights == (snapshot / "groundingdino_swint_ogc.pth",)
    assert found.folder is None
    with pytest.raises(CheckpointError, match=r"hf download ShilongLiu/GroundingDINO other\.pth"):
        resolve("ShilongLiu/GroundingDINO/other.pth")


@pytest.mark.parametrize("files", [{}, {"config.json": b"{}"}], ids=["empty", "only the config"])
def test_empty_cache_says_how_to_fetch(cache, files):
    if files:
        add_to_cache(cache, TINY, files)
    with pytest.raises(CheckpointError) as error:
        resolve("grounding-dino-tiny")
    message = str(error.value)
    assert f"hf download {TINY}" in message
    assert str(cache) in message
    assert "models--IDEA-Research--grounding-dino-tiny" in message


def test_a_cache_that_lacks_a_shard_is_not_used(cache):
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()
    files = {"config.json": b"{}", "model.safetensors.index.json": index, "model-1.safetensors": b""}
    add_to_cache(cache, TINY, files)
    with pytest.raises(CheckpointError, match="hf download"):
        resolve(TINY)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("RepositoryNotFoundError", "the hub has no model 'someone/thing', or it is private"),
        ("GatedRepoError", "asks for a login.*hf auth login"),
        ("HfHubHTTPError", "could not be downloaded.*hf download someone/thing"),
    ],
)
def test_what_the_hub_answers_is_explained(cache, monkeypatch, kind, said):
    error = getattr(errors, kind)
    local = hub.huggingface_hub.snapshot_download

    def answer(*args, local_files_only=False, **options):
        if local_files_only:
            return local(*args, local_files_only=True, **options)
        raise error.__new__(error)  # as it is made from an HTTP response, which differs by release

    monkeypatch.setattr(hub.huggingface_hub, "snapshot_download", answer)
    with pytest.raises(CheckpointError, match=said):
        resolve("someone/thing")


def test_only_what_is_needed_is_downloaded(cache, monkeypatch):
    asked = []

    def download(hub_id, allow_patterns, local_files_only=False):
        if local_files_only:
            raise errors.LocalEntryNotFoundError("not there")
        asked.append(allow_patterns)
        files = (
            {"config.json": b"{}", "pytorch_model.bin": b""} if len(asked) == 2 else {"config.json": b"{}"}
        )
        return str(add_to_cache(cache, hub_id, files))

    monkeypatch.setattr(hub.huggingface_hub, "snapshot_download", download)
    assert resolve("someone/old").weights[0].name == "pytorch_model.bin"
    assert [
        pattern for patterns in asked for pattern in patterns if fnmatch("flax_model.msgpack", pattern)
    ] == []
    assert any(fnmatch("model-00001-of-00002.safetensors", pattern) for pattern in asked[0])
    assert not any(fnmatch("pytorch_model.bin", pattern) for pattern in asked[0])


def test_hf_home_and_offline_switch_of_the_environment(tmp_path):
    """As a user sets them, before anything is imported."""
    add_to_cache(tmp_path / "hub", TINY, {"config.json": b"{}", "model.safetensors": b"x"})
    script = (
        "from groundingml.models.checkpoints.sources import resolve\n"
        "print(resolve('grounding-dino-tiny').weights[0])\n"
        "try:\n    resolve('llmdet-tiny')\n"
        "except ValueError as error:\n    print(error)"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found, refused = done.stdout.strip().splitlines()
    assert found.startswith(str(tmp_path / "hub"))
    assert "hf download iSEE-Laboratory/llmdet_tiny" in refused


def test_the_older_layout_of_llmdet_is_refused_by_name():
    with pytest.raises(
        CheckpointError, match=r"fushh7/llmdet_swin_tiny_hf is an older layout.*use llmdet-tiny"
    ):
        resolve("fushh7/llmdet_swin_tiny_hf")


def test_a_short_name_wins_over_a_folder_of_that_name(cache, tmp_path, monkeypatch):
    make_folder(tmp_path / "grounding-dino-tiny", "config.json", "model.safetensors")
    snapshot = add_to_cache(cache, TINY, {"config.json": b"{}", "model.safetensors": b"x"})
    monkeypatch.chdir(tmp_path)
    assert resolve("grounding-dino-tiny").folder == snapshot
    assert resolve("./grounding-dino-tiny").folder == Path("grounding-dino-tiny")
    assert resolve(Path("grounding-dino-tiny")).folder == Path("grounding-dino-tiny")


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        (("config.json", "model.safetensors", "pytorch_model.bin"), "model.safetensors"),
        (("config.json", "pytorch_model.bin"), "pytorch_model.bin"),
        (("groundingdino_swint_ogc.pth",), "groundingdino_swint_ogc.pth"),
        (("config.json", "nano.safetensors"), "nano.safetensors"),
    ],
)
def test_weights_of_a_folder(tmp_path, names, weights):
    assert resolve(make_folder(tmp_path / "x", *names)).weights == (tmp_path / "x" / weights,)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((), "it is empty"),
        (("config.json", "readme.md"), "it holds config.json, readme.md"),
        (("a.pth", "b.pth"), "several checkpoints, name one: a.pth, b.pth"),
    ],
)
def test_folders_without_one_checkpoint(tmp_path, names, said):
    with pytest.raises(CheckpointError, match=said):
        resolve(make_folder(tmp_path / "x", *names))


def test_a_file_of_a_hugging_face_folder_keeps_its_config(tmp_path):
    folder = make_folder(tmp_path / "x", "config.json", "model.safetensors", "other.pth")
    assert resolve(folder / "model.safetensors").config == folder / "config.json"
    assert resolve(folder / "other.pth").config is None


def test_one_shard_leads_to_the_whole(tmp_path):
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    folder = make_folder(tmp_path / "x", "config.json", *shards)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shards[0], "b": shards[1]}}))
    assert resolve(index).weights == tuple(folder / name for name in shards)
    with pytest.raises(CheckpointError, match="one of several shards; give the folder"):
        resolve(folder / shards[0])


def test_embedded_models_are_in_the_package():
    assert (sources.EMBEDDED / "nano" / "tokenizer.json").is_file()
