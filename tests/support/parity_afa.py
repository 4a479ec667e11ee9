"""Golden files of AFA: a training step, and refinement."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from parity_rows import File, Row, complete, relative, settings, state_of
from parity_rows import labels as label_row
from parity_rows import real as real_row
from wsss_afa.losses.affinity import AffinityLoss
from wsss_afa.losses.classification import ClassificationLoss
from wsss_afa.losses.dense_energy import DenseEnergyLoss
from wsss_afa.losses.segmentation import balanced_cross_entropy
from wsss_afa.methods.afa.method import AFA
from wsss_afa.methods.afa.network import AFANet
from wsss_afa.methods.afa.released import rename_afa
from wsss_afa.methods.optim import AdamWPoly
from wsss_afa.models.backbones.mix_transformer import MixTransformer, attention_logits
from wsss_afa.ops.affinity import radius_mask
from wsss_afa.ops.cam import MultiScaleCAM
from wsss_afa.ops.images import to_rgb
from wsss_afa.ops.labels import cam_label, ignore_outside, own_classes
from wsss_afa.ops.par import PixelAdaptiveRefinement
from wsss_afa.ops.random_walk import RandomWalkPropagation
from wsss_afa.types import AffinityTokens, Batch

REAL, LOSS, TRAINED, LABELS = 1e-5, 1e-4, 1e-4, 1e-3
real, labels = partial(real_row, tolerance=REAL), partial(label_row, tolerance=LABELS)


def build(meta: dict[str, Any], state: dict[str, Tensor]) -> AFA:
    """The method with the file's weights and settings, propagating from the first step on."""
    backbone = MixTransformer(
        embed_dims=meta["embed_dims"],
        depths=meta["depths"],
        num_heads=meta["num_heads"],
        sr_ratios=meta["sr_ratios"],
        mlp_ratio=meta["mlp_ratio"],
        strides=meta["strides"],
        drop_path_rate=0.0,
    )
    method = AFA(
        backbone,
        num_classes=meta["num_classes"] - 1,
        cam=MultiScaleCAM(meta["scales"]),
        refine=PixelAdaptiveRefinement(meta["par_iter"], meta["dilations"]),
        propagate=RandomWalkPropagation(meta["radius"]),
        classification=ClassificationLoss(),
        affinity=AffinityLoss(),
        dense_energy=DenseEnergyLoss(),
        phases={"classification": 0, "segmentation": 0, "propagation": 0},
        weights={"cls": 1.0, "seg": 0.1, "aff": 0.1, "reg": 0.0},
        decoder_dim=meta["decoder_dim"],
        low=meta["low_thre"],
        high=meta["high_thre"],
        eval_threshold=meta["bkg_score"],
        affinity_radius=meta["radius"],
        affinity_from_propagated=meta.get("coco", False),
    )
    method.net.load_state_dict(rename_afa(state))
    method.net.decoder.dropout.p = 0.0
    return method


def spread(maps: Tensor, ids: Tensor, present: Tensor, num_outputs: int) -> Tensor:
    """Maps of own classes (B, G, h, w) back at their class ids (B, K, h, w), 0 elsewhere."""
    index = ids[:, :, None, None].expand_as(maps)
    full = maps.new_zeros(len(maps), num_outputs, *maps.shape[-2:])
    return full.scatter_add_(1, index, maps * present[:, :, None, None])


def compare_step(file: File) -> Iterator[Row]:
    """Rows of a training-step file."""
    meta = settings(file)
    method = build(meta, state_of(file))
    batch: Batch = {
        "image": torch.from_numpy(file["in/image"]),
        "class_label": torch.from_numpy(file["in/class_labels"]),
        "valid_box": torch.from_numpy(file["in/image_box"]).long(),
        "name": [],
    }
    out = {k[len("out/") :]: v for k, v in file.items() if k.startswith("out/")}
    rows = chain(
        _evaluation_mode(method.net, batch, out),
        _training_mode(method, batch, out, meta),
        _step(method, batch, file),
    )
    yield from complete(file, rows, ("out/", "grad_norm/", "final_norm/"))


