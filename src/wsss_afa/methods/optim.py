"""AdamW over four groups of parameters, with warm-up and polynomial decay (method of the AFA program)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from wsss_afa.errors import UserError

_WARMUP_START = 1e-6  # multiplier of the first warm-up step


def warmup_poly(warmup_steps: int, max_steps: int, power: float) -> Callable[[int], float]:
    """Multiplier of the learning rate at step t, counted from 0.

    t < warm-up: 1 − (1 − t/warm-up)(1 − 1e-6), from 1e-6 up to 1; then (1 − t/T)^power down to 0.

    Examples:
        >>> multiplier = warmup_poly(warmup_steps=10, max_steps=100, power=1.0)
        >>> [round(multiplier(step), 3) for step in (0, 5, 10, 50, 100)]
        [0.0, 0.5, 0.9, 0.5, 0.0]
    """

    def multiplier(step: int) -> float:
        if step < warmup_steps:
            return 1 - (1 - step / warmup_steps) * (1 - _WARMUP_START)
        return float(max(0.0, 1 - step / max_steps) ** power)

    return multiplier


class AdamWPoly:
    """Recipe of the optimiser and its schedule.

    Args:
        max_steps: T, the length of the schedule.
        lr: of the encoder; the other groups are multiples of it.
        weight_decay: of every group but the encoder's norms.
        betas: of AdamW.
        warmup_steps: of the schedule.
        power: of the decay: 1.0 in the released program, 0.9 in the paper.
        norm_multiplier: of the learning rate of the encoder's norms. 0, which is AFA's, freezes them.
        norm_weight_decay: of the encoder's norms; ToCo and MoRe have that of the other groups.
        head_multiplier: of the classifier and the affinity head.
        decoder_multiplier: of the decoder.
    """

    def __init__(
        self,
        max_steps: int, lr: float = 6e-5, weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999), warmup_steps: int = 1500, power: float = 1.0,
        norm_multiplier: float = 0.0, head_multiplier: float = 10.0, decoder_multiplier: float = 10.0,
        norm_weight_decay: float = 0.0,
    ):  # fmt: skip
        if max_steps < 1:
            raise UserError(f"max_steps={max_steps}: the schedule needs a length: trainer.max_steps=20000")
        self.lr, self.weight_decay, self.betas = lr, weight_decay, (betas[0], betas[1])
        self.norm_weight_decay = norm_weight_decay
        self.multipliers = {"encoder": 1.0, "norm": norm_multiplier}
        self.multipliers |= {"head": head_multiplier, "decoder": decoder_multiplier}
        self.schedule = warmup_poly(warmup_steps, max_steps, power)

    def __call__(self, kinds: Mapping[str, Iterable[nn.Parameter]]) -> tuple[AdamW, LambdaLR]:
        """Optimiser of parameters by kind, named as the multipliers; the scheduler steps whenever it does."""
        groups = []
        for kind, parameters in kinds.items():
            rate = self.lr * self.multipliers[kind]
            decay = self.norm_weight_decay if kind == "norm" else self.weight_decay
            groups.append({"params": list(parameters), "name": kind, "lr": rate, "weight_decay": decay})
        optimizer = AdamW(groups, lr=self.lr, betas=self.betas)
        return optimizer, LambdaLR(optimizer, self.schedule)


def parameter_kinds(net: nn.Module) -> dict[str, Sequence[nn.Parameter]]:
    """Sort the trained parameters: encoder, norm (both of ``backbone``), head (all else), ``decoder``."""
    kinds: dict[str, list[nn.Parameter]] = {"encoder": [], "norm": [], "head": [], "decoder": []}
    for name, parameter in net.named_parameters():
        part = name.partition(".")[0]
        kind = "decoder" if part == "decoder" else "head"
        if part == "backbone":
            kind = "norm" if "norm" in name else "encoder"
        if parameter.requires_grad:
            kinds[kind].append(parameter)
    return {kind: tuple(parameters) for kind, parameters in kinds.items()}
