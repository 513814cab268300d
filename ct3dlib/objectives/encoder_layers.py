"""How fast the layers of a pretrained encoder learn, beside a fresh head."""

from collections.abc import Sequence

from torch import nn

from ct3dlib.models.volume_encoder import VolumeEncoder

Layers = list[tuple[float, list[nn.Parameter]]]


def decayed_layers(
    encoder: VolumeEncoder, trained: Sequence[nn.Parameter], *, decay: float
) -> Layers:
    """Return parameters in groups with their relative rates, each layer's smaller than the next's.

    Of L blocks, block i (from 0) has decay^(L - i), the embedding decay^(L + 1), the norm and all
    that is no part of the encoder 1 (Bao et al., arXiv:2106.08254, appendix; Clark et al.,
    arXiv:2003.10555).

    Args:
        encoder: A part of what is trained.
        trained: All parameters that are trained.
        decay: Of one layer, at most 1.
    """
    wanted = {id(parameter) for parameter in trained}
    layers = encoder.layers()
    groups = [
        (decay ** (len(layers) - 1 - number), [p for p in layer if id(p) in wanted])
        for number, layer in enumerate(layers)
    ]
    inside = {id(p) for layer in layers for p in layer}
    groups.append((1.0, [p for p in trained if id(p) not in inside]))
    return [(rate, parameters) for rate, parameters in groups if parameters]
