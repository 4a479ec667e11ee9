"""Golden files of ExCEL: texts, a pass, three kinds of steps, optimiser steps, labels and segmentation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parity_rows import File, Row, compared, complete, norms, real, relative, settings, state_of
from parity_rows import labels as label_row
from wsss_afa.methods.excel.method import ExCEL
from wsss_afa.methods.excel.pseudo_labels import Pass
from wsss_afa.methods.optim import AdamWPoly
from wsss_afa.models.backbones.patches import resize_positions
from wsss_afa.models.backbones.timm_vit import TimmViT
from wsss_afa.models.released_clip import rename_clip, text_weights
from wsss_afa.models.text import ClassTexts, text_tower
from wsss_afa.ops.affinity import affinity_label, radius_mask
from wsss_afa.ops.attention_walk import AttentionWalk, box_mask, kept_layers, layer_affinity, transition
from wsss_afa.ops.images import resize, to_rgb
from wsss_afa.ops.labels import OwnClasses, best_class, own_classes
from wsss_afa.ops.multi_scale import MultiScaleSegmentation
from wsss_afa.ops.par import PixelAdaptiveRefinement
from wsss_afa.ops.text_enrichment import enrich
from wsss_afa.types import Batch

REAL, MAPS, REFINED, LOSS, GRADIENT, TRAINED, FINAL = 1e-5, 3e-5, 1e-4, 1e-5, 1e-5, 1e-5, 3e-4
"""Tolerances that an independent implementation met on files of this form. Norms after training are the last:
soft-max ignores the key part of ``in_proj_bias``, and AdamW scales rounding up."""
labels = partial(label_row, tolerance=1e-3)
PHASES = {"static": ("static", "label"), "dynamic": ("guided", "label"), "late": ("guided", "segmentation")}
"""By name in a file: what maps and affinity labels are made of."""


def build(meta: dict[str, Any], file: File) -> ExCEL:
    """The method with the file's weights and settings; phases are those of its optimiser steps."""
    backbone = TimmViT(
        "vit_base_patch16_clip_quickgelu_224.openai", pretrained=None, num_affinity_blocks=0,
        positions="bilinear", fit="crop", projection=True, mean=(123.675, 116.28, 103.53),
        std=(58.395, 57.12, 57.375), frozen=True,
        model_args={
            "embed_dim": meta["width"], "depth": meta["layers"], "num_heads": meta["heads"],
            "num_classes": meta["clip_dim"], "img_size": meta["clip_resolution"], "patch_size": meta["patch"],
        },
    )  # fmt: skip
    steps = meta["trajectory"]
    method = ExCEL(
        backbone,
        num_classes=len(meta["names"]),
        class_names=meta["names"],
        texts=ClassTexts(backgrounds=meta["backgrounds"]),
        walk=AttentionWalk(meta["box_threshold"]),
        refine=PixelAdaptiveRefinement(meta["par_iterations"], meta["par_dilations"]),
        phases={"static": 0, "dynamic": steps["dynamic_from"], "late": steps["segmentation_affinity_from"]},
        weights={"seg": meta["seg_weight"], "aff": meta["affinity_weight"]},
        maps_from={name: maps for name, (maps, _) in PHASES.items()},
        affinity_from={name: taught for name, (_, taught) in PHASES.items()},
        box_thresholds={
            "static": meta["training_free_box_threshold"],
            "affinity": meta["validation_box_threshold"],
            "guided": meta["training_free_box_threshold"],
        },
        augmentation={},
        gain=meta["logit_gain"],
        eval_center="batch",
        size=(meta["crop"], meta["crop"]),
        affinity_radius=meta["radius"],
        label_padding=True,
        calibrated=meta["surgery_blocks"],
        attended=meta["attention_layers"],
        decoder_dim=meta["embedding_dim"],
        dropout=0.0,
    )
    state = rename_clip(state_of(file))
    state["backbone.pos_embed"] = torch.from_numpy(file["in/positional_embedding_native"])[None]
    state["texts"] = _texts(meta, file)["text/aggregated"].T
    method.net.load_state_dict(state)
    return method


def compare_step(file: File) -> Iterator[Row]:
    """Rows of a file of this form."""
    meta = settings(file)
    method = build(meta, file)
    batch: Batch = {
        "image": torch.from_numpy(file["in/image"]),
        "class_label": torch.from_numpy(file["in/class_labels"]).float(),
        "valid_box": torch.zeros(len(file["in/image"]), 4, dtype=torch.long),
        "name": [],
    }
    rows = itertools.chain(
        compared(real, file, _texts(meta, file), REAL),
        _one_pass(method.train(), batch["image"], file),
        *(_labels(method.train(), batch, file, phase) for phase in ("static", "dynamic")),
        *(_step(method.train(), batch, file, phase) for phase in PHASES),
        _evaluation(method.eval(), meta, file),
        _steps(method.train(), batch, file),
    )
    needed = ("out/", "static/", "dynamic/", "late/", "eval/", "final_norm/", "text/a", "text/e")
    inputs = ("eval/image", "text/attributes")
    yield from complete({key: v for key, v in file.items() if key not in inputs}, rows, needed)