def _evaluation_mode(net: AFANet, batch: Batch, out: File) -> Iterator[Row]:
    net.eval()
    with torch.no_grad():
        encoded, result = net.backbone(batch["image"]), net(batch["image"])
    ours = {f"feature{i + 1}": feature for i, feature in enumerate(encoded.features)} | {
        "attention_logits": attention_logits(encoded.queries, encoded.keys),
        "class_logits": result.class_logits,
        "seg_logits": result.seg_logits,
        "affinity": result.affinity,
        "cam_raw": result.activation.cam,
    }
    yield from (real(f"out/{name}", ours[name], out[name]) for name in ours if name in out)


def _training_mode(
    method: AFA, batch: Batch, out: dict[str, np.ndarray], meta: dict[str, Any]
) -> Iterator[Row]:
    net, labeler, refined = method.net, method.labeler, method.labeler.refined
    image, tags, box = batch["image"], batch["class_label"], batch["valid_box"]
    net.train()
    with torch.no_grad():
        result = copy.deepcopy(net)(image)
        activation = labeler.cam(net, image, result.activation)
        affinity = net.affinity_head(activation.tokens)
        mirrored = net.affinity_head(_mirrored_tokens(net, image, max(meta["scales"])))
        classes = own_classes(tags)
        rgb = to_rgb(image, method.mean, method.std)
        propagated = labeler.propagated_maps(activation, affinity, classes)
        refined_affinity_cam = refined.maps_in_box(rgb, propagated, box)
        par_label = refined(rgb, activation.cam, classes, box)
        made = labeler(net, batch, result, propagating=True)
    grid, large = result.activation.tokens.grid, activation.tokens.grid
    assert made.segmentation is not None
    assert made.affinity is not None
    reals = {
        "train_class_logits": result.class_logits,
        "train_seg_logits": result.seg_logits,
        "cam": activation.cam,
        "affinity_large": torch.cat([affinity, mirrored]),
    }
    for name, maps in (("propagated", propagated), ("refined_affinity_cam", refined_affinity_cam)):
        for level, values in zip(("low", "high"), maps, strict=True):
            reals[f"{name}_{level}"] = spread(values, *classes, meta["num_classes"])
    label_maps = {
        "cam_label": ignore_outside(cam_label(activation.cam, tags, *refined.backgrounds), box),
        "pseudo_label_par": par_label,
        "pseudo_label_affinity": made.segmentation,
        "radius_mask": radius_mask(*grid, meta["radius"]),
        "radius_mask_large": radius_mask(*large, meta["radius"]),
        "affinity_label": made.affinity,
    }
    yield from (real(f"out/{name}", value, out[name]) for name, value in reals.items() if name in out)
    yield from (labels(f"out/{name}", value, out[name]) for name, value in label_maps.items() if name in out)


def _mirrored_tokens(net: AFANet, image: Tensor, scale: float) -> AffinityTokens:
    size = [int(scale * side) for side in image.shape[-2:]]
    scaled = F.interpolate(image, size=size, mode="bilinear", align_corners=False)
    return net.activate(scaled.flip(-1)).tokens


def _step(method: AFA, batch: Batch, file: File) -> Iterator[Row]:
    """Losses and gradients of the first step, then as many optimiser steps as the file has."""
    meta = settings(file)
    recipe = AdamWPoly(max_steps=meta["max_iter"], lr=meta["lr"], warmup_steps=meta["warmup"])
    optimizer, scheduler = recipe(method.parameter_kinds())
    expected = file.get("out/trajectory")
    trajectory: list[list[float]] = []
    for step in range(1 if expected is None else len(expected)):
        values, total = _losses(method, batch)
        optimizer.zero_grad()
        total.backward()
        if step == 0:
            if "out/losses" in file:
                yield Row("out/losses", relative(values, file["out/losses"]), LOSS)
            yield from _gradient_norms(method.net, file)
        trajectory.append([*values, optimizer.param_groups[0]["lr"]])
        optimizer.step()
        scheduler.step()
    if expected is not None:
        yield Row("out/trajectory", relative(trajectory, expected), TRAINED)
        moved = {id(p): sum(recipe.schedule(t) for t in range(len(expected))) * group["initial_lr"]
                 for group in optimizer.param_groups for p in group["params"]}  # fmt: skip
        yield from _final_norms(method.net, file, moved)


