"""The released program's numbers, as far as they were copied to ``tests/data``."""

from pathlib import Path

import pytest

import parity

DATA = Path(__file__).parents[1] / "data"
FILES = sorted(DATA.glob("*.npz"))
GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
BESIDE = sorted([*GOLDEN.glob("*.npz"), *GOLDEN.glob("methods/*.npz")])
COPIED = {path.name for path in FILES}
MORE = [path for path in BESIDE if path.name not in COPIED and path.stem.partition("_")[0] in parity.FORMS]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_quantity_of_the_released_program(path):
    rows = parity.compare(path)
    assert rows
    assert not [row for row in rows if not row.ok]


def test_a_wrong_number_is_out(tmp_path, capsys):
    import numpy as np

    with np.load(DATA / "refine_a.npz") as archive:
        file = {name: archive[name] for name in archive.files}
    file["0/par_iter10"] = file["0/par_iter10"] + 1e-3
    np.savez(tmp_path / "wrong.npz", **file)
    assert parity.main([str(tmp_path / "wrong.npz")]) == 1
    assert "OUT 0/par_iter10" in capsys.readouterr().out


SPOILT = {
    "excel_part": [
        "text/aggregated", "out/layer_features", "out/affinity_pred", "static/attribute_maps",
        "static/losses", "dynamic/0/transition", "late/affinity_label", "late/losses", "out/trajectory",
        "dynamic/grad_norm/decoder.linear_pred.weight", "final_norm/decoder.linear_pred.weight",
        "eval/training_free/0/label", "eval/trained/0/cam_propagated",
        "eval/segmentation/0/logits_half",
    ],
    "more_a": [
        "out/class_tokens", "out/gcr_neighbours", "out/cam_aux", "out/label_main", "out/une_candidates_late",
        "loss/cle_late", "out/lam", "out/trajectory", "grad_norm/graph_layer.norm.weight",
        "final_norm/encoder.cls_token",
    ],
    "toco_a": [
        "out/tokens", "out/aux_cam", "out/pair_label_cells", "out/losses_released", "out/trajectory_cells",
        "eval/coco_logits", "in/cell_box", "grad_norm_cells/encoder.cls_token",
        "final_norm_released/proj_head_t.mlp.0.weight",
    ],
    "weclip_a": [
        "out/fused", "out/attention_last", "out/static/prob0", "out/static/gradcam1", "out/rfm/box0",
        "out/rfm/transition1", "out/coco_rfm/cam_token0", "out/static/affinity_label", "out/rfm/losses",
        "out/trajectory", "out/trajectory_labels", "text/tokens_coco_fg", "eval/logits_multi_scale",
        "eval/cam_label", "grad_norm/decoder.linear_pred.weight", "final_norm/decoder.linear_pred.bias",
    ],
    "weclip_plus_a": [
        "out/dino_fused", "out/seg_logits_dino", "out/rfm/cam_token1", "out/coco_rfm/box1",
        "out/rfm/losses_late", "out/late/mixed_label", "out/trajectory",
        "grad_norm/dino_decoder_fts_fuse.linear_fuse.weight",
    ],
}  # fmt: skip
"""Of files of methods some quantities, one of each kind."""


@pytest.mark.parametrize("name", SPOILT)
def test_every_kind_of_spoilt_quantity_is_out(name, tmp_path):
    import numpy as np

    with np.load(DATA / f"{name}.npz") as archive:
        file = {key: archive[key].copy() for key in archive.files}
    for key in SPOILT[name]:
        value = file[key]
        file[key] = (
            np.where(value == value.max(), value + 1, value) if value.dtype.kind in "iu" else value * 1.001
        )
    file["out/stranger"] = np.zeros(1)
    np.savez(tmp_path / "wrong.npz", **file)
    out = {row.name for row in parity.compare(tmp_path / "wrong.npz") if not row.ok}
    assert out == {*SPOILT[name], "out/stranger is not compared"}


@pytest.mark.skipif(not MORE, reason="no folder ../shared/golden with further files")
@pytest.mark.parametrize("path", MORE, ids=lambda path: path.stem)
def test_further_files(path):
    assert all(row.ok for row in parity.compare(path))
