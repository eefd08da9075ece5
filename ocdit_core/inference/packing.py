"""Linear layers with weights in oneDNN's own layout: on x86 CPUs a fifth to a third faster than torch's.

torch multiplies float32 matrices by MKL, which does not do AMD's processors justice, and oneDNN with weights laid out
anew beats it elsewhere too. `torch.compile` makes the same choice; this needs no compiler and no waiting.
"""

from __future__ import annotations

import copy
import platform
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from ocdit_core.models.blocks import MLP, Attention, SplitLinear
from ocdit_core.models.ocdit import OCDiT


class PackedLinear(SplitLinear):
    """A linear layer that shares another one's weights, and computes with a copy of them in oneDNN's layout.

    The copy is made at the first use, of those rows that are used, and again after the weights have changed.

    Args:
        linear: on the CPU, float32, with a bias.
        activation: of the outputs; "gelu" is the tanh approximation.
    """

    def __init__(self, linear: nn.Linear, activation: Literal["none", "gelu"] = "none"):
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self._activation = activation
        self._packed: dict[tuple[int, int], tuple[int, Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.rows(x, 0, self.out_features)

    def rows(self, x: Tensor, begin: int, end: int) -> Tensor:
        """See `SplitLinear.rows`."""
        # Weights that were loaded in inference mode do not count their changes.
        newest = 0 if self.weight.is_inference() else self.weight._version
        version, packed = self._packed.get((begin, end), (-1, None))
        if packed is None or version != newest:
            packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach()[begin:end].contiguous())
            self._packed[begin, end] = newest, packed
        approximation = "tanh" if self._activation == "gelu" else ""
        found: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, packed, self.bias[begin:end], self._activation, [], approximation
        )
        return found


@cache
def can_pack() -> bool:
    """Return whether this machine and this torch can: the operators are not part of torch's public interface."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return False
    try:
        layer, x = nn.Linear(8, 16), torch.linspace(-1, 1, 24).view(3, 8)
        with torch.no_grad():
            return torch.allclose(PackedLinear(layer, "gelu")(x), nn.GELU("tanh")(layer(x)), atol=1e-5)
    except (AttributeError, RuntimeError, TypeError):
        return False


def with_packed_layers(model: OCDiT) -> OCDiT:
    """Return the model with packed layers in the backbone and the denoiser's blocks; all weights are shared with it."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    model = copy.deepcopy(model, shared)
    for module in list(model.denoiser.modules()):
        if isinstance(module, Attention):
            module.in_proj, module.out_proj = PackedLinear(module.in_proj), PackedLinear(module.out_proj)
        elif isinstance(module, MLP):
            module.fc1, module.activation = PackedLinear(module.fc1, "gelu"), nn.Identity()
            module.fc2 = PackedLinear(module.fc2)
    for parent in list(model.backbone.modules()):
        for name, module in parent.named_children():
            if type(module) is nn.Linear and module.bias is not None:
                setattr(parent, name, PackedLinear(module))
    return model
