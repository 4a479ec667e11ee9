"""The page in the browser: ``wsss-afa app ckpt=FILE data.root=photos``; Ctrl-C ends it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from wsss_afa.cli.run_folder import hold
from wsss_afa.data.folder.content import FolderDataModule
from wsss_afa.errors import UserError, say
from wsss_afa.inference.open_method import open_method
from wsss_afa.inference.predictor import find_device
from wsss_afa.models.weights import weights_sha256
from wsss_afa.web.labeller import Labeller
from wsss_afa.web.page import build_page
from wsss_afa.web.review import Review
from wsss_afa.web.server import Server
from wsss_afa.web.session import Session


def open_session(cfg: DictConfig, given: Sequence[str]) -> Session:
    """The method, the photos and the review that the configuration names; ``given`` are its overrides."""
    data = instantiate(cfg.data)
    if not isinstance(data, FolderDataModule):
        raise UserError("the app reviews a folder of photos: set data=folder data.root=DIR")
    data.prepare_data()
    method = open_method(cfg.ckpt, cfg.trust, None, data, given).to(find_device(cfg.device)).eval()
    protocols = [
        instantiate(cfg.protocol, crf=crf, mean=method.mean, std=method.std).to(method.device)
        for crf in (None, cfg.dense_crf)
    ]
    labeller = Labeller(method, data, *protocols)
    hold(Path(cfg.out).expanduser(), setting="out")
    review = Review(cfg.out, [photo.name for photo in labeller.photos])
    return Session(labeller, review, weights_sha256(cfg.ckpt), tuple(given))


def run(cfg: DictConfig) -> float:
    """Serve the page until Ctrl-C, and return the number of photos that were decided."""
    session = open_session(cfg, HydraConfig.get().overrides.task)
    server = Server(partial(build_page, session), cfg.host, cfg.port)
    say("open", f"{server.url} (Ctrl-C ends it)")
    server.run()
    say("review", session.review.root)
    return float(len(session.review.decisions))