@torch.no_grad()
def _texts(meta: dict[str, Any], file: File) -> dict[str, Tensor]:
    """Directions of the texts' tokens before and after enrichment; files may lack tokens and their tower."""
    texts = torch.from_numpy(file["text/embedding"])
    if "text/tokens" in file:
        tower = text_tower(text_weights(state_of(file)), meta["text_heads"])
        texts = F.normalize(tower(torch.from_numpy(file["text/tokens"]).long()), dim=-1)
    count, bank = len(meta["names"]), torch.from_numpy(file["text/attributes"]).T
    enriched = torch.cat([enrich(texts[:count], bank, 1 - meta["text_keep"]), texts[count:]])
    return {"text/embedding": texts, "text/aggregated": enriched.T}


@torch.no_grad()
def _one_pass(method: ExCEL, image: Tensor, file: File) -> Iterator[Row]:
    net, passed = method.net, method.labeler(method.net, image)
    places = net.backbone.pos_embed[:, 1:]
    places = resize_positions(places, net.backbone.grid, passed.encoded.grid, net.backbone.positions)
    name = "state/encoder.visual.positional_embedding"
    yield real(name, torch.cat([net.backbone.pos_embed[:, :1], places], 1)[0], file[name], REAL)
    ours = {
        "out/layer_features": torch.stack(passed.encoded.layers),
        "out/image_features": net.features(passed.encoded),
        "out/features_fused": passed.fused,
        "out/seg_logits": net.decoder(passed.fused),
    }
    yield from compared(real, file, ours, REAL)
    attention = net.encode(image, attended=len(net.backbone.blocks)).attention
    yield from compared(real, file, {"out/attention": attention}, MAPS)
    yield real("out/affinity_pred", passed.affinity, file["out/affinity_pred"], MAPS)
    mask = radius_mask(*passed.encoded.grid, method.affinity_radius)
    yield label_row("out/radius_mask", mask, file["out/radius_mask"])


@torch.no_grad()
def _labels(method: ExCEL, batch: Batch, file: File, phase: str) -> Iterator[Row]:
    """Maps, each stage of the walk, PAR and labels of a phase."""
    net, labeler, image = method.net, method.labeler, batch["image"]
    passed, classes = labeler(net, image), own_classes(batch["class_label"])
    guided = phase == "dynamic"
    guidance = labeler.guidance(passed.fused) if guided else None
    if guided:
        features = net.features(passed.encoded, guidance)
        yield from compared(real, file, {"dynamic/image_features": features}, REAL)
    maps = net.class_maps(passed.encoded, guidance)
    yield real(f"{phase}/attribute_maps", maps.flatten(2).mT, file[f"{phase}/attribute_maps"], MAPS)
    attention = passed.encoded.attention[:, :, 1:, 1:]
    affinity = layer_affinity(attention, passed.affinity if guided else None)
    carried = labeler.carried(maps, passed, classes, labeler.walk, guided)
    refined = labeler.refined(carried, classes, to_rgb(image, method.mean, method.std), image.shape[-2:])
    own = _own(maps, classes)
    reals = {"affinity": affinity, "transition": transition(affinity), "cam_propagated": carried}
    for index, present in enumerate(classes.present):
        count = int(present.sum()) - 1
        at = f"{phase}/{index}"
        for name, value in reals.items():
            each = value[index][:count] if name == "cam_propagated" else value[index]
            yield real(f"{at}/{name}", each, file[f"{at}/{name}"], MAPS)
        boxes = box_mask(own, labeler.walk.box_threshold)[index][:count]
        yield label_row(f"{at}/box_mask", boxes, file[f"{at}/box_mask"])
        half = refined[index][: count + 1, ::2, ::2]
        yield from compared(real, file, {f"{at}/par_half": half}, REFINED)
        if guided:
            kept = kept_layers(attention)[:, index]
            yield label_row(f"{at}/layer_selected", kept, file[f"{at}/layer_selected"])
    yield labels(f"{phase}/pseudo_label", best_class(refined, classes), file[f"{phase}/pseudo_label"])


def _own(maps: Tensor, classes: OwnClasses) -> Tensor:
    return maps.gather(1, classes.channels[:, :, None, None].expand(-1, -1, *maps.shape[-2:]))


