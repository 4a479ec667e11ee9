"""Golden files of WeCLIP and WeCLIP+: towers, GradCAM, walk, labels, five steps, an evaluation, texts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor, nn

from parity_rows import File, Row, compared, complete, labels, norms, part, real, relative, settings, state_of
from wsss_afa.data.coco import COCO_CLASSES
from wsss_afa.data.voc import VOC_CLASSES
from wsss_afa.methods.optim import AdamWPoly
from wsss_afa.methods.weclip.method import WeCLIP
from wsss_afa.methods.weclip.network import Pass
from wsss_afa.models.backbones.patches import resize_positions
from wsss_afa.models.backbones.timm_vit import TimmViT
from wsss_afa.models.released_clip import clip_backbone, rename_clip, text_weights
from wsss_afa.models.text import TextFeatures, directions, text_tower
from wsss_afa.models.token_decoder import RELEASED_NAMES
from wsss_afa.models.weights import apply_rules
from wsss_afa.ops.affinity import affinity_label, radius_mask
from wsss_afa.ops.attention_walk import AttentionWalk, box_mask, label_scores, layer_affinity, transition
from wsss_afa.ops.images import resize
from wsss_afa.ops.labels import best_class, own_classes
from wsss_afa.ops.multi_scale import MultiScaleSegmentation
from wsss_afa.ops.par import PixelAdaptiveRefinement
from wsss_afa.types import BackboneOutput, Batch

REAL, LOSS, GRADIENT, TRAINED, NOISE = 2e-5, 2e-5, 2e-5, 2e-5, 1e-3
"""Of the range of real values; attention's biases have the last, for rounding trains those of keys."""
MARGIN = 2e-5
"""A label may differ where its two best scores are nearer than that."""
CONF = Path(__file__).parents[2] / "conf"


class Given(nn.Module):
    """Directions of texts that a file has."""

    def __init__(self, file: File):
        super().__init__()
        self.features = TextFeatures(
            *(torch.from_numpy(file[f"in/{name}_text"]) for name in ("fg", "bg")), torch.zeros(0)
        )

    def forward(self, class_names: list[str], dim: int) -> TextFeatures:
        return self.features


def tower(config: dict[str, Any], **settings: Any) -> TimmViT:
    built: TimmViT = instantiate(config, **settings)
    return built


def build(file: File, coco: bool | None = None) -> WeCLIP:
    """The method with the file's weights and settings, under the rules of VOC's or COCO's program."""
    meta, state = settings(file), rename_clip(state_of(file))
    plus, coco = meta["method"] == "weclip_plus", meta["coco"] if coco is None else coco
    large = meta["clip_patch"] == 14
    layers = 12 if large else (8 if plus else 10) if coco else 6
    late = {"late": meta["late_from"]} if plus else {}
    dino = None
    if plus:
        dino = TimmViT(
            "vit_small_patch14_dinov2.lvd142m", None, num_affinity_blocks=0, positions="bicubic_scale",
            fit="resize", frozen=True, model_args={
                "embed_dim": meta["dino_width"], "depth": meta["dino_layers"],
                "num_heads": meta["dino_heads"], "img_size": meta["dino_resolution"],
            },
        )  # fmt: skip
    method = WeCLIP(
        tower(clip_backbone(state, meta["heads"])),
        meta["num_classes"] - 1,
        ["class"] * (meta["num_classes"] - 1),
        Given(file),
        AttentionWalk((0.7 if coco else None if plus else 0.4), inclusive=False),
        PixelAdaptiveRefinement(20),
        {"static": 0, "refined": meta["static_steps"]} if not plus else {"refined": 0, **late},
        {"seg": 1.0, "aff": 0.1} | ({"cross": 0.1, "dice": 1.0} if plus else {}),
        {"static": "static", "refined": "affinity"} if meta["static_steps"] else "affinity",
        {"static": 8, "affinity": layers},
        {},
        dino=dino,
        fused_blocks=1 if plus else None,
        logit_scale=meta["logit_scale"] / (4 if large else 1),
        cam_input=-3 if plus and not coco else -2,
        class_gated=plus,
        confidence={"late": meta["confidence"]} if plus else None,
        affinity_radius=meta["radius"],
        label_padding=True,
        decoder_dim=meta["embedding_dim"],
        decoder_depth=meta.get("decoder_layers", 3),
        dropout=0.0,
    )
    state |= {"texts": method.net.texts, "scenes": method.net.scenes}
    if plus and "dino.cls_token" not in state:  # a small file has its tokens instead
        state |= {f"dino.{key}": value for key, value in method.net.dino.state_dict().items()}
        tokens = torch.from_numpy(file["out/dino_tokens"]).mT
        side = round(tokens.shape[2] ** 0.5)
        given = BackboneOutput([tokens.unflatten(2, (side, side))], [], [])
        method.net.dino.forward = lambda image: given
    method.net.load_state_dict(state)
    return method


