"""Golden files of ToCo: a pass, a training step in both variants, five steps, an evaluation."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor

from parity_rows import File, Row, compared, complete, labels, norms, real, relative, settings, state_of
from wsss_afa.losses.classification import ClassificationLoss
from wsss_afa.losses.dense_energy import DenseEnergyLoss
from wsss_afa.methods.optim import AdamWPoly
from wsss_afa.methods.toco.method import ToCo
from wsss_afa.methods.toco.released import rename_toco
from wsss_afa.models.backbones.patches import resize_positions
from wsss_afa.models.backbones.timm_vit import TimmViT
from wsss_afa.ops.affinity import pair_label
from wsss_afa.ops.boxes import cells_of
from wsss_afa.ops.cam import MultiScaleCAM
from wsss_afa.ops.images import resize
from wsss_afa.ops.labels import cam_label, ignore_outside
from wsss_afa.ops.local_crops import LocalCrops, certainty, cut
from wsss_afa.ops.multi_scale import MultiScaleSegmentation
from wsss_afa.ops.par import PixelAdaptiveRefinement
from wsss_afa.types import Batch

REAL, MAPS, GRADIENT, LOSS, TRAINED, MOVED = 2e-6, 4e-6, 2e-6, 1e-6, 5e-6, 6e-7
"""A quarter more than the largest differences seen with the instructions of SSE, AVX2 and AVX-512, whose sums
are rounded otherwise. Merged maps are further apart: the file's own are 6e-6 away from those of float64."""
NOISE = 2e-3
"""Of norms of ``qkv.bias`` after training: soft-max ignores its key part, and AdamW scales rounding up."""
CONF = Path(__file__).parents[2] / "conf"
TERMS = ("cls", "aux", "ptc", "ctc", "seg", "reg")
NAMES = ("cls", "cls_aux", "ptc", "ctc", "seg", "reg", "total")
VARIANTS = ("released", "cells")


def build(meta: dict[str, Any], state: dict[str, Tensor], variant: str) -> ToCo:
    """The method with the file's weights and settings, all losses from the first step on."""
    energy = meta["energy"]
    backbone = TimmViT(
        "vit_tiny_patch16_224", pretrained=None, num_affinity_blocks=0, trainable_positions=False,
        positions="bicubic", fit="crop", mean=[255 * each for each in meta["mean"]],
        std=[255 * each for each in meta["std"]],
        model_args={
            "embed_dim": meta["dim"], "depth": meta["depth"], "num_heads": meta["heads"],
            "img_size": meta["pre"], "patch_size": meta["patch_size"], "mlp_ratio": meta["mlp_ratio"],
        },
    )  # fmt: skip
    method = ToCo(
        backbone,
        num_classes=meta["classes"],
        cam=MultiScaleCAM(meta["scales"]),
        refine=PixelAdaptiveRefinement(meta["par_iter"], meta["par_dilations"]),
        crops=LocalCrops(meta["ncrops"] - 2, meta["local"]),
        classification=ClassificationLoss(),
        dense_energy=DenseEnergyLoss(
            energy["weight"], energy["sigma_xy"], energy["sigma_rgb"], energy["scale"]
        ),
        phases={"all": 0},
        weights={"cls": 1.0, "aux": 1.0} | {name: meta[f"w_{name}"] for name in ("ptc", "ctc", "seg", "reg")},
        labels_from=meta["seg_from"],
        augmentation={},
        projection={"hidden": meta["hid"], "bottleneck": meta["bott"], "outputs": meta["out"]},
        aux_block=meta["aux"],
        decoder_dim=meta["dec"],
        momentum=meta["mom"],
        temperature=meta["temp"],
        low=meta["low"],
        high=meta["high"],
        eval_threshold=meta["bkg"],
        pixel_box=variant == "released",
    )
    for layer in method.net.backbone.modules():
        if isinstance(layer, torch.nn.LayerNorm):
            layer.eps = meta["layer_norm_eps"]
    method.net.load_state_dict(rename_toco(state))
    return method


def batch_of(file: File) -> Batch:
    """What the file's step saw."""
    tensors = {name: torch.from_numpy(file[f"in/{name}"]) for name in ("image", "global_view", "local_view")}
    return {
        "image": tensors["image"],
        "class_label": torch.from_numpy(file["in/class_labels"]),
        "valid_box": torch.from_numpy(file["in/image_box"]).long(),
        "name": [],
        "seed": torch.zeros(len(tensors["image"]), dtype=torch.long),
        "views": {"global": tensors["global_view"], "local": tensors["local_view"]},
    }


