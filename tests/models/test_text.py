"""Directions of texts: tokens as OpenAI's program makes them, the tower against that of transformers."""

from __future__ import annotations

import hashlib
import json
import sys

import hydra
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

from wsss_afa.data.coco import COCO_CLASSES
from wsss_afa.data.voc import VOC_CLASSES
from wsss_afa.errors import UserError
from wsss_afa.files import CONFIG_DIR
from wsss_afa.models import text
from wsss_afa.models.text import ClassTexts, directions, text_tower

VOCABULARY, LENGTH, WIDTH, DIM = 49408, 77, 16, 12


@pytest.fixture(scope="module")
def state():
    """Random weights of a small tower under OpenAI's names, and a weight of the image tower."""
    from open_clip.transformer import TextTransformer

    torch.manual_seed(0)
    tower = TextTransformer(LENGTH, VOCABULARY, WIDTH, 1, 2, output_dim=DIM)
    return {name: value * 3 for name, value in tower.state_dict().items()} | {"visual.proj": torch.ones(1)}


@pytest.fixture
def weights(state, tmp_path):
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "clip.safetensors")
    return str(tmp_path / "clip.safetensors")


def make(weights, tmp_path, **settings):
    return ClassTexts(pretrained=weights, cache_dir=str(tmp_path / "cache"), **settings)


def of(group):
    with hydra.initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        return hydra.utils.instantiate(hydra.compose(f"text/{group}").text, pretrained=None)


TOKENS = {
    "voc": (VOC_CLASSES, "d8d5503780dc62af", "bbe17e9ca3bb63ef"),
    "coco": (COCO_CLASSES, "ab99d184b9c087fc", "459cfa0ba6848c4e"),
}
"""Digests of the tokens (n, 77), int32, that the program of WeCLIP made of its classes and backgrounds."""


@pytest.mark.parametrize("group", TOKENS)
def test_the_tokens_are_those_of_the_released_program(group):
    from open_clip.tokenizer import tokenize

    classes, *digests = TOKENS[group]
    sentences = of(group).texts(classes)
    for name, digest in zip(("classes", "backgrounds"), digests, strict=True):
        tokens = tokenize([sentence for (sentence,) in sentences[name]]).int()
        assert hashlib.sha256(tokens.numpy().tobytes()).hexdigest()[:16] == digest, name


def test_the_tower_is_that_of_transformers(state):
    """A second implementation with the same weights under its own names."""
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=4 * WIDTH, projection_dim=DIM,
        num_hidden_layers=2, num_attention_heads=1, max_position_embeddings=LENGTH,
    )  # fmt: skip
    other = transformers.CLIPTextModelWithProjection(config).eval()
    names = {
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "ln_final.weight": "text_model.final_layer_norm.weight",
        "ln_final.bias": "text_model.final_layer_norm.bias",
    }
    renamed = {theirs: state[ours] for ours, theirs in names.items()}
    renamed["text_projection.weight"] = state["text_projection"].T.contiguous()
    for layer in range(2):
        ours, theirs = f"transformer.resblocks.{layer}.", f"text_model.encoder.layers.{layer}."
        for kind in ("weight", "bias"):
            parts = state[f"{ours}attn.in_proj_{kind}"].chunk(3)
            for part, value in zip("qkv", parts, strict=True):
                renamed[f"{theirs}self_attn.{part}_proj.{kind}"] = value
            pairs = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2",
                     "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}  # fmt: skip
            renamed |= {f"{theirs}{b}.{kind}": state[f"{ours}{a}.{kind}"] for a, b in pairs.items()}
    other.load_state_dict(renamed)
    tower = text_tower(state)
    tokens = torch.randint(1, VOCABULARY - 2, (3, LENGTH))
    tokens[:, 40] = VOCABULARY - 1
    with torch.no_grad():
        expected = other(input_ids=tokens).text_embeds
    found = tower(tokens)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_mean_of_templates_has_length_one(state, weights, tmp_path):
    tower = text_tower(state)
    found = make(weights, tmp_path, templates=["a {}.", "the {}."], names={"dog": "hound"})(["dog"], DIM)
    each = directions(tower, [["a hound."], ["the hound."]])
    torch.testing.assert_close(found.classes, F.normalize(each.mean(0, keepdim=True), dim=1))