def _step(method: ExCEL, batch: Batch, file: File, phase: str) -> Iterator[Row]:
    """Losses and gradients of a step in a phase, and what its affinity labels are."""
    step = next(each.first for each in method.phases if each.name == phase)
    told = torch.from_numpy(file[f"{'static' if phase == 'static' else 'dynamic'}/pseudo_label"]).long()
    method.zero_grad()
    method.labeler.label = lambda *_: told  # a pixel whose two best scores are next to equal may differ
    values, total = _losses(method, batch, step)
    del method.labeler.label
    total.backward()
    yield Row(f"{phase}/losses", relative(values, file[f"{phase}/losses"]), LOSS)
    names = released_names(file)
    yield from norms(
        file, f"{phase}/grad_norm", method.net, names, lambda each: each.grad, lambda _: GRADIENT
    )
    with torch.no_grad():
        image = batch["image"]
        passed = method.labeler(method.net, image)
        guided, taught = PHASES[phase]
        source = method.labeler.label(method.net, image, passed, batch["class_label"], guided == "guided")
        if taught == "segmentation":
            source = resize(method.net.decoder(passed.fused), image.shape[-2:]).argmax(1)
    made = {
        f"{phase}/affinity_source": source,
        f"{phase}/affinity_label": affinity_label(source, passed.encoded.grid, method.affinity_radius),
    }
    yield from (labels(name, value, file[name]) for name, value in made.items() if name in file)


def _losses(method: ExCEL, batch: Batch, step: int) -> tuple[list[float], Tensor]:
    terms = method.losses(batch, step)
    total = method.total(terms, step)
    return [terms["seg"].item(), terms["aff"].item(), total.item()], total


@torch.no_grad()
def _evaluation(method: ExCEL, meta: dict[str, Any], file: File) -> Iterator[Row]:
    for index in range(len(file["eval/image"])):
        image = torch.from_numpy(file["eval/image"][index : index + 1])
        tags = torch.from_numpy(file["in/class_labels"][index : index + 1]).float()
        for name, source in (("training_free", "static"), ("validation", "affinity"), ("trained", "guided")):
            yield from _evaluated(method, file, image, tags, source, f"eval/{name}/{index}")
        logits = _segmentation(method, meta, image)
        name = f"eval/segmentation/{index}/logits_half"
        yield real(name, logits[0, :, ::2, ::2], file[name], REAL)


def _segmentation(method: ExCEL, meta: dict[str, Any], image: Tensor) -> Tensor:
    """Mean of all scales' logits; VOC's program has no mirror image at scale 1."""
    total = torch.zeros(())
    for mirror in (True, False):
        own = [scale for scale in meta["scales"] if mirror == (scale != 1 or meta["mirror_scale_1"])]
        if own:
            protocol = MultiScaleSegmentation(
                scales=own,
                mirror=mirror,
                size=[meta["crop"]] * 2,
                fusion="mean_logits",
                mirror_fusion="mean",
            )
            total = total + len(own) * protocol.merged(method, image)
    return total / len(meta["scales"])


def _evaluated(method: ExCEL, file: File, image: Tensor, tags: Tensor, source: str, at: str) -> Iterator[Row]:
    net, labeler, classes = method.net, method.labeler, own_classes(tags)
    small = labeler.resized(image)
    passed: Pass = labeler(net, small)
    maps = labeler.guided_maps(net, small) if source == "guided" else net.class_maps(passed.encoded)
    carried = labeler.carried(maps, passed, classes, labeler.walks[source], source != "static")
    refined = labeler.scores(net, image, tags, source)
    reals = {
        f"{at}/attribute_maps": (maps[0].flatten(1).mT, MAPS),
        f"{at}/cam_propagated": (carried[0], MAPS),
        f"{at}/par_half": (refined[0, :, ::2, ::2], REFINED),
    }
    yield from (real(name, value, file[name], tol) for name, (value, tol) in reals.items() if name in file)
    yield labels(f"{at}/label", best_class(refined, classes)[0], file[f"{at}/label"])


def _steps(method: ExCEL, batch: Batch, file: File) -> Iterator[Row]:
    """The optimiser steps that the file has."""
    meta, expected = settings(file), file["out/trajectory"]
    steps = meta["trajectory"]
    recipe = AdamWPoly(
        steps["max_steps"], meta["lr"], meta["weight_decay"], warmup_steps=steps["warmup"],
        power=steps["power"], head_multiplier=meta["lr_multiplier"], decoder_multiplier=meta["lr_multiplier"],
    )  # fmt: skip
    optimizer, scheduler = recipe(method.parameter_kinds())
    trajectory = []
    for step in range(len(expected)):
        values, total = _losses(method, batch, step)
        optimizer.zero_grad()
        total.backward()
        trajectory.append([*values, optimizer.param_groups[-1]["lr"]])
        optimizer.step()
        scheduler.step()
    yield Row("out/trajectory", relative(trajectory, expected), TRAINED)
    names = released_names(file)
    yield from norms(file, "final_norm", method.net, names, lambda each: each, lambda _: FINAL)


def released_names(file: File) -> dict[str, list[str]]:
    """Released name → ours, by sending numbered tensors through the renamer."""
    numbered = {name: torch.full((1, 1), float(i)) for i, name in enumerate(state_of(file))}
    renamed = rename_clip(numbered).items()
    released = list(numbered)
    return {released[int(value)]: [name] for name, value in renamed if name.startswith(("fusion", "decoder"))}
