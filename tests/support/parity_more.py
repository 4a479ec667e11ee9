"""Golden files of MoRe: a pass, maps, labels, losses of all phases, a step and five, an evaluation."""

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
from wsss_afa.methods.more.method import MoRe
from wsss_afa.methods.more.released import rename_more
from wsss_afa.methods.optim import AdamWPoly
from wsss_afa.models.backbones.plain_vit import project, run_block
from wsss_afa.models.backbones.timm_vit import TimmViT
from wsss_afa.ops.affinity import pair_label
from wsss_afa.ops.cam import MultiScaleCAM
from wsss_afa.ops.labels import cam_label
from wsss_afa.ops.localization_map import Localized
from wsss_afa.ops.par import PixelAdaptiveRefinement
from wsss_afa.ops.uncertain_tokens import UncertainTokens
from wsss_afa.types import Batch

REAL, LOSS, GRADIENT, TRAINED = 1e-5, 1e-5, 1e-4, 2e-4
"""Of real values, losses, gradient norms, and five steps with the norms after them."""
NOISE = 1e-3
"""Of norms of ``qkv.bias`` after training: soft-max ignores its key part, and AdamW scales rounding up."""
CONF = Path(__file__).parents[2] / "conf"
TERMS = {"cls": "cls", "aux": "cls_aux", "tokens": "tokens", "ptc": "ptc", "cle": "cle", "une": "une",
         "seg": "seg", "reg": "reg"}  # fmt: skip
"""Our names of losses, and the program's."""
EARLY, LATE = 1, 2  # steps at which regions come from the auxiliary map, and from the other


def build(meta: dict[str, Any], state: dict[str, Tensor]) -> MoRe:
    """The method with the file's weights and settings; step 0 warms up, 1 is early, 2 is late."""
    backbone = TimmViT(
        "vit_tiny_patch16_224", pretrained=None, num_affinity_blocks=0, positions="bicubic_scale", fit="crop",
        mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375),
        model_args={
            "embed_dim": meta["embed_dim"], "depth": meta["depth"], "num_heads": meta["num_heads"],
            "img_size": meta["img_size"], "patch_size": meta["patch_size"], "mlp_ratio": meta["mlp_ratio"],
        },
    )  # fmt: skip
    weights = {name: meta[f"w_{name}"] for name in ("ptc", "cle", "une")}
    weights |= {name: {"early": meta[f"w_{name}"]} for name in ("seg", "reg")}
    method = MoRe(
        backbone,
        num_classes=meta["num_classes"] - 1,
        cam=MultiScaleCAM(meta["cam_scales"]),
        lam=MultiScaleCAM(meta["lam_scales"], rectify=False),
        refine=PixelAdaptiveRefinement(meta["par_iter"], meta["par_dilations"]),
        uncertain=UncertainTokens(meta["une_number"], meta["une_window"], meta["une_threshold"], offset=0),
        classification=ClassificationLoss(),
        dense_energy=DenseEnergyLoss(
            meta["reg_weight"], meta["reg_sigma_xy"], meta["reg_sigma_rgb"], meta["reg_scale"]
        ),
        phases={"warmup": 0, "early": EARLY, "late": LATE},
        weights={"cls": 1.0, "aux": 1.0, "tokens": 1.0, **weights},
        regions_from={"warmup": "aux", "late": "cam"},
        augmentation={},
        aux_block=meta["aux_layer"],
        decoder_dim=meta["decoder_width"],
        registers=meta["num_registers"],
        graph_share=meta["gcr_ratio"],
        low=meta["low_thre"],
        high=meta["high_thre"],
        certain_high=meta["cle_high"],
        main_low=meta["main_low"],
        main_high=meta["main_high"],
        token_temperature=meta["token_temperature"],
        temperature=meta["cle_temperature"],
        eval_threshold=meta["bkg_thre"],
    )
    method.net.load_state_dict(rename_more(state))
    return method


