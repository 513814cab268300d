import torch

from ct3dlib.config import VolumeClassifierNetworkSpec
from ct3dlib.models import build_model
from ct3dlib.models.classifier import VolumeClassifier

SPEC = VolumeClassifierNetworkSpec(filters=8, num_levels=2, num_labels=3)


def test_every_volume_is_judged_alone_and_sizes_may_be_odd():
    torch.manual_seed(0)
    model = build_model(SPEC).eval()
    assert isinstance(model, VolumeClassifier)
    volumes = torch.randn(2, 1, 7, 9, 12)
    both = model(volumes)
    assert both.shape == (2, 3)
    torch.testing.assert_close(model(volumes[1:]), both[1:], rtol=1e-5, atol=1e-6)


def test_a_change_anywhere_can_be_seen():
    model = VolumeClassifier(SPEC)
    volumes = torch.zeros(1, 1, 8, 8, 8, requires_grad=True)
    model(volumes + torch.randn(1, 1, 8, 8, 8)).sum().backward()
    assert volumes.grad is not None
    assert (volumes.grad != 0).all()