def compare_step(file: File) -> Iterator[Row]:
    """Rows of a file of this form."""
    meta, state, batch = settings(file), state_of(file), batch_of(file)
    methods = {variant: build(meta, state, variant) for variant in VARIANTS}
    yield from complete(
        file,
        chain(
            _one_pass(methods["cells"].eval(), batch, file),
            _training(methods, batch, file),
            _evaluation(methods["cells"].eval(), meta, file),
            *(_steps(methods[variant].train(), batch, file, variant) for variant in VARIANTS),
        ),
        ("out/", "eval/val", "eval/voc", "eval/coco", "grad_norm", "final_norm", "in/cell_box"),
    )


@torch.no_grad()
def _one_pass(method: ToCo, batch: Batch, file: File) -> Iterator[Row]:
    net, backbone = method.net, method.net.backbone
    levels = net.encode(batch["image"])
    logits, aux_logits = net.class_logits(levels)
    cam, aux = net.activation(levels).cam.chunk(2, dim=1)
    first, places = backbone.pos_embed[:, :1], backbone.pos_embed[:, 1:]
    grid = (cam.shape[-2], cam.shape[-1])
    positions = torch.cat([first, resize_positions(places, backbone.grid, grid, backbone.positions)], dim=1)
    ours = {
        "pos_embed": positions,
        "class_token": levels.leading[:, 0],
        "tokens": levels.last.flatten(2).mT,
        "aux_tokens": levels.aux.flatten(2).mT,
        "class_logits": logits,
        "aux_class_logits": aux_logits,
        "seg_logits": net.decoder([levels.last]),
        "cam_raw": cam,
        "aux_cam_raw": aux,
    }
    yield from compared(real, file, {f"out/{name}": value for name, value in ours.items()}, REAL)


@torch.no_grad()
def _training(methods: dict[str, ToCo], batch: Batch, file: File) -> Iterator[Row]:
    method = copy.deepcopy(methods["cells"]).train()
    net, tags, box = method.net, batch["class_label"], batch["valid_box"]
    method.after_step()  # the program averages before the step
    corners = torch.from_numpy(file["in/crop_corners"]).long()
    both = net.encode(torch.cat([batch["image"], batch["views"]["global"]]))
    levels = both.first(len(tags))
    logits, aux_logits = net.class_logits(levels)
    cam, aux = method.cam(net, batch["image"], net.activation(levels)).cam.chunk(2, dim=1)
    grid = levels.last.shape[-2:]
    maps = method.labeler.own_maps(net, batch["image"], tags, net.activation(levels))
    mask = certainty(maps.aux.amax(1), *method.backgrounds)
    crops = cut(batch["views"]["local"], corners, method.crops.side).transpose(0, 1).flatten(0, 1)
    student = net.projection(torch.cat([both.leading[:, 0], net.class_tokens(crops)]))
    reals = {
        "train_class_logits": logits,
        "train_aux_class_logits": aux_logits,
        "train_seg_logits": net.decoder([levels.last]),
        "teacher_projection": net.teach(both.leading[:, 0]),
        "student_projection": student,
        "crop_mask_mean": method.crops.mask_means(mask, corners),
    }
    yield from compared(real, file, {f"out/{name}": value for name, value in reals.items()}, REAL)
    merged = {"out/cam": cam, "out/aux_cam": aux, "out/cam_at_tokens": resize(aux, grid)}
    yield from compared(real, file, merged, MAPS)
    local = method.crops.is_object(mask, corners)
    made = {
        "roi_mask": mask,
        "crop_flags": torch.cat([torch.ones_like(local[:, :2]), local], dim=1),
        "cam_label": ignore_outside(cam_label(cam, tags, *method.backgrounds), box),
        "aux_cam_label": ignore_outside(cam_label(aux, tags, *method.backgrounds), box),
        "pseudo_label": method.labeler.pixel_label(batch["image"], maps, "cam", box),
        "pseudo_label_aux": method.labeler.pixel_label(batch["image"], maps, "aux", box),
    }
    for variant, other in methods.items():
        label = other.token_label(batch, maps, grid)
        made |= {f"token_label_{variant}": label, f"pair_label_{variant}": pair_label(label.flatten(1))}
    yield from compared(labels, file, {f"out/{name}": value for name, value in made.items()}, 0.0)
    yield labels("in/cell_box", cells_of(box, net.backbone.stride), file["in/cell_box"])


