"""The recipe against the closed form, torch's own polynomial schedule, and steps of AdamW by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import PolynomialLR

from wsss_afa.errors import UserError
from wsss_afa.methods.optim import AdamWPoly, warmup_poly


def poly_multiplier(step: int, warmup_steps: int, max_steps: int, power: float) -> float:
    """Multiplier of the learning rate: a straight line from 1e-6 to 1, then the polynomial."""
    if step < warmup_steps:
        return 1e-6 + (1 - 1e-6) * step / warmup_steps
    return ((max_steps - step) / max_steps) ** power if step < max_steps else 0.0


def kinds() -> dict[str, list[nn.Parameter]]:
    return {kind: [nn.Parameter(torch.ones(3))] for kind in ("encoder", "norm", "head", "decoder")}


@pytest.mark.parametrize(("warmup", "total", "power"), [(1500, 20000, 1.0), (1500, 80000, 0.9), (0, 10, 2.0)])
def test_schedule_equals_the_closed_form(warmup, total, power):
    multiplier = warmup_poly(warmup, total, power)
    steps = {0, 1, 5, 10, 749, 1499, 1500, 1501, 19999, 20000, total - 1, total, total + 5}
    for step in steps:
        expected = poly_multiplier(step, warmup, total, power)
        assert multiplier(step) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_schedule_by_hand():
    multiplier = warmup_poly(1500, 20000, 1.0)
    assert multiplier(0) == pytest.approx(1e-6)
    assert multiplier(750) == pytest.approx(0.5, abs=1e-6)
    assert multiplier(1500) == pytest.approx(0.925)  # not 1: the polynomial counts from step 0
    assert multiplier(10000) == 0.5
    assert multiplier(20000) == 0


def test_schedule_equals_torch_without_warmup():
    sgd = SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    theirs, ours = PolynomialLR(sgd, total_iters=12, power=0.9), warmup_poly(0, 12, 0.9)
    for step in range(15):
        assert ours(step) == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-9, abs=1e-12)
        sgd.step()
        theirs.step()


def test_norms_have_a_decay_of_their_own():
    optimizer, _ = AdamWPoly(max_steps=100, norm_multiplier=1.0, norm_weight_decay=0.02)(kinds())
    decays = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {"encoder": 0.01, "norm": 0.02, "head": 0.01, "decoder": 0.01}


def test_groups():
    optimizer, _ = AdamWPoly(max_steps=100)(parameters := kinds())
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert {name: group["initial_lr"] for name, group in groups.items()} == pytest.approx(
        {"encoder": 6e-5, "norm": 0.0, "head": 6e-4, "decoder": 6e-4}
    )
    assert {name: group["weight_decay"] for name, group in groups.items()} == {
        "encoder": 0.01,
        "norm": 0.0,
        "head": 0.01,
        "decoder": 0.01,
    }
    assert all(group["betas"] == (0.9, 0.999) for group in groups.values())
    assert all(groups[kind]["params"] == parameters[kind] for kind in parameters)


def test_settings_reach_their_groups():
    recipe = AdamWPoly(
        100,
        lr=0.1,
        weight_decay=0.3,
        betas=[0.5, 0.6],
        norm_multiplier=2,
        head_multiplier=3,
        decoder_multiplier=4,
    )
    optimizer, _ = recipe(kinds())
    assert [group["initial_lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0, 0.3, 0.3]
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.6)


def test_rates_follow_the_schedule():
    recipe = AdamWPoly(max_steps=8, warmup_steps=3)
    optimizer, scheduler = recipe(kinds())
    for step in range(9):
        multiplier = poly_multiplier(step, 3, 8, 1.0)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([6e-5 * multiplier, 0, 6e-4 * multiplier, 6e-4 * multiplier])
        optimizer.step()
        scheduler.step()


def test_one_step_by_hand():
    """AdamW's first step is −lr · sign(g), after the decay by lr · weight_decay."""
    optimizer, _ = AdamWPoly(max_steps=10, lr=0.01, warmup_steps=0, weight_decay=0.5)(parameters := kinds())
    for (parameter,) in parameters.values():
        parameter.grad = torch.tensor([1.0, -2.0, 0.0])
    optimizer.step()
    signs = torch.tensor([1.0, -1.0, 0.0])
    for kind, lr in {"encoder": 0.01, "head": 0.1, "decoder": 0.1}.items():
        torch.testing.assert_close(parameters[kind][0].data, 1 - lr * 0.5 - lr * signs)
    assert torch.equal(parameters["norm"][0].data, torch.ones(3))  # frozen


@pytest.mark.parametrize("max_steps", [0, -1])
def test_length_is_checked(max_steps):
    with pytest.raises(UserError, match="the schedule needs a length") as error:
        AdamWPoly(max_steps=max_steps)
    assert "\n" not in str(error.value)


def test_unknown_kinds_are_refused():
    with pytest.raises(KeyError):
        AdamWPoly(max_steps=10)({"backbone": [nn.Parameter(torch.ones(1))]})
