"""Volumes of a transformer that reads texts and sees slabs, drawn without a command."""

import nibabel
import numpy as np
import pytest
import torch

from ct3dlib.config import MaskGITNetworkSpec, RecipeSpec, SamplesSpec, SlabSpec
from ct3dlib.errors import CheckpointError
from ct3dlib.inference.generate import generate_samples
from ct3dlib.inference.loaded import Tokenizer, Transformer
from ct3dlib.models.maskgit import MaskGIT
from tests.inference.doubles import fsq_model

SPEC = SamplesSpec(num_samples=2, steps=2, guidance=1.0)


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer(fsq_model().eval(), RecipeSpec(window=(-1000, 1000)), None, "t")


def _transformer(tokenizer: Tokenizer, **changes: object) -> Transformer:
    torch.manual_seed(0)
    network = MaskGITNetworkSpec(
        hidden_size=12,
        num_layers=1,
        num_heads=2,
        radices=tokenizer.model.spec.quantizer.levels,
        num_labels=0,
        **changes,
    )
    model = MaskGIT(network).eval()
    for block in model.blocks:
        torch.nn.init.normal_(block.modulation.weight, std=0.5)
    return Transformer(
        model=model,
        grid=(5, 3, 2),
        volume_shape=(10, 6, 4),
        affine=np.eye(4),
        labels=(),
        tokenizer_sha256="t",
    )


def test_a_text_changes_all_samples_of_a_volume_of_many_slabs(tokenizer, tmp_path):
    model = _transformer(tokenizer, text_size=4, slab=SlabSpec(size=3, context=1))
    texts = (None, torch.tensor([1.0, 2.0, -3.0, 0.0]), torch.tensor([3.0, -1.0, 0.0, 2.0]))
    tables = [
        generate_samples(model, tokenizer, SPEC, folder=tmp_path / str(i), text=text)
        for i, text in enumerate(texts)
    ]
    for number in range(2):
        assert len({table["indices_sha256"][number] for table in tables}) == 3
    image = nibabel.load(tmp_path / "1/sample_0000.nii.gz")
    assert image.shape == model.volume_shape[::-1]


def test_a_text_that_cannot_be_read_is_refused(tokenizer, tmp_path):
    text = torch.zeros(7)
    with pytest.raises(CheckpointError, match=r"trained without texts \(transformer.text\): leave"):
        generate_samples(_transformer(tokenizer), tokenizer, SPEC, folder=tmp_path, text=text)
    model = _transformer(tokenizer, text_size=4)
    with pytest.raises(CheckpointError, match=r"vector of 7 numbers, .* trained with 4; embed it"):
        generate_samples(model, tokenizer, SPEC, folder=tmp_path, text=text)