def _steps(method: ToCo, batch: Batch, file: File, variant: str) -> Iterator[Row]:
    """Losses and gradients of the first step, then the optimiser steps that the file has."""
    meta = settings(file)
    encoder, norm, head, decoder = meta["lr_multipliers"]
    recipe = AdamWPoly(
        meta["T"], meta["lr"], meta["wd"], meta["betas"], meta["warmup"], meta["power"], norm / encoder, head,
        decoder, meta["wd"],
    )  # fmt: skip
    optimizer, scheduler = recipe(method.parameter_kinds())
    expected, drawn = file[f"out/trajectory_{variant}"], file[f"in/trajectory_corners_{variant}"]
    names = released_names(file)
    flags: list[Tensor] = []
    method.after_step()
    trajectory = []
    for step, corners in enumerate([file["in/crop_corners"], *drawn]):  # the first is not followed by a step
        terms = _losses(method, batch, torch.from_numpy(corners).long(), flags)
        total = method.total(terms, step)
        values = [*(terms[name].item() for name in TERMS), total.item()]
        optimizer.zero_grad()
        total.backward()
        if step == 0:
            names_ok = list(map(str, file["out/losses_names"])) == list(NAMES)
            yield Row("out/losses_names", float(not names_ok), 0.0)
            yield Row(f"out/losses_{variant}", relative(values, file[f"out/losses_{variant}"]), LOSS)
            yield from norms(
                file, f"grad_norm_{variant}", method.net, names, lambda each: each.grad, lambda _: GRADIENT
            )
            continue
        trajectory.append([*values, optimizer.param_groups[0]["lr"]])
        optimizer.step()
        scheduler.step()
        if step < len(drawn):
            method.after_step()
    yield Row(f"out/trajectory_{variant}", relative(trajectory, expected), TRAINED)
    yield labels(
        f"out/trajectory_flags_{variant}", torch.stack(flags[1:]), file[f"out/trajectory_flags_{variant}"]
    )
    yield from norms(
        file, f"final_norm_{variant}", method.net, names, lambda each: each,
        lambda name: NOISE if name.endswith("qkv.bias") else MOVED,
    )  # fmt: skip


def _losses(method: ToCo, batch: Batch, corners: Tensor, flags: list[Tensor]) -> dict[str, Tensor]:
    """The method's losses with local crops at given corners; their flags are written down."""
    crops = copy.copy(method.crops)

    def told(mask: Tensor, drawn: Tensor) -> Tensor:
        local = LocalCrops.is_object(crops, mask, drawn)
        flags.append(torch.cat([torch.ones_like(local[:, :2]), local], dim=1))
        return local

    method.crops.corners = lambda mask, seeds: corners
    method.crops.is_object = told
    try:
        return method.losses(batch, 0)
    finally:
        del method.crops.corners, method.crops.is_object


@torch.no_grad()
def _evaluation(method: ToCo, meta: dict[str, Any], file: File) -> Iterator[Row]:
    image, square = torch.from_numpy(file["eval/image"]), [meta["square"]] * 2
    squashed, size = resize(image, square), image.shape[-2:]
    tags = torch.from_numpy(file["eval/class_labels"])
    levels = method.net.encode(squashed)
    cam, aux = (resize(each, size) for each in method.cam(method.net, squashed).cam.chunk(2, dim=1))
    reals = {
        "eval/voc_logits": _protocol(method, "toco_voc").merged(method, image),
        "eval/coco_logits": _protocol(method, "toco_coco", square).merged(method, image),
        "eval/val_class_logits": method.net.class_logits(levels)[0],
        "eval/val_seg_logits": resize(method.net.decoder([levels.last]), size),
    }
    yield from compared(real, file, reals, REAL)
    made = {
        f"eval/val_{name}_label": cam_label(maps, tags, meta["bkg"], meta["bkg"])
        for name, maps in (("cam", cam), ("aux_cam", aux))
    }
    yield from compared(labels, file, made, 0.0)


def _protocol(method: ToCo, name: str, size: list[int] | None = None) -> MultiScaleSegmentation:
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose(f"protocol/{name}").protocol
    return instantiate(cfg, crf=None, mean=method.mean, std=method.std, **({"size": size} if size else {}))


def released_names(file: File) -> dict[str, list[str]]:
    """Released name → ours, by sending numbered tensors through the renamer."""
    unused = ("encoder.head.weight", "encoder.head.bias", "weight_g")
    released = [name for name in state_of(file) if not name.endswith(unused)]
    numbered = {name: torch.full((1,), float(i)) for i, name in enumerate(released)}
    return {released[int(value)]: [name] for name, value in rename_toco(numbered).items()}