def test_a_background_that_names_a_class_is_left_out(weights, tmp_path, capsys):
    texts = make(weights, tmp_path, backgrounds=["sky", "Helmet", "sea"], names={"hc": "hard hat,helmet"})
    found = texts(["hc"], DIM)
    assert len(found.backgrounds) == 2
    assert "the background text 'Helmet' names a class: it is left out" in capsys.readouterr().out


def test_phrases_stand_behind_their_class(state, weights, tmp_path):
    (tmp_path / "phrases.json").write_text(json.dumps({"Dog": ["Wet nose", "four legs"], "cat": ["Fur"]}))
    texts = make(weights, tmp_path, phrases=str(tmp_path / "phrases.json"), names={"Dog": "hound"})
    expected = [["a clean origami hound. wet nose"], ["a clean origami hound. four legs"]]
    assert texts.texts(["bus", "Dog"])["phrases"] == expected
    torch.testing.assert_close(texts(["bus", "Dog"], DIM).phrases, directions(text_tower(state), expected))
    (tmp_path / "phrases.json").write_text("[1, 2]")
    with pytest.raises(UserError, match=r"phrases=.*cannot be read.*mend it"):
        texts(["bus"], DIM)


def test_texts_are_read_once(weights, tmp_path, monkeypatch):
    texts = make(weights, tmp_path, backgrounds=["sky"])
    first = texts(["dog", "cat"], DIM)
    (path,) = (tmp_path / "cache").iterdir()
    with safe_open(path, "pt") as file:
        about = file.metadata()
    assert about["weights"] == weights
    assert "a clean origami dog." in about["texts"]
    assert about["sha256"] == text.weights_sha256(weights)

    def refuse(*_):
        raise AssertionError("the tower was built again")

    monkeypatch.setattr(text, "text_tower", refuse)
    again = texts(["dog", "cat"], DIM)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    with pytest.raises(AssertionError):
        texts(["cat", "dog"], DIM)
    save_file({"token_embedding.weight": torch.zeros(1)}, weights)
    with pytest.raises(AssertionError):  # other weights in a file of the same name
        texts(["dog", "cat"], DIM)


def test_random_directions_are_the_same_each_time():
    texts = ClassTexts(backgrounds=["sky", "dog"])
    found = texts(["dog", "cat"], 8)
    assert [len(part) for part in found] == [2, 1, 0]
    torch.testing.assert_close(found.classes.norm(dim=1), torch.ones(2))
    assert torch.equal(found.classes, texts(["dog", "cat"], 8).classes)


def test_a_missing_package_is_named_with_its_remedy(weights, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip.transformer", None)
    with pytest.raises(UserError, match=r"pip install 'wsss-afa\[clip\]'"):
        make(weights, tmp_path)(["dog"], DIM)


def test_mistakes_are_named(weights, tmp_path):
    with pytest.raises(UserError, match=r"need sentences with \{\}"):
        ClassTexts(templates=["a photo"])
    with pytest.raises(UserError, match=r"method.texts.pretrained: gone.safetensors: no such file"):
        make("gone.safetensors", tmp_path)(["dog"], DIM)
    with pytest.raises(UserError, match="has 12 dimensions, the backbone's projection has 512"):
        make(weights, tmp_path)(["dog"], 512)
    save_file({"visual.proj": torch.ones(1)}, tmp_path / "image.safetensors")
    with pytest.raises(UserError, match=r"have no token_embedding\.weight"):
        make(str(tmp_path / "image.safetensors"), tmp_path)(["dog"], DIM)
