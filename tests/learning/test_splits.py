from __future__ import annotations

import pytest

from groundingml.learning.splits import LEAST_HOLDOUT, TooFewTasks, assign_splits, check_enough, place


def held(splits: dict[str, str]) -> set[str]:
    return {task for task, split in splits.items() if split == "holdout"}


def test_a_fifth_is_held_out_whatever_the_order() -> None:
    tasks = [str(number) for number in range(1000)]
    splits = assign_splits("7", tasks, {})
    assert 150 < len(held(splits)) < 250
    assert assign_splits("7", reversed(tasks), {}) == splits
    assert held(assign_splits("8", tasks, {})) != held(splits)
    assert list(splits) == tasks


def test_the_hash_never_changes() -> None:
    assert place("7", "42") == pytest.approx(0.15379, abs=1e-5)


def test_what_is_assigned_stays() -> None:
    tasks = [str(number) for number in range(100)]
    known = dict.fromkeys(tasks[:50], "train")
    splits = assign_splits("7", tasks, known)  # type: ignore[arg-type]
    assert {task: splits[task] for task in known} == known
    assert held(splits)
    growing: dict[str, str] = {}
    for count in range(1, 101):
        before, growing = growing, assign_splits("7", tasks[:count], growing)  # type: ignore[arg-type]
        assert before.items() <= growing.items()


@pytest.mark.parametrize("count", [5, 6, 7, 8, 12])
@pytest.mark.parametrize("project", [str(number) for number in range(20)])
def test_few_tasks_still_give_something_to_measure(project: str, count: int) -> None:
    splits = assign_splits(project, [str(number) for number in range(count)], {})
    assert len(held(splits)) >= LEAST_HOLDOUT
    check_enough(splits)


def test_what_is_missing_comes_from_new_tasks() -> None:
    known = dict.fromkeys("abcdef", "train")
    splits = assign_splits("7", "abcdefgh", known)  # type: ignore[arg-type]
    assert held(splits) == {"g", "h"}
    assert held(assign_splits("7", "ab", {})) == {"a", "b"}  # too few for anything; check_enough says so


def test_too_few_are_said_in_words() -> None:
    with pytest.raises(TooFewTasks, match=r"1 corrected task with a picture: too few.*at least 5"):
        check_enough({"1": "train"})
    with pytest.raises(TooFewTasks, match="of 9 corrected tasks 0 are held out and 9 trained on"):
        check_enough({str(number): "train" for number in range(9)})
    check_enough(assign_splits("7", ["1", "2", "3", "4", "5"], {}))
