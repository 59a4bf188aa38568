from __future__ import annotations

from pathlib import Path

import pytest

from groundingml.cli.files import DrawnNames, find_images


@pytest.mark.parametrize(
    ("arguments", "expected", "why"),
    [
        (["photos"], ["photos/below/coffee.PNG", "photos/cat.jpg"], "a folder, with what is below it"),
        (["photos/*.jpg"], ["photos/cat.jpg"], "a pattern, without earlier results"),
        (["photos/**/*.PNG"], ["photos/below/coffee.PNG"], "a recursive pattern"),
        (
            ["photos/cat.jpg", "photos"],
            ["photos/cat.jpg", "photos/below/coffee.PNG"],
            "each file once, in order",
        ),
        (
            ["photos/cat.jpg", "./photos/../photos/cat.jpg"],
            ["photos/cat.jpg", "photos/../photos/cat.jpg"],
            "as given",
        ),
        (
            ["photos/cat.detected.jpg"],
            ["photos/cat.detected.jpg"],
            "a file named by the user is always taken",
        ),
        (["photos/notes.txt"], ["photos/notes.txt"], "whatever it is called"),
        (["missing.jpg"], ["missing.jpg"], "a missing file stays, to be reported"),
        (["nothing/*.jpg"], [], "a pattern may match nothing"),
    ],
)
def test_find_images(
    photos: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: list[str], why: str
) -> None:
    monkeypatch.chdir(photos.parent)
    assert [str(path) for path in find_images(arguments)] == expected, why


def test_a_file_with_brackets_in_its_name_is_no_pattern(tmp_path: Path) -> None:
    path = tmp_path / "photo [1].jpg"
    path.touch()
    assert find_images([str(path)]) == [path]


@pytest.mark.parametrize(
    ("output", "expected", "why"),
    [
        (None, ["cat.detected.jpg", "cat-2.detected.jpg", "dog.detected.jpg"], "the working directory"),
        (
            "drawn",
            ["drawn/cat.detected.jpg", "drawn/cat-2.detected.jpg", "drawn/dog.detected.jpg"],
            "a folder",
        ),
    ],
)
def test_names_never_collide(output: str | None, expected: list[str], why: str) -> None:
    names = DrawnNames(None if output is None else Path(output), single=False)
    images = [Path("a/cat.jpg"), Path("b/cat.png"), Path("dog.gif")]
    assert [str(names.name_for(image)) for image in images] == expected, why


def test_one_output_file_serves_one_image() -> None:
    assert DrawnNames(Path("out.png"), single=True).name_for(Path("cat.jpg")) == Path("out.png")
    with pytest.raises(
        ValueError, match=r"out\.png is one file, but there are several images; name a folder"
    ):
        DrawnNames(Path("out.png"), single=False)
