"""Renaming published checkpoints, and having them from files, addresses and the hub: all on this host alone."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from wsss_afa.models.mix_transformer import mix_transformer
from wsss_afa.models.weights import check_fit, read_weights, rename_afa, rename_mit
from wsss_afa.types import UserError

GOLDEN = Path(__file__).parent / "data" / "train_step_a.npz"


def nvidia_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Ours → those of the published mit_b*.pth, its classifier added."""
    renamed = {}
    for key, value in state.items():
        stage, rest = re.fullmatch(r"stages\.(\d)\.(.+)", key).groups()
        number, rest = int(stage) + 1, rest.replace("mlp.dwconv.", "mlp.dwconv.dwconv.")
        rest = re.sub(r"^(patch_embed|norm)\.", rf"\g<1>{number}.", rest)
        renamed[re.sub(r"^blocks\.", f"block{number}.", rest)] = value
    return renamed | {"head.weight": torch.zeros(1000, 256), "head.bias": torch.zeros(1000)}


@pytest.fixture(scope="module")
def encoder_state() -> dict[str, Tensor]:
    return mix_transformer("b0").state_dict()


@pytest.fixture(scope="module")
def checkpoint(encoder_state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "mit_b0.pth"
    torch.save(nvidia_names(encoder_state), path)
    return path


def assert_same(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert state.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in state.items())


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# Names


def test_nvidia_names(encoder_state: dict[str, Tensor]):
    published = nvidia_names(encoder_state)
    assert {"patch_embed1.proj.weight", "block4.1.mlp.dwconv.dwconv.bias", "norm4.weight"} <= published.keys()
    assert_same(rename_mit(published), encoder_state)


@pytest.mark.parametrize("prefix", ["segformer.encoder.", "encoder.", ""])
def test_hugging_face_names(prefix: str):
    block = f"{prefix}block.2.1."
    published = {
        f"{prefix}patch_embeddings.0.proj.weight": torch.tensor(0.0),
        f"{prefix}patch_embeddings.3.layer_norm.bias": torch.tensor(1.0),
        f"{prefix}layer_norm.1.weight": torch.tensor(2.0),
        f"{block}layer_norm_1.weight": torch.tensor(3.0),
        f"{block}layer_norm_2.bias": torch.tensor(4.0),
        f"{block}attention.self.query.weight": torch.tensor(5.0),
        f"{block}attention.self.value.bias": torch.tensor([7.0, 8.0]),
        f"{block}attention.self.key.bias": torch.tensor([5.0, 6.0]),
        f"{block}attention.self.sr.weight": torch.tensor(9.0),
        f"{block}attention.self.layer_norm.weight": torch.tensor(10.0),
        f"{block}attention.output.dense.bias": torch.tensor(11.0),
        f"{block}mlp.dense1.weight": torch.tensor(12.0),
        f"{block}mlp.dwconv.dwconv.bias": torch.tensor(13.0),
        f"{block}mlp.dense2.weight": torch.tensor(14.0),
        "classifier.weight": torch.tensor(15.0),
        "classifier.bias": torch.tensor(16.0),
    }
    expected = {
        "stages.0.patch_embed.proj.weight": torch.tensor(0.0),
        "stages.3.patch_embed.norm.bias": torch.tensor(1.0),
        "stages.1.norm.weight": torch.tensor(2.0),
        "stages.2.blocks.1.norm1.weight": torch.tensor(3.0),
        "stages.2.blocks.1.norm2.bias": torch.tensor(4.0),
        "stages.2.blocks.1.attn.q.weight": torch.tensor(5.0),
        "stages.2.blocks.1.attn.kv.bias": torch.tensor([5.0, 6.0, 7.0, 8.0]),
        "stages.2.blocks.1.attn.sr.weight": torch.tensor(9.0),
        "stages.2.blocks.1.attn.norm.weight": torch.tensor(10.0),
        "stages.2.blocks.1.attn.proj.bias": torch.tensor(11.0),
        "stages.2.blocks.1.mlp.fc1.weight": torch.tensor(12.0),
        "stages.2.blocks.1.mlp.dwconv.bias": torch.tensor(13.0),
        "stages.2.blocks.1.mlp.fc2.weight": torch.tensor(14.0),
    }
    keys_before = list(published)
    assert_same(rename_mit(published), expected)
    assert list(published) == keys_before  # pure


def test_own_names_stay(encoder_state: dict[str, Tensor]):
    assert_same(rename_mit(encoder_state), encoder_state)


def test_names_of_another_network():
    with pytest.raises(
        UserError, match=r"no Mix Transformer's \(keys such as fc\.bias, fc\.weight\); need"
    ) as error:
        rename_mit({"fc.weight": torch.zeros(1), "fc.bias": torch.zeros(1), "stem": torch.zeros(1)})
    one_line(error)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_released_afa_names(prefix: str):
    with np.load(GOLDEN) as archive:
        state = {
            prefix + key.removeprefix("state/"): torch.from_numpy(archive[key])
            for key in archive.files
            if key.startswith("state/")
        }
    renamed = rename_afa(state)
    assert len(renamed) == len(state)
    heads = {key for key in renamed if not key.startswith("backbone.stages.")}
    assert heads == {
        *(f"decoder.projections.{i}.{part}" for i in range(4) for part in ("weight", "bias")),
        "decoder.fuse.weight",
        *(f"decoder.norm.{part}" for part in ("weight", "bias", "running_mean", "running_var")),
        "decoder.norm.num_batches_tracked",
        "decoder.predict.weight",
        "decoder.predict.bias",
        "affinity_head.weight",
        "affinity_head.bias",
        "classifier.weight",
    }
    assert [renamed[f"decoder.projections.{i}.weight"].shape[1] for i in range(4)] == [8, 16, 20, 32]
    assert renamed["affinity_head.weight"].shape == (16,)
    assert torch.equal(renamed["affinity_head.weight"], state[f"{prefix}attn_proj.weight"][0, :, 0, 0])
    sr = renamed["backbone.stages.1.blocks.0.attn.sr.weight"]
    assert torch.equal(sr, state[f"{prefix}encoder.block2.0.attn.sr.weight"])


def test_not_a_released_afa_checkpoint(encoder_state: dict[str, Tensor]):
    with pytest.raises(UserError, match="no released AFA checkpoint .*block1.*; need encoder") as error:
        rename_afa(nvidia_names(encoder_state))
    one_line(error)


# Fit


def test_missing_and_unexpected_weights(encoder_state: dict[str, Tensor]):
    state = dict(encoder_state) | {"extra.weight": torch.zeros(1)}
    del state["stages.1.norm.bias"]
    expected = r"1 missing \(stages\.1\.norm\.bias\), 1 unexpected \(extra\.weight\); choose"
    with pytest.raises(UserError, match=expected) as error:
        check_fit(state, mix_transformer("b0"))
    one_line(error)


@pytest.mark.parametrize(
    ("variant", "problem"), [("b1", "of another shape .stages"), ("tiny", "missing|unexpected")]
)
def test_weights_of_another_variant(checkpoint: Path, variant: str, problem: str):
    with pytest.raises(UserError, match=problem) as error:
        mix_transformer(variant, pretrained=str(checkpoint))
    assert f"pretrained={checkpoint} for variant={variant}: " in one_line(error)


# Files


@pytest.mark.parametrize("wrapped", ["", "state_dict", "model"])
def test_torch_file(encoder_state: dict[str, Tensor], wrapped: str, tmp_path: Path):
    state = nvidia_names(encoder_state)
    torch.save({wrapped: state, "epoch": 3} if wrapped else state, tmp_path / "mit.bin")
    assert_same(mix_transformer("b0", pretrained=str(tmp_path / "mit.bin")).state_dict(), encoder_state)


def test_safetensors_file(encoder_state: dict[str, Tensor], tmp_path: Path):
    save_file(nvidia_names(encoder_state), tmp_path / "mit.safetensors")
    assert_same(
        mix_transformer("b0", pretrained=str(tmp_path / "mit.safetensors")).state_dict(), encoder_state
    )


@pytest.mark.parametrize("name", ["absent.pth", "weights/absent.pth", "../absent/folder", "/absent", "b1"])
def test_missing_file(name: str):
    with pytest.raises(UserError, match=re.escape(name) + ": no such file; need a file .*or null") as error:
        mix_transformer("b0", pretrained=name)
    one_line(error)


class Evil:
    """Unpickled as code, this would leave a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("name", ["page.pth", "empty.bin", "page.safetensors", "evil.pth", "cut.pth"])
def test_file_that_is_no_checkpoint(name: str, checkpoint: Path, tmp_path: Path):
    path, trace = tmp_path / name, tmp_path / "trace"
    contents = {"page": b"<html>\nnot\nfound</html>", "empty": b"", "cut": checkpoint.read_bytes()[:5000]}
    if path.stem == "evil":
        torch.save({"patch_embed1.proj.weight": Evil(trace)}, path)
    else:
        path.write_bytes(contents[path.stem])
    with pytest.raises(
        UserError, match="cannot be read as tensors alone .*; need a state dictionary"
    ) as error:
        mix_transformer("b0", pretrained=str(path))
    assert str(path) in one_line(error)
    assert not trace.exists()


def test_file_without_weights(tmp_path: Path):
    torch.save({"epoch": 3, "losses": torch.zeros(2)}, tmp_path / "log.pth")
    with pytest.raises(
        UserError, match="holds no state dictionary .entries such as epoch, losses.; need"
    ) as error:
        mix_transformer("b0", pretrained=str(tmp_path / "log.pth"))
    one_line(error)


# Addresses


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(checkpoint: Path) -> Iterator[ThreadingHTTPServer]:
    handler = functools.partial(Handler, directory=str(checkpoint.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield http
        http.shutdown()
        thread.join()


def test_url_is_kept(
    server: ThreadingHTTPServer,
    encoder_state: dict[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = f"http://127.0.0.1:{server.server_port}/mit_b0.pth"
    assert_same(mix_transformer("b0", pretrained=url).state_dict(), encoder_state)
    server.shutdown()
    server.server_close()
    assert_same(mix_transformer("b0", pretrained=url).state_dict(), encoder_state)
    with pytest.raises(
        UserError, match=r"other/mit_b0\.pth: cannot be downloaded .*set pretrained=FILE"
    ) as error:
        read_weights(url.replace("mit_b0", "other/mit_b0"))  # the same name, elsewhere
    one_line(error)


def test_url_not_found(server: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"cannot be downloaded \(HTTPError: HTTP Error 404") as error:
        read_weights(f"http://127.0.0.1:{server.server_port}/absent.pth?download=true")
    one_line(error)
    assert not list(tmp_path.rglob("*.pth"))


# The hub

HUB = """
import json, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

body = Path(sys.argv[1]).read_bytes()


class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self):
        known = self.path.startswith("/nvidia/mit-b0/")
        found = known and self.path.endswith("/resolve/main/pytorch_model.bin")
        self.send_response(200 if found else 404)
        if found:
            self.send_header("ETag", '"weights"')
        else:
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(body) if found else 0))
        self.end_headers()
        return found

    def do_GET(self):
        if self.do_HEAD():
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def serve(port):
    server = ThreadingHTTPServer(("127.0.0.1", port), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
"""

ASK = """
import os

server = serve(0) if sys.argv[2] == "online" else None
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port if server else 9}"
import timm, torch
torch.set_num_threads(1)
from wsss_afa.models.mix_transformer import mix_transformer
from wsss_afa.types import UserError


