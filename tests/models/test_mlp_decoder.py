"""The decoder against the form that concatenates at full resolution, and against SegFormer's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from transformers import SegformerConfig
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

import reference
from wsss_afa.models.decoders import MLPDecoder

CHANNELS = (3, 4, 5, 6)
SIZES = ((8, 12), (4, 6), (2, 3), (2, 3))


def features(batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, c, *size, dtype=torch.float64, generator=generator)
        for c, size in zip(CHANNELS, SIZES, strict=True)
    ]


@pytest.fixture
def decoder() -> MLPDecoder:
    torch.manual_seed(0)
    decoder = MLPDecoder(CHANNELS, num_outputs=3, dim=7, dropout=0.0).double()
    for name, value in decoder.state_dict().items():
        if name.startswith("norm.") and value.is_floating_point():
            value.uniform_(0.5, 1.5)
    return decoder


@pytest.mark.parametrize("training", [True, False])
def test_values(decoder, training):
    expected = reference.mlp_decoder(features(), decoder.state_dict(), training)
    logits = decoder.train(training)(features())
    assert logits.shape == (2, 3, 8, 12)
    torch.testing.assert_close(logits, expected)


def test_odd_sizes(decoder):
    maps = [
        torch.randn(1, c, *s, dtype=torch.float64)
        for c, s in zip(CHANNELS, [(7, 9), (4, 5), (2, 3), (2, 3)], strict=True)
    ]
    torch.testing.assert_close(decoder.eval()(maps), reference.mlp_decoder(maps, decoder.state_dict()))


def test_equals_segformer(decoder):
    config = SegformerConfig(
        hidden_sizes=list(CHANNELS), decoder_hidden_size=7, num_labels=3, classifier_dropout_prob=0.0
    )
    published = SegformerDecodeHead(config).double().eval()
    ours = decoder.state_dict()
    renamed = dict(
        zip(published.state_dict(), ours.values(), strict=True)
    )  # their names vary with the version
    published.load_state_dict(renamed)
    torch.testing.assert_close(decoder.eval()(features()), published(features()))


def test_gradient(decoder):
    inputs = [feature[:, :, :4, :4].requires_grad_() for feature in features(1)]
    assert gradcheck(lambda *maps: decoder.eval()(maps), inputs)
    assert gradcheck(lambda *maps: decoder.train()(maps), inputs)


def test_parameters_have_the_gradients_of_the_plain_form(decoder):
    weights = dict(decoder.named_parameters())
    state = decoder.state_dict() | weights
    ours = torch.autograd.grad(decoder.train()(features()).square().sum(), list(weights.values()))
    plain = reference.mlp_decoder(features(), state, training=True).square().sum()
    theirs = torch.autograd.grad(plain, list(weights.values()))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_dropout_takes_whole_channels_in_training_alone():
    decoder = MLPDecoder(CHANNELS, num_outputs=3, dim=7).double()
    assert decoder.dropout.p == 0.1
    decoder.dropout.p = 1 - 1e-12
    flat = decoder.predict.bias[None, :, None, None].expand(2, 3, 8, 12)
    torch.testing.assert_close(decoder.train()(features()), flat)
    assert not torch.allclose(decoder.eval()(features()), flat)


def test_another_number_of_stages_is_refused(decoder):
    with pytest.raises((RuntimeError, ValueError)):
        decoder(features()[:3])


def test_two_stages():
    decoder = MLPDecoder((3, 4), num_outputs=2, dim=5).double().eval()
    expected = reference.mlp_decoder(features()[:2], decoder.state_dict())
    torch.testing.assert_close(decoder(features()[:2]), expected)
