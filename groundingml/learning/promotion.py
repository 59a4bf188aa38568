"""Whether a trained version may serve: only if it is measured to be better, and has not forgotten the
rest."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PromotionRule:
    """least_gain: by so much mAP50 on the held-out tasks a version must beat the one that serves.
    most_forgotten: so much of its mAP50 on the retention set, as a share, it may lose."""

    least_gain: float = 0.01
    most_forgotten: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.least_gain < 1:
            raise ValueError(f"least_gain is an average precision in 0..1, got {self.least_gain}")
        if not 0 <= self.most_forgotten <= 1:
            raise ValueError(f"most_forgotten is a share in 0..1, got {self.most_forgotten}")


@dataclass(frozen=True)
class Scores:
    """mAP50 on the held-out tasks and on the retention set (None without one)."""

    holdout: float
    retention: float | None


@dataclass(frozen=True)
class Decision:
    """Whether to promote, and why, in words for people."""

    promote: bool
    reason: str


def decide(before: Scores, after: Scores, rule: PromotionRule) -> Decision:
    """Compare a new version (``after``) with the one that serves (``before``), both measured on the same
    images."""
    gain = after.holdout - before.holdout
    change = f"held-out mAP50 {before.holdout:.3f} -> {after.holdout:.3f}"
    reasons = []
    if gain < rule.least_gain or gain <= 0:
        verb = "falls" if gain < 0 else "does not rise" if gain == 0 else "rises too little"
        reasons.append(f"{change} {verb} (needed: +{rule.least_gain:g})")
    kept = f"retention {_shown(before.retention)} -> {_shown(after.retention)}"
    forgotten = 0.0
    if before.retention and after.retention is not None:
        forgotten = 1 - after.retention / before.retention
    if forgotten > rule.most_forgotten:
        reasons.append(f"{kept}: {forgotten:.0%} is forgotten (allowed: {rule.most_forgotten:.0%})")
    if reasons:
        return Decision(False, "not promoted: " + "; ".join(reasons))
    without = "no retention set was measured"
    return Decision(True, f"promoted: {change}; {without if after.retention is None else kept}")


def _shown(value: float | None) -> str:
    return "unmeasured" if value is None else f"{value:.3f}"