def total(model):
    return sum(value.double().sum().item() for value in model.state_dict().values())


def error(name):
    try:
        mix_transformer("b0", pretrained=name)
    except UserError as error:
        return str(error)


answer = {"hub": total(mix_transformer("b0", pretrained="nvidia/mit-b0"))}
answer["timm"] = total(timm.create_model("mit_b0", pretrained=True))
answer["unknown"] = error("nvidia/mit-b9")
if server:
    server.shutdown()
    server.server_close()
    answer["gone"] = total(mix_transformer("b0", pretrained="nvidia/mit-b0"))
    answer["unreachable"] = error("nvidia/mit-b9")
print(json.dumps(answer))
"""


def ask_hub(checkpoint: Path, mode: str, home: Path) -> dict[str, object]:
    """In a process of its own: the hub's client reads its environment when it is imported."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1" if mode == "offline" else "0"}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "no_proxy": "127.0.0.1"}
    command = [sys.executable, "-c", HUB + ASK, str(checkpoint), mode]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_hub_is_kept_and_used_offline(checkpoint: Path, encoder_state: dict[str, Tensor], tmp_path: Path):
    expected = pytest.approx(sum(value.double().sum().item() for value in encoder_state.values()), rel=1e-12)
    online = ask_hub(checkpoint, "online", tmp_path)
    offline = ask_hub(checkpoint, "offline", tmp_path)
    loaded = [online["hub"], online["timm"], online["gone"], offline["hub"], offline["timm"]]
    assert loaded == [expected] * 5
    for message in (online["unknown"], online["unreachable"], offline["unknown"]):
        assert "\n" not in message
        assert message.startswith("nvidia/mit-b9: no such file, and no weights from the hub (")
        assert "set pretrained=FILE, or pretrained=null" in message
