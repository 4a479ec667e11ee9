"""Class names as directions in CLIP's space of texts, T × 512 numbers that are made once.

The text tower is open_clip's (extra ``clip``), whose package has the vocabulary in it and names weights as
OpenAI's files do. Only who makes the numbers needs it: they are kept in a file, and with a method's weights
in its checkpoints.

Shapes beside the legend in `wsss_afa.types`: d width of the space, M background texts, P phrases.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from wsss_afa.errors import UserError, say
from wsss_afa.files import write_whole
from wsss_afa.models.weights import check_fit, read_weights, weights_sha256

_HEAD_DIM = 64  # of CLIP's text towers of every size
_AT_ONCE = 64  # sentences that pass the tower together


class TextFeatures(NamedTuple):
    """Directions of length 1."""

    classes: Tensor
    """(C, d), in the order of the class names."""
    backgrounds: Tensor
    """(M, d)."""
    phrases: Tensor
    """(P, d), of all classes together."""


class ClassTexts(nn.Module):
    """What classes and backgrounds are called, and the directions of these texts.

    Args:
        templates: sentences with ``{}`` in the place of a name; with several the mean of their directions
            counts.
        names: of classes that are to be called otherwise, by class name; several words may be in one text.
        backgrounds: names of what is no class. One that names a class is left out, and a line says so.
        phrases: JSON file of phrases that describe classes, ``{class: [phrase, …]}``; None has none. A phrase
            is read behind the class's sentence.
        pretrained: weights of the text tower, under the names of OpenAI: a file, URL or hub id; None for
            directions at random, the same each time.
        cache_dir: where directions are kept; None is ``~/.cache/wsss_afa``.

    Raises:
        UserError: a template has no place for a name.
    """

    def __init__(
        self, templates: Sequence[str] = ("a clean origami {}.",), names: Mapping[str, str] | None = None,
        backgrounds: Sequence[str] = (), phrases: str | None = None, pretrained: str | None = None,
        cache_dir: str | None = None,
    ):  # fmt: skip
        super().__init__()
        if not templates or any("{}" not in template for template in templates):
            raise UserError(f"texts.templates={list(templates)}: need sentences with {{}} for the name")
        self.templates, self.names, self.backgrounds = tuple(templates), dict(names or {}), tuple(backgrounds)
        self.phrases, self.pretrained = phrases, pretrained
        self.folder = Path(cache_dir or "~/.cache/wsss_afa").expanduser()

    def forward(self, class_names: Sequence[str], dim: int) -> TextFeatures:
        """Directions of the texts of these classes, in a space of ``dim`` dimensions.

        Raises:
            UserError: the weights, the package open_clip or the phrases are missing, or the space has another
                width.
        """
        texts = self.texts(class_names)
        if self.pretrained is None:
            counts = [len(texts["classes"]), len(texts["backgrounds"]), 0]
            drawn = torch.randn(sum(counts), dim, generator=torch.Generator().manual_seed(0))
            return TextFeatures(*torch.split(F.normalize(drawn, dim=1), counts))
        found = self._kept(texts) or self._made(texts)
        if found.classes.shape[1] != dim:
            raise UserError(
                f"method.texts.pretrained={self.pretrained} has {found.classes.shape[1]} dimensions, the "
                f"backbone's projection has {dim}: give the text tower that belongs to the backbone"
            )
        return found

    def texts(self, class_names: Sequence[str]) -> dict[str, list[list[str]]]:
        """The sentences of each class and each background, and the sentence of each phrase."""
        called = [self.names.get(name, name) for name in class_names]
        taken = {word.strip().lower() for name in (*class_names, *called) for word in name.split(",")}
        for name in self.backgrounds if self.pretrained else ():
            if name.lower() in taken:
                say("warning", f"the background text {name!r} names a class: it is left out")
        scenes = [name for name in self.backgrounds if name.lower() not in taken]
        described = self._phrases() if self.phrases and self.pretrained else {}
        pairs = zip(class_names, called, strict=True)
        return {
            "classes": [self._sentences(name) for name in called],
            "backgrounds": [self._sentences(name) for name in scenes],
            "phrases": [
                [f"{self._sentences(called)[0]} {phrase}".lower()]
                for name, called in pairs
                for phrase in described.get(name, ())
            ],
        }

    def _sentences(self, name: str) -> list[str]:
        return [template.replace("{}", name) for template in self.templates]

    def _phrases(self) -> dict[str, list[str]]:
        assert self.phrases is not None
        try:
            content = json.loads(Path(self.phrases).expanduser().read_text("utf-8"))
            return {str(name): [str(each) for each in phrases] for name, phrases in content.items()}
        except (OSError, ValueError, AttributeError, TypeError) as error:
            need = 'need a JSON file such as {"dog": ["a wet nose", "four legs"]}: mend it, or set null'
            raise UserError(
                f"method.texts.phrases={self.phrases} cannot be read ({error}); {need}"
            ) from error

    def _file(self, texts: Mapping[str, Any]) -> Path:
        of = json.dumps([self.pretrained, texts], sort_keys=True)
        return self.folder / f"texts-{sha256(of.encode()).hexdigest()[:16]}.safetensors"

    def _kept(self, texts: Mapping[str, Any]) -> TextFeatures | None:
        """Directions made before from the same texts and weights, if there are any."""
        path, source = self._file(texts), str(self.pretrained)
        try:
            with safe_open(path, "pt") as file:
                kept, made_with = file.keys(), (file.metadata() or {}).get("sha256")
                if Path(source).is_file() and weights_sha256(source) != made_with:
                    return None
                return TextFeatures(*(file.get_tensor(name) for name in TextFeatures._fields if name in kept))
        except (OSError, SafetensorError, TypeError):
            return None

    def _made(self, texts: Mapping[str, list[list[str]]]) -> TextFeatures:
        """Directions from the tower, which are kept."""
        source = str(self.pretrained)
        try:
            tower = text_tower(read_weights(source))
        except UserError as error:
            raise UserError(f"method.texts.pretrained: {error}") from None
        say("texts", f"reading {sum(map(len, texts.values()))} texts once, with {source}")
        found = TextFeatures(*(directions(tower, texts[name]) for name in TextFeatures._fields))
        about = {"weights": source, "sha256": weights_sha256(source), "texts": json.dumps(texts)}
        about["templates"] = json.dumps(self.templates)
        path = self._file(texts)
        try:
            write_whole(path, save(found._asdict(), about))
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error}): set method.texts.cache_dir") from error
        return found


def text_tower(state: Mapping[str, Tensor], heads: int | None = None) -> Any:
    """open_clip's text tower with OpenAI's weights; whatever else the state has is left out.

    Raises:
        UserError: open_clip is not installed, or the weights are no text tower's.
    """
    try:
        from open_clip.transformer import QuickGELU, TextTransformer
    except ImportError as error:
        need = "texts are read once, by a package that is not installed"
        raise UserError(f"{need} ({error}): pip install 'wsss-afa[clip]'") from error
    needed = ("token_embedding.weight", "positional_embedding", "text_projection", "ln_final.weight")
    if missing := [name for name in needed if name not in state]:
        need = "need CLIP's text tower under OpenAI's names, as open_clip_model.safetensors has it"
        raise UserError(f"the weights have no {missing[0]}; {need}: give such a file")
    (vocabulary, width), length = state[needed[0]].shape, len(state[needed[1]])
    layers = len([name for name in state if name.startswith("transformer.") and name.endswith("ln_1.weight")])
    tower = TextTransformer(
        length, vocabulary, width, heads or max(1, width // _HEAD_DIM), layers,
        output_dim=state[needed[2]].shape[1], act_layer=QuickGELU,
    )  # fmt: skip
    own = tower.state_dict().keys() & state.keys()
    tower.load_state_dict(check_fit({name: state[name].float() for name in own}, tower))
    return tower.eval().requires_grad_(False)


@torch.no_grad()
def directions(tower: Any, texts: Sequence[Sequence[str]]) -> Tensor:
    """Directions (n, d) of n texts, each of which may have several sentences, whose mean counts."""
    from open_clip.tokenizer import tokenize

    sentences = [sentence for each in texts for sentence in each]
    if not sentences:
        return torch.zeros(0, tower.text_projection.shape[1])
    tokens: Tensor = tokenize(sentences, tower.context_length)
    encoded = F.normalize(torch.cat([tower(part) for part in torch.split(tokens, _AT_ONCE)]), dim=-1)
    means = [own.mean(0) for own in torch.split(encoded, [len(each) for each in texts])]
    return F.normalize(torch.stack(means), dim=-1)
