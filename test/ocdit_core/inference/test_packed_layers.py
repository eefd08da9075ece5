"""Layers in oneDNN's layout compute what torch's do."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ocdit_core.inference import network
from ocdit_core.inference.network import FusedConv, PackedLinear, can_pack, with_packed_layers
from ocdit_core.inference.settings import find_weights
from ocdit_core.models.backbones import SameConv2d
from ocdit_core.models.ocdit import OCDiT

pytestmark = pytest.mark.skipif(not can_pack(), reason="this processor or this torch has no packed layers of oneDNN")

CPU = torch.device("cpu")


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return nn.Linear(48, 144)


@pytest.mark.parametrize("shape", [(48,), (1, 48), (7, 48), (2, 3, 5, 48), (0, 48), (4096, 48)])
@pytest.mark.parametrize("activation", ["none", "gelu"])
@torch.inference_mode()
def test_it_computes_what_the_layer_computes(layer, shape, activation):
    x = torch.randn(shape)
    expected = layer(x) if activation == "none" else F.gelu(layer(x), approximate="tanh")
    found = PackedLinear(layer, activation)(x)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_some_of_its_rows_and_inputs_that_lie_apart(layer):
    packed, x = PackedLinear(layer), torch.randn(5, 48, 9).transpose(1, 2)
    assert not x.is_contiguous()
    for begin, end in ((0, 48), (48, 144), (0, 144)):
        torch.testing.assert_close(packed.rows(x, begin, end), layer(x)[..., begin:end], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_weights_that_were_loaded_in_inference_mode():
    layer, x = nn.Linear(48, 144), torch.randn(3, 48)
    assert layer.weight.is_inference()
    torch.testing.assert_close(PackedLinear(layer)(x), layer(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("relu6", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "groups"), [(1, 1, 1), (3, 1, 8), (5, 2, 8), (3, 2, 1)])
@pytest.mark.parametrize("size", [(24, 32), (25, 31)])
@torch.inference_mode()
def test_a_fused_convolution_computes_what_the_layers_compute(kernel, stride, groups, relu6, size):
    torch.manual_seed(0)
    conv = SameConv2d(8, 8, kernel, stride, groups, relu6=relu6)
    x = 9 * torch.randn(2, 8, *size).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(FusedConv(conv)(x), conv(x), atol=1e-5, rtol=1e-5)


@pytest.fixture
def model():
    return OCDiT.from_pretrained(find_weights("ocdit-small"))


def count(model):
    return sum(isinstance(module, PackedLinear | FusedConv) for module in model.modules())


def test_a_model_with_packed_layers_shares_its_weights_and_leaves_the_other_alone(model):
    packed = with_packed_layers(model)
    assert (count(model), count(packed)) == (0, 24 + 48)
    ours, theirs = packed.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    own = {name for name in ours if ours[name].data_ptr() != theirs[name].data_ptr()}
    strided = {
        name for name, module in packed.named_modules() if isinstance(module, FusedConv) and module.stride[0] == 2
    }
    assert own == {f"{name}.weight" for name in strided}
    assert len(own) == 5


def test_packed_where_it_is_float32_on_the_cpu(model, monkeypatch):
    def packed(half):
        return count(network.prepare(model, CPU, half=half, compiled=False))

    assert packed(half=False) == 24 + 48
    assert packed(half=True) == 48
    monkeypatch.setattr(network, "can_pack", lambda: False)
    assert packed(half=False) == 0


def test_a_torch_without_the_operators_does_without(monkeypatch):
    can_pack.cache_clear()

    def gone(*_):
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    monkeypatch.setattr(network.PackedLinear, "rows", gone)
    try:
        assert not can_pack()
    finally:
        can_pack.cache_clear()