def batch_of(file: File) -> Batch:
    """What the file's step saw."""
    image = torch.from_numpy(file["in/image"])
    return {
        "image": image,
        "class_label": torch.from_numpy(file["in/class_labels"]).float(),
        "valid_box": torch.tensor([[0, image.shape[2], 0, image.shape[3]]]).repeat(len(image), 1),
        "name": [],
    }


def compare_step(file: File) -> Iterator[Row]:
    """Rows of a file of this form."""
    method, batch = build(file), batch_of(file)
    with torch.no_grad():
        phases = [name for name in ("static", "rfm") if part(file, f"out/{name}")]
        made = [
            *_towers(method, batch, file),
            *chain.from_iterable(_labels(method, batch, file, name) for name in phases),
            *_coco(build(file, coco=True), batch, file),
            *_evaluation(method, file),
            *_texts(file),
        ]
    rows = chain(made, _losses(method, batch, file), _steps(build(file), batch, file))
    yield from complete(
        file,
        rows,
        (
            "out/",
            "eval/logits",
            "eval/pred",
            "eval/cam",
            "grad_norm",
            "final_norm",
            "text/names",
            "text/tokens",
            "text/features",
        ),
    )


def _towers(method: WeCLIP, batch: Batch, file: File) -> Iterator[Row]:
    net, depth = method.net, len(method.net.backbone.blocks)
    earlier = list(range(depth - 1))
    encoded = net.backbone.encode(batch["image"], earlier, "none", attention=earlier, average_heads=True)
    tokens = [torch.cat([a, b.flatten(2).mT], 1) for a, b in zip(encoded.leading, encoded.maps, strict=True)]
    passed = net.run(batch["image"])
    last = net.localize(passed.encoded, own_classes(batch["class_label"])).attention
    ours = {
        "pos_embed": _positions(net.backbone, passed.fused[0].shape[-2:])[0],
        "tokens": torch.stack(tokens),
        "attention": torch.stack(encoded.attention),
        "attention_last": last,
        "fused": passed.fused[0],
    }
    if hasattr(net, "dino"):
        features = net.dino(batch["image"]).features[0]
        ours |= {
            "dino_tokens": features.flatten(2).mT,
            "dino_fused": net.dino_fusion([features]),
        }
        if "state/dino_encoder.pos_embed" in file:
            ours["dino_pos_embed"] = _positions(net.dino, features.shape[-2:])
        ours |= {f"seg_logits_{n}": each for n, each in zip(("clip", "dino"), passed.logits, strict=True)}
    else:
        ours["seg_logits"] = passed.segmentation
    yield from compared(real, file, {f"out/{name}": value for name, value in ours.items()}, REAL)
    mask = radius_mask(*passed.fused[0].shape[-2:], method.affinity_radius)
    yield labels("out/radius_mask", mask, file["out/radius_mask"])


def _positions(vit: TimmViT, grid: Any) -> Tensor:
    first, places = vit.pos_embed[:, :1], vit.pos_embed[:, 1:]
    return torch.cat([first, resize_positions(places, vit.grid, tuple(grid), vit.positions)], dim=1)


def _labels(method: WeCLIP, batch: Batch, file: File, name: str) -> Iterator[Row]:
    """From GradCAM to labels in a phase, step by step as the labeler has them."""
    source = "static" if name == "static" else "affinity"
    net, classes = method.net, own_classes(batch["class_label"])
    passed = net.run(batch["image"], method.layers[source])
    found, carried = net.localize(passed.encoded, classes), method.carried(passed, classes, source)
    attention = torch.stack([*passed.encoded.attention, found.attention])[:, :, 1:, 1:]
    affinity = method.affinity(passed)
    used = layer_affinity(attention, affinity if source == "affinity" else None)
    walked, size = transition(used), batch["image"].shape[-2:]
    boxes = box_mask(found.cam, method.labeler.walk.box_threshold or 0.4)  # which WeCLIP+ does not use
    scores = label_scores(carried, classes, size)
    refined = method.labeler.scores(batch["image"], carried, classes)
    label = best_class(refined, classes)
    for image, count in enumerate(classes.present.sum(1).tolist()):
        own = classes.channels[image, : count - 1]
        rows = [*own.tolist(), *range(method.num_classes, found.logits.shape[1])]
        ours = {
            "prob": found.logits[image, rows].softmax(0),
            "gradcam": found.cam[image, : count - 1],
            "attention_used": used[image],
            "transition": walked[image],
            "cam_token": carried[image, : count - 1],
            "cam_full": scores[image, 1:count],
            "par": refined[image, :count],
        }
        yield from compared(real, file, {f"out/{name}/{key}{image}": v for key, v in ours.items()}, REAL)
        exact = {"keys": own, "box": boxes[image, : count - 1]}
        yield from compared(labels, file, {f"out/{name}/{key}{image}": v for key, v in exact.items()}, 0.0)
    yield from compared(real, file, {f"out/{name}/affinity": affinity}, REAL)
    yield sure(f"out/{name}/pseudo_label", label, refined, file)
    theirs = torch.from_numpy(file[f"out/{name}/pseudo_label"]).long()
    grid = passed.fused[0].shape[-2:]
    pairs = affinity_label(theirs, (grid[0], grid[1]), method.affinity_radius)
    yield labels(f"out/{name}/affinity_label", pairs, file[f"out/{name}/affinity_label"])


