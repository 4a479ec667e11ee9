"""What goes wrong when people predict: each mistake has one line that names it, and costs nothing else."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import socket
import struct
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from painter import run_predict, save_checkpoint, scene


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "net.ckpt")


def encoded(format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(scene(48, 64)[0]).save(stream, format, **options)
    return stream.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A PNG of 70 bytes that claims to be this large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def gif_of_no_size() -> bytes:
    return b"GIF89a" + struct.pack("<HH", 0, 0) + b"\0\0\0;"


def exif(data: bytes) -> bytes:
    return encoded("JPEG", exif=b"Exif\0\0" + data)


def pixels(height: int, width: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(scene(48, 64)[0]).resize((width, height)).save(stream, "PNG")
    return stream.getvalue()


def oriented(value: int) -> bytes:
    """EXIF with this orientation, and with a directory of tags that lies beyond the end."""
    orientation = struct.pack("<HHIHH", 0x0112, 3, 1, value, 0)
    beyond = struct.pack("<HHII", 0x8769, 4, 1, 0xFFFFFF)
    return b"II*\0\x08\0\0\0\x02\0" + orientation + beyond + bytes(4)


FILES: dict[str, tuple[bytes, str | tuple[int, int]]] = {
    # an error's pattern, or height and width of a right answer
    "empty.jpg": (b"", r"cannot be read as an image \(of no known format\): copy it anew"),
    "cut off.jpg": (encoded("JPEG", quality=95)[:700], "truncated"),
    "cut off.png": (encoded("PNG")[:120], "truncated|broken"),
    "bomb.png": (png_of_size(12_000, 12_000), r"12000×12000 pixels, more than max_pixels=1000000"),
    "worse bomb.png": (png_of_size(60_000, 60_000), r"more than 178956970 pixels: make it smaller"),
    "text.jpg": (b"I am no image.\n", r"\(of no known format\): copy it anew, or convert"),
    "damaged.png": (encoded("PNG").replace(b"IDAT", b"XDAT"), "cannot be read as an image"),
    "header only.bmp": (encoded("BMP")[:54], "truncated"),
    "no size.gif": (gif_of_no_size(), "cannot be read as an image|need uint8 RGB pixels"),
    "film.gif.mp4": (b"\0\0\0\x18ftypisom" + bytes(90), r"\(of no known format\): .*convert it"),
    "drawing.svg.png": (b'<?xml version="1.0"?><svg xmlns="x"/>', r"\(of no known format\): .*convert it"),
    "phone.heic": (b"\0\0\0\x18ftypheic" + bytes(90), r"\(of no known format\): .*convert it"),
    "line\nend.jpg": (b"", r"line\\nend\.jpg"),
    "\udcff\udcfe.jpg": (b"", r"\\udcff\\udcfe\.jpg"),
    "1 pixel.png": (pixels(1, 1), (1, 1)),
    "wide.png": (pixels(1, 5000), (1, 5000)),
    "high.png": (pixels(5000, 1), (5000, 1)),
    "profile.jpg": (encoded("JPEG", icc_profile=b"no profile" * 9), (48, 64)),
    "profile.png": (encoded("PNG", icc_profile=b"no profile" * 9), (48, 64)),
    "exif, garbage.jpg": (exif(b"garbage"), (48, 64)),
    "exif, cut off.jpg": (exif(b"MM\0*\0\0\0\x08\0\x05\x01\x12\0\x03\0\0\0\x01\0\x06"), (48, 64)),
    "exif, half broken.jpg": (exif(oriented(6)), (64, 48)),
    "exif, orientation 99.jpg": (exif(oriented(99)), (48, 64)),
    "animated.gif": (encoded("GIF", save_all=True, append_images=[Image.new("RGB", (64, 48))]), (48, 64)),
    "wrong ending.png": (encoded("JPEG"), (48, 64)),
    "no ending": (encoded("PNG"), (48, 64)),
    "犬 🐕 é.png": (encoded("PNG"), (48, 64)),
    "  spaces .png": (encoded("PNG"), (48, 64)),
    "$(id);'quote\".png": (encoded("PNG"), (48, 64)),
    "[0-9]*.png": (encoded("PNG"), (48, 64)),
    f"{'long' * 62}.png": (encoded("PNG"), (48, 64)),
    "same.jpg": (encoded("JPEG"), (48, 64)),
    "same.png": (encoded("PNG"), (48, 64)),
    "same.jpg.png": (encoded("PNG"), (48, 64)),
    "deeper/same.png": (encoded("PNG"), (48, 64)),
    "folder.jpg/inside.png": (encoded("PNG"), (48, 64)),
}  # fmt: skip
LINKS = {
    "broken link.jpg": "links to nothing",
    "loop.jpg": "links to nothing",
    "pipe.jpg": "is a pipe, socket or device",
    "socket.jpg": "is a pipe, socket or device",
}


@pytest.fixture(scope="module")
def answers(checkpoint, tmp_path_factory):
    """One run over a folder of everything above: its exit code, its line, and the answer to each file."""
    root, out = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("out")
    for name, (content, _) in FILES.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)
    (root / "broken link.jpg").symlink_to(root / "nowhere.jpg")
    (root / "loop.jpg").symlink_to(root / "loop.jpg")
    os.mkfifo(root / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(root)  # the path of a socket must be short
        server.bind("socket.jpg")
        os.chdir(here)
        named = [f"{root}/film.gif.mp4", f"{root}/no ending"]
        sources = ",".join("'" + str(source).replace("'", "\\'") + "'" for source in (root, *named))
        code, line = run_predict(
            f"ckpt={checkpoint}",
            f"source=[{sources}]",
            f"out={out}",
            f"hydra.run.dir={out}/run",
            "max_pixels=1000000",
            "cams=false",
        )
    images = json.loads((out / "predictions.json").read_text("utf-8"))["images"]
    return code, line, {os.path.relpath(image["file"], root): image for image in images}, out


def test_every_file_has_an_answer(answers):
    code, line, images, _ = answers
    assert set(images) == {*FILES, *LINKS}
    failed = sum("error" in image for image in images.values())
    assert failed == sum(isinstance(expected, str) for _, expected in FILES.values()) + len(LINKS)
    assert (code, line) == (
        1,
        f"error: {failed} of {len(images)} images failed: mend what is listed above and in predictions.json",
    )


@pytest.mark.parametrize("name", [*FILES, *LINKS])
def test_an_error_names_file_problem_and_remedy_or_the_answer_is_right(name, answers):
    _, _, images, out = answers
    expected = LINKS.get(name) or FILES[name][1]
    if isinstance(expected, str):
        error = images[name]["error"]
        assert re.search(expected, error)
        assert len(error.splitlines()) == 1
        assert ": " in error  # what to do stands behind it
        escaped = name.encode("unicode_escape").decode() if not name.isprintable() else name
        assert escaped in error
    else:
        with Image.open(out / images[name]["mask"]) as mask:
            assert mask.size == expected[::-1]
        assert (images[name]["height"], images[name]["width"]) == expected


def test_no_result_took_another_ones_place(answers):
    _, _, images, out = answers
    masks = [image["mask"] for image in images.values() if "mask" in image]
    assert len(masks) == len(set(masks)) == sum(path.is_file() for path in (out / "masks").rglob("*"))


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    for name in ("a.png", "b.png"):
        (root / name).write_bytes(encoded("PNG"))
    return root


class Evil:
    """A pickle that runs code when it is opened carelessly."""

    def __reduce__(self):
        return Path.touch, (Path("owned"),)


def other_checkpoint(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def pickled(path: Path, content: object) -> Path:
    path.write_bytes(pickle.dumps(content))
    return path


SETTINGS = {
    "missing source": (["source={root}/nowhere.jpg"], r"nowhere\.jpg does not exist: mend the path"),
    "empty source": (["source="], "need a text or a list of texts"),
    "no source": (["source=null"], "need a text or a list of texts"),
    "empty folder": (["source={root}/empty"], r"source=.*/empty has no image, need files such as \.jpg"),
    "pattern without match": (["source={root}/*.tif"], r"source=.*\*\.tif matches no file"),
    "missing checkpoint": (["ckpt=nowhere.ckpt"], r"ckpt=nowhere\.ckpt: no such file"),
    "text as checkpoint": (["ckpt={root}/text.ckpt"], "cannot be read"),
    "code in a checkpoint": (["ckpt={root}/evil.ckpt"], "cannot be read as tensors and plain containers"),
    "a pickle with code": (["ckpt={root}/evil.pkl"], "cannot be read as tensors and plain containers"),
    "checkpoint of another program": (["ckpt={root}/other.ckpt"], r"was not written by wsss_afa\.train"),
    "an image as checkpoint": (["ckpt={root}/a.png"], "cannot be read"),
    "unknown tag": (["tags=[red,grean]"], r"'grean' is no class of this checkpoint; did you mean green\?"),
    "unheard-of tag": (["tags=submarine"], "'submarine' is no class .*choose from red, green, deep blue"),
    "no tag": (["tags=[]"], "need a list of class names: set null"),
    "unknown protocol": (["protocol=paper"], "paper"),
    "bad protocol": (["protocol.scales=[0]"], r"protocol\.scales=\[0\]"),
    "negative tile": (["tile=-512"], "tile=-512, need 1 or more pixels or null"),
    "tile that is no number": (["tile=large"], "tile=large, need"),
    "tile below the network's least": (["tile=16", "overlap=0"], "tile=16, need 29 pixels or more"),
    "overlap as large as the tile": (["tile=64", "overlap=64"], "overlap=64, need 0 to 63 pixels"),
    "negative long side": (["long_side=-1"], "long_side=-1"),
    "limit beyond Pillow's": (["max_pixels=999999999"], "max_pixels=999999999, need 1 to 178956970"),
    "misspelt setting": (["tyle=512"], r"tyle is no setting of this run; did you mean tile\?"),
    "misspelt, added": (["+protocol.mirrored=true"], r"mirrored is no setting"),
    "device that is not there": (["device=cuda:99"], "device=cuda:99 cannot be used .*set auto"),
    "neither true nor false": (["cams=perhaps"], "cams=perhaps, need true or false"),
    "results under a file": (["out={root}/a.png/results"], r"out=.*results cannot be written .*set out"),
    "results in a file": (["out={root}/a.png"], r"out=.*a\.png cannot be written"),
    "results among the images": (["out={root}"], "is the folder of the images"),
    "results where nobody writes": (["out=/proc/results"], "out=/proc/results cannot be written"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", SETTINGS)
def test_a_setting_that_does_not_work_gets_one_line(mistake, checkpoint, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (photos / "empty").mkdir()
    (photos / "text.ckpt").write_text("text")
    other_checkpoint(photos / "evil.ckpt", {"wsss_afa": Evil()})
    pickled(photos / "evil.pkl", {"wsss_afa": Evil()})
    other_checkpoint(photos / "other.ckpt", {"state_dict": {"conv.weight": torch.zeros(3, 3)}})
    arguments, pattern = SETTINGS[mistake]
    defaults = {"ckpt": str(checkpoint), "source": str(photos), "hydra.run.dir": str(tmp_path / "run")}
    given = dict(argument.split("=", 1) for argument in arguments)
    words = [f"{key}={value.format(root=photos)}" for key, value in (defaults | given).items()]
    code, line = run_predict(*words)
    assert code == 1
    assert line.startswith("error: ")
    assert len(line.strip().splitlines()) == 1
    assert re.search(pattern, line)
    assert not list(tmp_path.rglob("masks"))
    assert not (tmp_path / "owned").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_and_folders_without_permission(checkpoint, photos, tmp_path):
    (photos / "a.png").chmod(0)
    (photos / "closed").mkdir(mode=0)
    arguments = [f"ckpt={checkpoint}", f"source={photos}", f"hydra.run.dir={tmp_path}/run", "cams=false"]
    assert run_predict(*arguments)[0] == 1
    images = json.loads((tmp_path / "run" / "predictions.json").read_text())["images"]
    errors = {Path(image["file"]).name: image.get("error", "") for image in images}
    assert "Permission denied" in errors["a.png"]
    assert "change its permissions" in errors["closed"]
    assert errors["b.png"] == ""


def test_a_result_that_cannot_be_written_costs_no_other(checkpoint, photos, tmp_path):
    out = tmp_path / "out"
    (out / "masks" / "a.png").mkdir(parents=True)
    arguments = [f"ckpt={checkpoint}", f"source={photos}", f"out={out}", f"hydra.run.dir={tmp_path}/run"]
    assert run_predict(*arguments)[0] == 1
    a, b = json.loads((out / "predictions.json").read_text())["images"]
    assert re.search(r"masks/a\.png cannot be written \(Is a directory\)", a["error"])
    assert (out / b["mask"]).is_file()
