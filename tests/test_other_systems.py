"""Windows and macOS: what only Unix has is never needed, and loader processes can be started anew."""

from __future__ import annotations

import pickle
import subprocess
import sys

import torch

from wsss_afa.data.synthetic import SyntheticDataModule
from wsss_afa.inference.predictor import find_device

WITHOUT_UNIX = """
import importlib, os, pathlib, pkgutil, signal, sys
import gradio, hydra, lightning, matplotlib.pyplot, pandas, scipy.stats, timm, torchvision  # on Linux
from huggingface_hub import interpreter_login

names = ("fork", "forkpty", "uname", "getuid", "O_DIRECTORY", "sched_getaffinity", "mkfifo", "killpg")
for name in names:
    delattr(os, name)
for name in ("SIGUSR1", "SIGUSR2", "SIGALRM", "SIGHUP", "SIGKILL", "SIGCHLD", "alarm", "setitimer", "pause"):
    delattr(signal, name)
for name in ("resource", "fcntl", "pwd", "grp", "termios", "posix"):
    sys.modules[name] = None
real = os.open
os.open = lambda path, *rest, **more: real("" if os.path.isdir(path) else path, *rest, **more)

import wsss_afa
for module in pkgutil.walk_packages(wsss_afa.__path__, "wsss_afa."):
    importlib.import_module(module.name)
from wsss_afa.data.sampler import _prepare_worker
_prepare_worker(0)
from lightning.pytorch.trainer.connectors import signal_connector
signal_connector._IS_WINDOWS = True  # Lightning asks for the name of the system
signal.valid_signals = lambda: {signal.SIGINT, signal.SIGTERM}
run = wsss_afa.train("synthetic", sys.argv[2:], sys.argv[1])
assert run.checkpoint.is_file()
print("trained", 0 <= run.scores["val/miou_seg"] <= 100)
"""
"""Imports everything and trains, without names that Windows does not have; there no folder can be opened."""
SMALL = [
    "data.image_size=32", "data.num_classes=3", "data.train_images=40", "data.val_images=2",
    "data.batch_size=4", "method.decoder_dim=16", "trainer.max_steps=2", "trainer.accelerator=cpu",
    "callbacks.pictures.num_images=0", "method.phases.segmentation=1", "method.phases.propagation=2",
    "optim.warmup_steps=1", "data.num_workers=0",
]  # fmt: skip


def test_everything_is_imported_and_trains_without_what_only_unix_has(tmp_path):
    command = [sys.executable, "-c", WITHOUT_UNIX, str(tmp_path / "run"), *SMALL]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "trained True"


def test_what_a_loader_process_needs_can_be_sent_to_it():
    """Windows and macOS start such a process anew instead of forking, and send it these."""
    sizes = {"image_size": 32, "crop_size": 32, "train_images": 8, "val_images": 2, "batch_size": 4}
    data = SyntheticDataModule(**sizes)
    data.setup("fit")
    data.setup("validate")
    data.normalize((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    for loader in (data.train_dataloader(), data.val_dataloader()):
        sent = pickle.dumps((loader.dataset, loader.collate_fn, loader.worker_init_fn))
        dataset, collate, _ = pickle.loads(sent)  # noqa: S301
        assert collate([dataset[0]])["image"].shape[1:] == (3, 32, 32)


def test_auto_takes_the_gpu_that_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for there, kind in ((False, "cpu"), (True, "mps")):
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda there=there: there)
        assert find_device("auto").type == kind
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert find_device("auto").type == "cuda"