def sure(name: str, ours: Tensor, scores: Tensor, file: File) -> Row:
    """Share of pixels that differ although one score was best by far."""
    theirs = torch.from_numpy(file[name]).long().view(-1, *ours.shape[-2:])
    if ours.shape != theirs.shape:
        return Row(f"{name} is {tuple(ours.shape)}, not {tuple(theirs.shape)}", float("inf"), 0.0)
    best = scores.topk(2, dim=1).values
    far = best[:, 0] - best[:, 1] >= MARGIN
    return Row(name, ((ours != theirs) & far).double().mean().item(), 0.0)


def _coco(method: WeCLIP, batch: Batch, file: File) -> Iterator[Row]:
    """COCO's rules on the same images."""
    if not part(file, "out/coco_rfm"):
        return
    classes = own_classes(batch["class_label"])
    passed = method.net.run(batch["image"], method.layers["affinity"])
    carried = method.carried(passed, classes, "affinity")
    cam = method.net.localize(passed.encoded, classes).cam
    boxes = box_mask(cam, method.labeler.walk.box_threshold)
    for image, count in enumerate(classes.present.sum(1).tolist()):
        yield real(
            f"out/coco_rfm/cam_token{image}", carried[image, : count - 1],
            file[f"out/coco_rfm/cam_token{image}"], REAL,
        )  # fmt: skip
        name = f"out/coco_rfm/box{image}"
        yield labels(name, boxes[image, : count - 1], file[name])


def _losses(method: WeCLIP, batch: Batch, file: File) -> Iterator[Row]:
    """Losses of each phase; gradients of the refined one."""
    meta = settings(file)
    late = {"rfm/losses_late": meta["late_from"]} if "out/rfm/losses_late" in file else {}
    starts = {"static/losses": 0, "rfm/losses": meta["static_steps"]} | late
    for name, step in starts.items():
        if f"out/{name}" not in file:
            continue
        method.zero_grad()
        values, total, passed = _terms(method, batch, step)
        yield Row(f"out/{name}", relative(values, file[f"out/{name}"]), LOSS)
        if name == "rfm/losses":
            total.backward()
            names = {key: [apply_rules(RELEASED_NAMES, key)] for key in part(file, "grad_norm")}
            yield from norms(
                file, "grad_norm", method.net, names, lambda each: each.grad,
                lambda key: NOISE if key.endswith("in_proj_bias") else GRADIENT,
            )  # fmt: skip
    if not late:
        return
    with torch.no_grad():
        label = method.label(batch, passed, "affinity")
        probability = resize(passed.segmentation, label.shape[-2:]).softmax(1)
        grid = passed.fused[0].shape[-2:]
        pairs = affinity_label(label, (grid[0], grid[1]), method.affinity_radius)
        for name, step in (("rfm", 0), ("late", meta["late_from"])):
            mixed = method.mixed(label, passed.segmentation, step)
            yield from compared(real, file, {f"out/{name}/confidence": probability.amax(1)}, REAL)
            yield from compared(labels, file, {f"out/{name}/mixed_label": mixed}, 0.0)
        yield from compared(labels, file, {"out/late/affinity_label": pairs}, 0.0)


def _terms(method: WeCLIP, batch: Batch, step: int) -> tuple[list[float], Tensor, Pass]:
    """The method's losses as the files list them, their sum, and a pass of the network."""
    terms = method.losses(batch, step)
    total = method.total(terms, step)
    passed = method.net.run(batch["image"], method.layers["affinity"])
    values = [terms["seg"], terms["aff"]]
    if "cross" in terms:
        values += [*method.cross_losses(batch, passed), terms["dice"]]
    return [each.item() for each in (*values, total)], total, passed


