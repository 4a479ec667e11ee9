"""How long a run takes: its phases, what a step of each costs, and what is therefore still to come.

Nothing is foretold before it is measured. Of a phase that has not begun a step's cost is reckoned from the
latest phase that was measured, by the passes that both make: a training step is worth three forward passes,
and making labels adds one for each scale of the activation map and its mirror image, weighted by area. For
the paper's settings that is 3.0 times a step of classification, where docs/benchmarks.md has 3.6 to 3.7
measured, since classification runs no decoder and refinement is not reckoned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from wsss_afa.methods.supervised import GivenLabels
from wsss_afa.methods.afa.pseudo_labels import PseudoLabeler

WARM_UP = 5
"""Steps at the beginning of a phase that are not measured: loaders start, libraries choose algorithms."""
COUNTED = 20
"""Measured steps after which a pace is worth telling."""


class Phase(NamedTuple):
    """Steps that train with labels of one kind."""

    name: str
    """What segmentation learns from."""
    first: int
    """First step, counted from 0."""
    end: int
    """The step after the last."""
    cost: float
    """Of a step, in steps of classification, reckoned."""

    def __str__(self) -> str:
        return f"{self.name} {self.first}–{self.end - 1}"


def plan(labeler: PseudoLabeler | GivenLabels, max_steps: int) -> list[Phase]:
    """The phases of a run that have a step, in their order.

    Args:
        labeler: knows from which step on labels are made, and which.
        max_steps: optimiser steps of the run.
    """
    if isinstance(labeler, GivenLabels):
        return [Phase("given labels", 0, max_steps, 1.0)]
    start, propagation = labeler.start_step + 1, labeler.propagation_step + 1  # a step beyond has them
    if labeler.propagate is None:
        propagation = max_steps
    own = "thresholded activation maps" if labeler.refine is None else "refined labels"
    cost = 1 + _label_passes(labeler) / 3
    phases = [
        Phase("classification", 0, min(start, max_steps), 1.0),
        Phase(own, start, min(propagation, max_steps), cost),
        Phase("propagated labels", max(start, propagation), max_steps, cost),
    ]
    return [phase for phase in phases if phase.end > phase.first]


def _label_passes(labeler: PseudoLabeler) -> float:
    """Forward passes of the activation map, in passes of a crop."""
    scales = labeler.cam.scales
    known = labeler.reuse_training_pass and 1.0 in scales
    return sum(scale**2 for scale in scales) * (1 + labeler.cam.mirror) - known


class Pace:
    """Measures a run: seconds in training and in validation, and of a step of each phase.

    Args:
        phases: of the run, from `plan`.
        now: a clock's seconds, as in all methods.
    """

    def __init__(self, phases: Sequence[Phase], now: float):
        self.phases = phases
        self.training = self.validation = 0.0
        """Seconds so far."""
        self.last_validation: float | None = None
        """Seconds of the last validation."""
        self._mark = now
        self._seen = [0] * len(phases)
        self._seconds = [0.0] * len(phases)

    def count_step(self, step: int, now: float) -> None:
        """A step (counted from 0) is over."""
        index = self.phase_of(step)
        self._seen[index] += 1
        if self._seen[index] > WARM_UP:
            self._seconds[index] += now - self._mark
        self.training += now - self._mark
        self._mark = now

    def begin_validation(self, now: float) -> None:
        """Training pauses."""
        self.training += now - self._mark
        self._mark = now

    def end_validation(self, now: float) -> None:
        """Training goes on."""
        self.last_validation = now - self._mark
        self.validation += self.last_validation
        self._mark = now

    def phase_of(self, step: int) -> int:
        """Index of the phase that a step (counted from 0) belongs to."""
        return next(i for i, phase in enumerate(self.phases) if step < phase.end)

    def measured(self, index: int) -> int:
        """Steps of a phase that were measured."""
        return max(0, self._seen[index] - WARM_UP)

    def step_seconds(self, index: int) -> float | None:
        """Seconds of a step of a phase, measured or reckoned; None before any was measured."""
        known = [i for i in range(len(self.phases)) if self.measured(i)]
        if not known:
            return None
        nearest = index if index in known else max(known)
        seconds = self._seconds[nearest] / self.measured(nearest)
        return seconds * self.phases[index].cost / self.phases[nearest].cost

    def remaining(self, done: int, validations: int) -> float | None:
        """Seconds to go after so many steps, with validations once one was measured; None if unknown.

        Args:
            done: optimiser steps done.
            validations: that are yet to come.
        """
        total = validations * (self.last_validation or 0.0)
        for index, phase in enumerate(self.phases):
            steps = phase.end - max(phase.first, done)
            if steps > 0:
                seconds = self.step_seconds(index)
                if seconds is None:
                    return None
                total += steps * seconds
        return total


def format_seconds(seconds: float) -> str:
    """A duration in its two largest units, as in ``3 h 10 min``."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min" if minutes >= 10 else f"{round(seconds) // 60} min {round(seconds) % 60} s"
    return f"{minutes // 60} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