def _losses(method: AFA, batch: Batch) -> tuple[list[float], Tensor]:
    """L_cls, L_seg with the PAR label, L_seg with the propagated label, L_aff, total; and the total."""
    terms = method.losses(batch, step=0)
    total = torch.stack([method.weights[name] * term for name, term in terms.items()]).sum()
    with torch.no_grad():
        output = method.net(batch["image"])
        activation = method.cam(method.net, batch["image"], output.activation)
        classes, rgb = own_classes(batch["class_label"]), to_rgb(batch["image"], method.mean, method.std)
        label = method.labeler.refined(rgb, activation.cam, classes, batch["valid_box"])
        with_par = balanced_cross_entropy(output.seg_logits, label)
    values = [terms["cls"], with_par, terms["seg"], terms["aff"], total]
    return [value.item() for value in values], total


def _gradient_norms(net: AFANet, file: File) -> Iterator[Row]:
    ours = _released_names(file)
    for name, theirs in _stored(file, "grad_norm").items():
        gradient = net.get_parameter(ours[name]).grad
        norm = 0.0 if gradient is None else gradient.double().norm().item()
        if name in _without_gradient(file):
            yield Row(f"grad_norm/{name}", norm, _ROUNDING)
        else:
            yield Row(f"grad_norm/{name}", abs(norm - theirs) / theirs, LOSS)


def _final_norms(net: AFANet, file: File, moved: dict[int, float]) -> Iterator[Row]:
    """Norms after training; ``moved`` is the farthest that AdamW can have moved an entry of a parameter."""
    ours = _released_names(file)
    for name, theirs in _stored(file, "final_norm").items():
        parameter = net.get_parameter(ours[name])
        difference = abs(parameter.double().norm().item() - theirs) / max(theirs, 1e-12)
        noise = name in _without_gradient(file)
        reach = 2 * moved[id(parameter)] * parameter.numel() ** 0.5 / theirs if noise else TRAINED
        yield Row(f"final_norm/{name}", difference, reach)


_ROUNDING = 1e-6
"""Norm below which a gradient is the rounding error of one that is 0 in exact arithmetic. It is for the
biases before BatchNorm, which takes any constant away. AdamW scales such noise up to whole steps, in the
released program as in ours, so that these parameters end anywhere within reach of the learning rate."""


def _without_gradient(file: File) -> set[str]:
    return {
        name for name in _stored(file, "grad_norm") if re.fullmatch(r"decoder\.linear_c\d\.proj\.bias", name)
    }


def _stored(file: File, prefix: str) -> dict[str, float]:
    return {name[len(prefix) + 1 :]: float(v) for name, v in file.items() if name.startswith(f"{prefix}/")}


def _released_names(file: File) -> dict[str, str]:
    """Released name → ours, by sending numbered tensors through the renamer."""
    released = [name[len("state/") :] for name in file if name.startswith("state/")]
    numbered = {name: torch.full((1,), float(i)) for i, name in enumerate(released)}
    return {released[int(value)]: name for name, value in rename_afa(numbered).items()}


def compare_refinement(file: File) -> Iterator[Row]:
    """Rows of a refinement file: PAR after so many iterations."""
    meta = settings(file)
    for name in sorted(k for k in file if re.fullmatch(r"\d+/par.*_iter\d+", k)):
        index, kind, num_iter = re.fullmatch(r"(\d+)/(.+)_iter(\d+)", name).groups()
        par = PixelAdaptiveRefinement(int(num_iter), meta[kind]["dilations"])
        image = torch.from_numpy(file[f"{index}/image"]).permute(2, 0, 1)[None].float() / 255
        mask = torch.from_numpy(file[f"{index}/mask"])[None]
        full = F.interpolate(mask, size=image.shape[-2:], mode="bilinear", align_corners=True)
        yield real(name, par(image, full)[0], file[name])