def batch_of(file: File) -> Batch:
    """What the file's step saw; the whole crop is valid."""
    image = torch.from_numpy(file["in/image"])
    height, width = image.shape[-2:]
    return {
        "image": image,
        "class_label": torch.from_numpy(file["in/class_labels"]),
        "valid_box": torch.tensor([[0, height, 0, width]] * len(image)),
        "name": [],
        "seed": torch.zeros(len(image), dtype=torch.long),
    }


def compare_step(file: File) -> Iterator[Row]:
    """Rows of a file of this form."""
    meta, batch = settings(file), batch_of(file)
    method = build(meta, state_of(file)).train()
    rows = chain(
        _pass_and_maps(method, meta, batch, file),
        _losses(method, meta, batch, file),
        _evaluation(method, meta, batch, file),
        _steps(method, meta, batch, file),
    )
    yield from complete(file, rows, ("out/", "loss/", "grad_norm/", "final_norm/"))


@torch.no_grad()
def _pass_and_maps(method: MoRe, meta: dict[str, Any], batch: Batch, file: File) -> Iterator[Row]:
    net, tags, image = method.net, batch["class_label"], batch["image"]
    levels = net.encode(image)
    patches, count = levels.last.flatten(2).mT, net.num_classes
    logits, aux_logits = net.class_logits(levels)
    known = net.activation(levels)
    raw, aux_raw = known.cam.chunk(2, dim=1)
    found = net.graph.neighbours(levels.leading[:, :count], patches)
    cam, cam_aux = method.cam(net, image, known).cam.chunk(2, dim=1)
    reals = {
        "encoder_class_tokens": levels.leading[:, :count],
        "class_tokens": net.class_tokens(levels),
        "gcr_edges": found.logits,
        "feature_map": levels.last,
        "aux_patch_tokens": levels.aux.flatten(2).mT,
        "class_logits": logits,
        "aux_class_logits": aux_logits,
        "seg_logits": net.decoder([levels.last]),
        "cam_raw": raw,
        "cam_aux_raw": aux_raw,
        "lam_raw": net.localization(levels),
        "attention_map": _attention(net.backbone, image, count).unflatten(-1, raw.shape[-2:]),
        "cam": cam,
        "cam_aux": cam_aux,
    }
    yield from compared(real, file, {f"out/{name}": value for name, value in reals.items()}, REAL)
    maps = method.labeler.own_maps(net, image, tags, known)
    certain, unsure = method.regions(batch, maps, levels, EARLY)
    main, _ = method.regions(batch, maps, levels, LATE)
    made = {
        "gcr_neighbours": found.nodes,
        "cam_label": cam_label(cam, tags, meta["low_thre"], meta["high_thre"]),
        "refined_pseudo_label": method.labeler.pixel_label(image, maps, "cam", batch["valid_box"]),
        "label_cle": certain,
        "label_aux": unsure,
        "label_main": main,
        "affinity_label": pair_label(unsure.flatten(1)),
        "une_candidates": _candidates(method, unsure),
        "une_candidates_late": _candidates(method, main),
    }
    yield from compared(labels, file, {f"out/{name}": value for name, value in made.items()}, 0.0)


def _attention(backbone: TimmViT, image: Tensor, count: int) -> Tensor:
    """Logits (B, C, N) of the last block between the first tokens and the patches, summed over heads.

    Nothing uses them; the program has them.
    """
    tokens, *before = backbone.embed(image)[0], *list(backbone.blocks)[:-1]
    for block in before:
        tokens, _, _ = run_block(block, tokens)
    query, key, _ = project(backbone.blocks[-1], tokens)
    return (query[:, :, :count] @ key[:, :, backbone.num_leading_tokens :].mT).sum(1)


def _candidates(method: MoRe, label: Tensor) -> Tensor:
    inner, _ = method.uncertain.candidates(label)
    full, offset = torch.zeros_like(label), method.uncertain.offset
    full[:, offset : offset + inner.shape[1], offset : offset + inner.shape[2]] = inner.long()
    return full


