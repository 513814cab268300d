"""A linear layer that is fast on every processor.

Letters: C channels in, E channels out.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

# Fewer multiplications take less time than it takes to hand them to oneDNN and back.
_FEW = 2**21


class Linear(nn.Linear):
    """PyTorch's linear layer; large float32 products on a CPU are oneDNN's.

    PyTorch leaves them to MKL, which makes no use of the widest vectors of processors that are not
    Intel's; oneDNN does, and was twice as fast there. Results are equal up to rounding, and
    weights are those of `nn.Linear`.
    """

    def forward(self, input: Float[Tensor, "*batch C"]) -> Float[Tensor, "*batch E"]:  # noqa: A002
        """Return the input times the weights, with the bias added."""
        if _is_onednns(input) and input.numel() * self.out_features >= _FEW:
            return F.linear(input.to_mkldnn(), self.weight, self.bias).to_dense()
        return super().forward(input)


def _is_onednns(tensor: Tensor) -> bool:
    """Return whether nothing else has better products for a tensor: a GPU, autocast, compilers."""
    return (
        tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )
