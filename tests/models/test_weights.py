"""Renaming published checkpoints, and having them from files, addresses and the hub, on this host alone."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from wsss_afa.errors import UserError
from wsss_afa.models.backbones.mix_transformer import mix_transformer
from wsss_afa.models.weights import check_fit, read_weights, rename_mit


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


@contextmanager
def one_line_error(pattern: str) -> Iterator[None]:
    """A UserError of one line that the pattern matches; what it came from is let go."""
    with pytest.raises(UserError, match=pattern) as error:
        yield
    assert "\n" not in str(error.value)
    if isinstance(error.value.__cause__, HTTPError):
        error.value.__cause__.close()


def test_nvidia_names(encoder_state: dict[str, Tensor]):
    published = nvidia_names(encoder_state)
    assert {"patch_embed1.proj.weight", "block4.1.mlp.dwconv.dwconv.bias", "norm4.weight"} <= published.keys()
    assert_same(rename_mit(published), encoder_state)
    assert_same(rename_mit(encoder_state), encoder_state)


HUGGING_FACE = {
    "patch_embeddings.0.proj.weight": "stages.0.patch_embed.proj.weight",
    "patch_embeddings.3.layer_norm.bias": "stages.3.patch_embed.norm.bias",
    "layer_norm.1.weight": "stages.1.norm.weight",
    "block.2.1.layer_norm_1.weight": "stages.2.blocks.1.norm1.weight",
    "block.2.1.layer_norm_2.bias": "stages.2.blocks.1.norm2.bias",
    "block.2.1.attention.self.query.weight": "stages.2.blocks.1.attn.q.weight",
    "block.2.1.attention.self.sr.weight": "stages.2.blocks.1.attn.sr.weight",
    "block.2.1.attention.self.layer_norm.weight": "stages.2.blocks.1.attn.norm.weight",
    "block.2.1.attention.output.dense.bias": "stages.2.blocks.1.attn.proj.bias",
    "block.2.1.mlp.dense1.weight": "stages.2.blocks.1.mlp.fc1.weight",
    "block.2.1.mlp.dwconv.dwconv.bias": "stages.2.blocks.1.mlp.dwconv.bias",
    "block.2.1.mlp.dense2.weight": "stages.2.blocks.1.mlp.fc2.weight",
}


@pytest.mark.parametrize("prefix", ["segformer.encoder.", "encoder.", ""])
def test_hugging_face_names(prefix: str):
    published = {prefix + name: torch.tensor(i) for i, name in enumerate(HUGGING_FACE)}
    published[f"{prefix}block.0.1.attention.self.value.bias"] = torch.tensor([7, 8])
    published[f"{prefix}block.0.1.attention.self.key.bias"] = torch.tensor([5, 6])
    published |= {"classifier.weight": torch.zeros(1), "classifier.bias": torch.zeros(1)}
    names_before = list(published)
    expected = {name: torch.tensor(i) for i, name in enumerate(HUGGING_FACE.values())}
    expected["stages.0.blocks.1.attn.kv.bias"] = torch.tensor([5, 6, 7, 8])
    assert_same(rename_mit(published), expected)
    assert list(published) == names_before  # pure


def test_names_of_another_network():
    with one_line_error(r"no Mix Transformer's \(keys such as fc\.bias, fc\.weight\); need"):
        rename_mit({"fc.weight": torch.zeros(1), "fc.bias": torch.zeros(1), "stem": torch.zeros(1)})


def test_missing_and_unexpected_weights(encoder_state: dict[str, Tensor]):
    state = dict(encoder_state) | {"extra.weight": torch.zeros(1)}
    del state["stages.1.norm.bias"]
    expected = r"1 missing \(stages\.1\.norm\.bias\), 1 unexpected \(extra\.weight\); choose"
    with one_line_error(expected):
        check_fit(state, mix_transformer("b0"))


@pytest.mark.parametrize(
    ("variant", "problem"), [("b1", "of another shape .stages"), ("tiny", "missing|unexpected")]
)
def test_weights_of_another_variant(checkpoint: Path, variant: str, problem: str):
    with one_line_error(f"pretrained={checkpoint} for variant={variant}: .*({problem})"):
        mix_transformer(variant, pretrained=str(checkpoint))


@pytest.mark.parametrize("name", ["bare.pth", "state_dict.bin", "model.pt", "bare.safetensors"])
def test_file(encoder_state: dict[str, Tensor], name: str, tmp_path: Path):
    path, state = tmp_path / name, nvidia_names(encoder_state)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state if path.stem == "bare" else {path.stem: state, "epoch": 3}, path)
    model = mix_transformer("b0", pretrained=str(path))
    assert_same(model.state_dict(), encoder_state)
    assert (model.source, model.sha256) == (str(path), hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("name", ["absent.pth", "weights/absent.pth", "../absent/folder", "/absent", "b1"])
def test_missing_file(name: str):
    with one_line_error(re.escape(name) + ": no such file; need a file .*or null"):
        mix_transformer("b0", pretrained=name)


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
    with one_line_error(f"{path}: cannot be read as tensors alone .*; need a state dictionary"):
        mix_transformer("b0", pretrained=str(path))
    assert not trace.exists()


def test_file_without_weights(tmp_path: Path):
    torch.save({"epoch": 3, "losses": torch.zeros(2)}, tmp_path / "log.pth")
    with one_line_error(r"holds no state dictionary .entries such as epoch, losses.; need"):
        mix_transformer("b0", pretrained=str(tmp_path / "log.pth"))


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder, with the headers that the hub would add."""

    def end_headers(self) -> None:
        known = self.path.startswith("/nvidia/mit-b0/")
        self.send_header("ETag", '"weights"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")  # if it is an error
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(checkpoint: Path) -> Iterator[ThreadingHTTPServer]:
    handler = functools.partial(Handler, directory=str(checkpoint.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield http
        http.shutdown()


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path


def test_url_is_kept(server: ThreadingHTTPServer, encoder_state: dict[str, Tensor], torch_home: Path):
    url = f"http://127.0.0.1:{server.server_port}/mit_b0.pth"
    assert_same(mix_transformer("b0", pretrained=url).state_dict(), encoder_state)
    server.shutdown()
    server.server_close()
    assert_same(mix_transformer("b0", pretrained=url).state_dict(), encoder_state)
    with one_line_error(r"other/mit_b0\.pth: cannot be downloaded .*set pretrained=FILE"):
        read_weights(url.replace("mit_b0", "other/mit_b0"))  # the same name, elsewhere


def test_url_without_weights(server: ThreadingHTTPServer, torch_home: Path):
    url = f"http://127.0.0.1:{server.server_port}/"
    with one_line_error(r"cannot be downloaded \(HTTPError: HTTP Error 404"):
        read_weights(f"{url}absent.pth?download=true")
    assert not list(torch_home.rglob("*.pth"))
    with one_line_error(rf"\(kept as {torch_home}/hub/checkpoints/\w+-\): cannot be read .*delete the file"):
        read_weights(url)  # a page


ASK = """
import json, sys, time
import huggingface_hub, timm, torch
from wsss_afa.models.backbones.mix_transformer import mix_transformer
from wsss_afa.errors import UserError
torch.set_num_threads(1)
time.sleep = lambda _: None  # the hub's client waits between its attempts

def total(model):
    return sum(value.double().sum().item() for value in model.state_dict().values())

for line in sys.stdin:
    huggingface_hub.constants.HF_HUB_OFFLINE = line == "offline\\n"
    answer = {"ours": total(mix_transformer("b0", pretrained="nvidia/mit-b0"))}
    answer["timm"] = total(timm.create_model("mit_b0", pretrained=True))
    try:
        mix_transformer("b0", pretrained="nvidia/mit-b9")
    except UserError as error:
        answer["unknown"] = str(error)
    print(json.dumps(answer), flush=True)
"""


@contextmanager
def hub_user(port: int, home: Path) -> Iterator[Callable[[str], dict[str, object]]]:
    """Asks the hub in a process of its own, whose client reads its environment when it is imported."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(home), "no_proxy": "127.0.0.1"}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", ASK], env=environment, text=True, **pipes) as process:

        def ask(how: str) -> dict[str, object]:
            process.stdin.write(f"{how}\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()


def test_hub_is_kept(
    server: ThreadingHTTPServer, checkpoint: Path, encoder_state: dict[str, Tensor], tmp_path: Path
):
    published = checkpoint.parent / "nvidia/mit-b0/resolve/main/pytorch_model.bin"
    published.parent.mkdir(parents=True)
    published.hardlink_to(checkpoint)
    with hub_user(server.server_port, tmp_path) as ask:
        answers = [ask("online")]
        server.shutdown()
        server.server_close()
        answers += [ask("unreachable"), ask("offline")]
    expected = pytest.approx(sum(value.double().sum().item() for value in encoder_state.values()), rel=1e-12)
    reasons = ["RepositoryNotFound", "LocalEntryNotFound", "LocalEntryNotFound"]
    for answer, reason in zip(answers, reasons, strict=True):
        assert answer["ours"] == answer["timm"] == expected
        assert "nvidia/mit-b9: no such file, and no weights from the hub: check name and" in answer["unknown"]
        assert re.search(rf"\({reason}[^()]*", answer["unknown"])
        assert "set pretrained=FILE, or pretrained=null" in answer["unknown"]
        assert "\n" not in answer["unknown"]
