import pytest
import torch
from torch import nn

from ct3dlib.nn.linear import Linear


def both(channels: int, out: int, *, bias: bool = True) -> tuple[Linear, nn.Linear]:
    torch.manual_seed(0)
    ours, theirs = Linear(channels, out, bias=bias), nn.Linear(channels, out, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize(
    "shape", [(0, 256), (3, 256), (2, 65, 256), (128, 256)], ids=["none", "few", "many", "flat"]
)
def test_values_and_gradients_are_those_of_pytorch(shape, bias):
    ours, theirs = both(256, 320, bias=bias)
    given, grad = torch.randn(shape), torch.randn(*shape[:-1], 320)
    found = []
    for layer in (ours, theirs):
        x = given.clone().requires_grad_()
        y = layer(x)
        y.backward(grad)
        found.append([y.detach(), x.grad, *(p.grad for p in layer.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


def test_many_products_are_onednns(monkeypatch):
    # 2^21 multiplications are worth a hand-over; one token less is not.
    handed = []
    to_mkldnn = torch.Tensor.to_mkldnn
    monkeypatch.setattr(
        torch.Tensor, "to_mkldnn", lambda x: (handed.append(len(x)), to_mkldnn(x))[1]
    )
    layer = Linear(256, 256)
    for tokens in (31, 32):
        layer(torch.randn(tokens, 256))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(64, 256)).dtype == torch.bfloat16
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        layer(torch.randn(64, 256))
    assert layer.double()(torch.randn(64, 256).double()).dtype == torch.float64
    assert handed == [32]


def test_strided_inputs_agree():
    ours, theirs = both(256, 256)
    x = torch.randn(256, 2, 40).permute(1, 2, 0)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
