"""Look through a data set before training: ``wsss-afa inspect_data data=folder data.root=…``.

Says what was found and how it was read, lists what is wrong with it, and leaves ``report.json`` and
``contact_sheet.png`` in the run's folder. Ends with exit code 1 if there are errors; warnings do not count.
"""

from __future__ import annotations

import os
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track

from wsss_afa.data.datamodule import TaggedDataModule
from wsss_afa.data.inspection import Finding, Split, find_problems, look_at_all
from wsss_afa.data.sampler import SampleSet
from wsss_afa.errors import UserError, plain_console, say
from wsss_afa.reports.inspection import draw_sheet, print_counts, print_findings, write_report
from wsss_afa.reports.visualize import contact_sheet, save_figure


def open_sets(cfg: DictConfig) -> tuple[dict[str, SampleSet], list[Finding]]:
    """The splits that can be read, and what keeps the others from it."""
    sets, findings = dict[str, SampleSet](), list[Finding]()
    as_stored = {"max_side": None} if "max_side" in cfg.data else {}
    try:
        data: TaggedDataModule = instantiate(cfg.data, **as_stored)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            return {}, _layout(error.__cause__)
        raise
    for name in ("train", "val"):
        try:
            sets[name] = data.make_set(name)
        except UserError as error:
            findings += _layout(error)
    return sets, findings


def _layout(error: UserError) -> list[Finding]:
    return [Finding("error", "layout", line) for line in (str(error), *getattr(error, "__notes__", ()))]


def open_images(name: str, images: SampleSet, workers: int, console: Console) -> Split:
    """Open every image of one split under a progress bar."""
    hidden = not console.is_terminal
    looks = track(look_at_all(images, workers), f"{name:<9}", len(images), console=console, disable=hidden)
    return Split(name, images.class_names, images.labels, list(looks))


def run(cfg: DictConfig) -> float:
    """Look through the data and return the number of warnings; a UserError counts the errors."""
    for key in ("workers", "pictures", "listed"):
        if cfg[key] is not None and cfg[key] < 0:
            raise UserError(f"{key}={cfg[key]}, need 0 or more: change it")
    folder = Path(HydraConfig.get().runtime.output_dir)
    console = plain_console()
    sets, findings = open_sets(cfg)
    read_as = {name: getattr(own, "summary", f"{len(own)} images") for name, own in sets.items()}
    for line in dict.fromkeys(read_as.values()):
        say("data", line)
    workers = (os.cpu_count() or 1) if cfg.workers is None else cfg.workers
    splits = [open_images(name, images, workers, console) for name, images in sets.items()]
    doubts = dict.fromkeys(doubt for own in sets.values() for doubt in getattr(own, "doubts", ()))
    findings += [*find_problems(splits), *(Finding("warning", "reading", doubt) for doubt in doubts)]
    data = OmegaConf.to_container(cfg.data, resolve=True)
    write_report(folder / "report.json", splits, findings, data=data, read_as=read_as)
    print_counts(splits, console)
    print_findings(findings, cfg.listed, console)
    pictures = draw_sheet(sets, splits, cfg.pictures)
    if pictures:
        save_figure(contact_sheet(pictures), folder / "contact_sheet.png")
        say("pictures", folder / "contact_sheet.png")
    say("report", folder / "report.json")
    errors = sum(finding.level == "error" for finding in findings)
    if errors:
        raise UserError(f"the data has errors ({errors}): mend what is listed above and in report.json")
    return float(len(findings))