def _terms(method: MoRe, batch: Batch, step: int, drawn: Any) -> dict[str, Tensor]:
    """The method's losses with the uncertain tokens that the file names."""
    method.uncertain.forward = lambda label, seeds: torch.from_numpy(drawn).long()
    try:
        return method.losses(batch, step)
    finally:
        del method.uncertain.forward


def _losses(method: MoRe, meta: dict[str, Any], batch: Batch, file: File) -> Iterator[Row]:
    drawn = {EARLY: file["in/une_selected"], LATE: file["in/une_selected_late"]}
    terms = {step: _terms(method, batch, step, drawn[step]) for step in (EARLY, LATE)}
    found = {f"loss/{theirs}": terms[EARLY][ours] for ours, theirs in TERMS.items()}
    found |= {f"loss/{name}_late": terms[LATE][name] for name in ("cle", "une")}
    found["loss/total"] = method.total(terms[EARLY], EARLY)
    found["loss/total_late"] = method.total(terms[LATE], LATE)
    found["loss/total_warmup"] = method.total(_terms(method, batch, 0, drawn[EARLY]), 0)
    yield from compared(real, file, found, LOSS)
    total = found["loss/total_late" if meta["late"] else "loss/total"]
    total.backward()
    names = released_names(file)
    yield from norms(file, "grad_norm", method.net, names, lambda each: each.grad, lambda _: GRADIENT)


@torch.no_grad()
def _evaluation(method: MoRe, meta: dict[str, Any], batch: Batch, file: File) -> Iterator[Row]:
    image = batch["image"][:1]
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose("protocol/more_seg").protocol
    protocol = instantiate(cfg, crf=None, size=meta["eval_side"], scales=meta["eval_scales"])
    reals = {
        "out/lam": method.lam(Localized(method), image).cam,
        "out/eval_seg": protocol.merged(method, image, target=meta["eval_output"]),
    }
    yield from compared(real, file, reals, REAL)


def _steps(method: MoRe, meta: dict[str, Any], batch: Batch, file: File) -> Iterator[Row]:
    method = copy.deepcopy(method)
    rates = meta["group_multipliers"]
    recipe = AdamWPoly(
        meta["max_iter"], meta["lr"], meta["weight_decay"], warmup_steps=meta["warmup"], power=meta["power"],
        norm_multiplier=rates["norm"] / rates["encoder"], head_multiplier=rates["classifiers"],
        decoder_multiplier=rates["decoder"], norm_weight_decay=meta["weight_decay"],
    )  # fmt: skip
    optimizer, scheduler = recipe(method.parameter_kinds())
    at, totals, rates_seen = LATE if meta["late"] else EARLY, [], []
    for drawn in file["in/trajectory_une_selected"]:
        total = method.total(_terms(method, batch, at, drawn), at)
        optimizer.zero_grad()
        total.backward()
        totals.append(total.item())
        rates_seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    yield Row("out/trajectory", relative(totals, file["out/trajectory"]), TRAINED)
    yield Row("out/trajectory_lr", relative(rates_seen, file["out/trajectory_lr"]), REAL)
    yield from norms(
        file, "final_norm", method.net, released_names(file), lambda each: each,
        lambda name: NOISE if name.endswith("qkv.bias") else TRAINED,
    )  # fmt: skip


def released_names(file: File) -> dict[str, list[str]]:
    """Released name → ours, by sending numbered tensors through the renamer; one token may be two of ours."""
    state = state_of(file)
    numbered = {name: torch.full(each.shape, float(i)) for i, (name, each) in enumerate(state.items())}
    names: dict[str, list[str]] = {}
    for name, value in rename_more(numbered).items():
        names.setdefault(list(state)[int(value.flatten()[0])], []).append(name)
    return names