def _steps(method: WeCLIP, batch: Batch, file: File) -> Iterator[Row]:
    """The optimiser steps that the file has."""
    meta, expected = settings(file), file["out/trajectory"]
    recipe = AdamWPoly(meta["max_iter"], meta["lr"], warmup_steps=meta["warmup"])
    optimizer, scheduler = recipe(method.parameter_kinds())
    rates = {group["name"]: group for group in optimizer.param_groups}
    trajectory, differing = [], 0.0
    for step in range(len(expected)):
        with torch.no_grad():
            source = method.at(method.labels_from, step)
            passed, classes = (
                method.net.run(batch["image"], method.layers[source]),
                own_classes(batch["class_label"]),
            )
            scores = method.labeler.scores(batch["image"], method.carried(passed, classes, source), classes)
            one = {"label": file["out/trajectory_labels"][step]}
            differing += sure("label", best_class(scores, classes), scores, one).difference
        values, total, _ = _terms(method, batch, step)
        optimizer.zero_grad()
        total.backward()
        trajectory.append([*values, rates["decoder"]["lr"]])
        optimizer.step()
        scheduler.step()
    yield Row("out/trajectory", relative(trajectory, expected), TRAINED)
    yield Row("out/trajectory_labels", differing, 0.0)
    names = {key: [apply_rules(RELEASED_NAMES, key)] for key in part(file, "final_norm")}
    yield from norms(
        file, "final_norm", method.net, names, lambda each: each,
        lambda key: NOISE if key.endswith("in_proj_bias") else TRAINED,
    )  # fmt: skip


def _evaluation(method: WeCLIP, file: File) -> Iterator[Row]:
    if "eval/image" not in file:
        return
    meta, image = settings(file), torch.from_numpy(file["eval/image"])
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose(f"protocol/{meta['method']}").protocol
    scales = {"long_side": meta["resize_long"], "crf": None, "mean": method.mean, "std": method.std}
    protocol: MultiScaleSegmentation = instantiate(cfg, scales=meta["test_scales"], **scales)
    height, width = protocol.sizes(image.shape[-2:])[0]
    single = method.segment(resize(image, (height, width)))
    merged = protocol.merged(method, image, target=single.shape[-2:])
    yield real("eval/logits_single", single, file["eval/logits_single"], REAL)
    yield real("eval/logits_multi_scale", merged, file["eval/logits_multi_scale"], REAL)
    scores = protocol.merged(method, image)
    yield sure("eval/prediction", scores.argmax(1), scores, file)
    tags = torch.from_numpy(file["in/class_labels"][:1]).float()  # as of the first image
    classes = own_classes(tags)
    first = resize(image, (height, width))
    passed = method.net.run(first, method.layers["affinity"])
    carried = method.carried(passed, classes, "affinity")
    guide = F.interpolate(first, size=image.shape[-2:], mode="bilinear", align_corners=True)
    scores = method.labeler.scores(guide, carried, classes)
    yield sure("eval/cam_label", best_class(scores, classes), scores, file)


def _texts(file: File) -> Iterator[Row]:
    """Words, tokens and directions of the texts of VOC and COCO, made as training makes them."""
    if not part(file, "text"):
        return
    from open_clip.tokenizer import tokenize

    whole = "text/token_ids" in file
    tower = text_tower(_with_table(file), heads=settings(file)["text_heads"]) if whole else None
    for data, class_names in (("voc", VOC_CLASSES), ("coco", COCO_CLASSES)):
        with initialize_config_dir(str(CONF), version_base=None):
            texts = instantiate(compose(f"text/{data}").text, pretrained=None)
        found = texts.texts(class_names)
        for kind, key in (("fg", "classes"), ("bg", "backgrounds")):
            said = [sentence for sentences in found[key] for sentence in sentences]
            words = [
                texts.templates[0].replace("{}", str(name)) for name in file[f"text/names_{data}_{kind}"]
            ]
            yield Row(f"text/names_{data}_{kind}", float(said != words), 0.0)
            yield labels(f"text/tokens_{data}_{kind}", tokenize(said, 77), file[f"text/tokens_{data}_{kind}"])
            made = {f"text/features_{data}_{kind}": directions(tower, found[key])} if whole else {}
            yield from compared(real, file, made, REAL)


def _with_table(file: File) -> dict[str, Tensor]:
    """The text tower with a table of tokens that has the file's rows."""
    state, rows = text_weights(state_of(file)), torch.from_numpy(file["text/token_embedding_rows"])
    table = torch.zeros(49408, rows.shape[1])
    table[torch.from_numpy(file["text/token_ids"])] = rows
    return state | {"token_embedding.weight": table}
