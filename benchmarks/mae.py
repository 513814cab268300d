"""Masked autoencoder: a training step beside MONAI's class and beside one that drops no tokens.

All sides have the same volumes, patches of 16 voxels, width, layers and heads, three quarters of
the patches masked, the mean squared error of masked patches, and the same optimizer. MONAI's class
is `MaskedAutoEncoderViT` with a ViT-B, the largest named size that its positions can be built for
(they want a multiple of 6); before the clock runs, both compute the same from the same weights. The
plain one is made of our own blocks: all tokens go through the encoder, the masked ones as one
learnt token, and every patch is predicted. Then the training loader, over a store of whole phantoms
with a scanner's noise in the page cache, beside our model: a ratio above 1 is a model that never
waits. The fastest of some rounds, taken in turns; CPU time on one thread, the clock on several.

    python benchmarks/mae.py --json metrics/benchmarks.json
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ingest import publish, write_phantom
from monai.networks.nets.masked_autoencoder_vit import MaskedAutoEncoderViT
from store import record
from torch import Tensor, nn

from ct3dlib.cohort.store import StoredArray, StoredVolume, create_store, write_node
from ct3dlib.config import MaskedAutoencoderNetworkSpec, RecipeSpec, TrainSpec
from ct3dlib.losses.patches import masked_patch_loss
from ct3dlib.models.mae import MaskedAutoencoder, Masks
from ct3dlib.nn.patches import patchify
from ct3dlib.scan.nifti import read_nifti
from ct3dlib.training.loader import batches
from ct3dlib.training.scan_items import ScanItems

WINDOW, RANGE = (-1000.0, 1000.0), (0.0, 1.0)
BASE = {"encoder": "base", "decoder": {"hidden_size": 384, "num_layers": 8, "num_heads": 12}}
TINY = {
    "encoder": {"hidden_size": 48, "num_layers": 2, "num_heads": 4},
    "decoder": {"hidden_size": 24, "num_layers": 1, "num_heads": 4},
}
VOLUMES = 8  # in the store
WORKERS = (0, 1, 2)
TOLERANCE = 1e-5  # of the norm


class Ours(nn.Module):
    """The loss of our masked autoencoder."""

    def __init__(self, spec: MaskedAutoencoderNetworkSpec) -> None:
        super().__init__()
        self.model = MaskedAutoencoder(spec)

    def forward(self, volumes: Tensor) -> Tensor:
        """Return the loss of volumes B 1 D H W, with masks drawn anew."""
        masks = draw(self.model, volumes)
        predicted = self.model(volumes, masks)
        patches = self.model.masked_patches(volumes, masks)
        return masked_patch_loss(predicted, patches, norm_pix=False).mean()


class Plain(nn.Module):
    """The loss of one with the same parts and one learnt token more, that drops no tokens."""

    def __init__(self, spec: MaskedAutoencoderNetworkSpec) -> None:
        super().__init__()
        self.model = MaskedAutoencoder(spec)
        self.unseen = nn.Parameter(torch.zeros(1, 1, spec.encoder.hidden_size))

    def forward(self, volumes: Tensor) -> Tensor:
        """Return the loss of volumes B 1 D H W, with masks drawn anew."""
        encoder, decoder = self.model.encoder, self.model.decoder
        patches, masks = encoder.patches(volumes), draw(self.model, volumes)
        masked = torch.zeros_like(patches[..., :1]).scatter(1, masks.masked[..., None], 1.0)
        seen = torch.where(masked > 0, self.unseen, encoder.patch_embed(patches))
        cls_token = encoder.cls_token.expand(len(seen), -1, -1)
        tokens = torch.cat((cls_token, seen), dim=1) + encoder.position
        for block in encoder.blocks:
            tokens = block(tokens)
        tokens = decoder.embed(encoder.norm(tokens)) + decoder.position
        for block in decoder.blocks:
            tokens = block(tokens)
        return masked_error(decoder.predict(decoder.norm(tokens[:, 1:])), patches, masked)


class Monai(nn.Module):
    """The loss of MONAI's masked autoencoder, which has none of its own."""

    def __init__(self, spec: MaskedAutoencoderNetworkSpec) -> None:
        super().__init__()
        self.patch = spec.patch_size
        encoder, decoder = spec.encoder, spec.decoder
        self.model = MaskedAutoEncoderViT(
            in_channels=1,
            img_size=spec.shape,
            patch_size=spec.patch_size,
            hidden_size=encoder.hidden_size,
            mlp_dim=round(encoder.mlp_ratio * encoder.hidden_size),
            num_layers=encoder.num_layers,
            num_heads=encoder.num_heads,
            masking_ratio=spec.mask_ratio,
            decoder_hidden_size=decoder.hidden_size,
            decoder_mlp_dim=round(decoder.mlp_ratio * decoder.hidden_size),
            decoder_num_layers=decoder.num_layers,
            decoder_num_heads=decoder.num_heads,
            qkv_bias=True,
        )

    def forward(self, volumes: Tensor) -> Tensor:
        """Return the loss of volumes B 1 D H W, with masks drawn anew."""
        predicted, masked = self.model(volumes)
        return masked_error(predicted, patchify(volumes, self.patch), masked[..., None].float())


def draw(model: MaskedAutoencoder, volumes: Tensor) -> Masks:
    """Draw the masks of volumes on their device."""
    patches = model.spec.network.num_patches
    return model.draw_masks(torch.rand(len(volumes), patches, device=volumes.device))


def masked_error(predicted: Tensor, patches: Tensor, masked: Tensor) -> Tensor:
    """Return the mean squared error of patches B N P where `masked`, B N 1, is 1."""
    errors = (predicted.float() - patches.float()).square().mean(dim=-1, keepdim=True)
    return (errors * masked).sum() / masked.sum()


def network(parts: Mapping[str, Any], size: int) -> MaskedAutoencoderNetworkSpec:
    """Return the spec of cubes; without a sigmoid at the end, as the peers."""
    spec = {**parts, "shape": (size, size, size), "range": RANGE, "norm_pix": True}
    return MaskedAutoencoderNetworkSpec.model_validate(spec)


def check(ours: MaskedAutoencoder, peer: MaskedAutoEncoderViT, volumes: Tensor) -> None:
    """Raise unless MONAI's class with our weights and our norms computes what ours does.

    Raises:
        RuntimeError: The predictions differ by more than rounding.
    """
    before = {name: value.clone() for name, value in peer.state_dict().items()}
    peer.load_state_dict({**before, **renamed(ours)})
    norms = [part for part in peer.modules() if isinstance(part, nn.LayerNorm)]
    for norm in norms:
        norm.eps = ours.encoder.norm.eps
    with torch.no_grad():
        found, masked = peer(volumes)
        # Visible patches first: attention asks for no order.
        masks = ours.draw_masks(masked.float())
        wanted = found.take_along_dim(masks.masked[..., None], dim=1)
        difference = float((ours(volumes, masks) - wanted).norm() / wanted.norm())
    peer.load_state_dict(before)
    if difference > TOLERANCE:
        raise RuntimeError(f"ours and MONAI's differ by {difference:.1e}")


def renamed(ours: MaskedAutoencoder) -> dict[str, Tensor]:
    """Return our weights by MONAI's names."""
    encoder, decoder = ours.encoder, ours.decoder
    sides = {"blocks": encoder, "decoder_blocks": decoder}
    parts = {
        "norm1": "attention_norm",
        "attn.qkv": "qkv",
        "attn.out_proj": "attention_out",
        "norm2": "feed_forward_norm",
        "mlp.linear1": "feed_forward.0",
        "mlp.linear2": "feed_forward.2",
    }
    modules = {"decoder_embed": decoder.embed, "decoder_pred": decoder.predict}
    for name, side in sides.items():
        modules[f"{name}.{len(side.blocks)}"] = side.norm
        for i, block in enumerate(side.blocks):
            modules |= {f"{name}.{i}.{a}": block.get_submodule(b) for a, b in parts.items()}
    weights = {
        f"{name}.{key}": value
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    kernel = encoder.patch_embed.weight.unflatten(1, (1, *ours.spec.patch_size))
    return weights | {
        "cls_token": encoder.cls_token,
        "mask_tokens": decoder.mask_token,
        "decoder_pos_embedding": decoder.position[None, 1:],
        "patch_embedding.position_embeddings": encoder.position[None, 1:],
        "patch_embedding.patch_embeddings.weight": kernel,
        "patch_embedding.patch_embeddings.bias": encoder.patch_embed.bias,
    }


def stepper(model: nn.Module, volumes: Tensor) -> Callable[[], None]:
    """Return a whole training step: forward, backward, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        model(volumes).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def fastest(
    ways: Mapping[str, Callable[[], None]], rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Return the seconds of each way's fastest round, in turns after one that does not count."""
    found: dict[str, float] = dict.fromkeys(ways, float("inf"))
    for turn in range(rounds + 1):
        for name, way in ways.items():
            began = clock()
            way()
            if turn:
                found[name] = min(found[name], clock() - began)
    return found


def steps(
    spec: MaskedAutoencoderNetworkSpec, batch: int, rounds: int, thread_counts: list[int]
) -> tuple[list[dict[str, Any]], float]:
    """Return the records of training steps, and the least seconds that ours takes for a volume."""
    torch.manual_seed(0)
    volumes = torch.rand(batch, 1, *spec.shape)
    ours, monai = Ours(spec), Monai(spec)
    check(ours.model, monai.model, volumes)
    models = {"ours": ours, "monai": monai, "without_dropping_tokens": Plain(spec)}
    ways = {name: stepper(model, volumes) for name, model in models.items()}
    records, seconds = [], float("inf")
    for threads in thread_counts:
        torch.set_num_threads(threads)
        clock, unit = (time.process_time, "CPU s") if threads == 1 else (time.perf_counter, "s")
        found = fastest(ways, rounds, clock)
        mine = found.pop("ours")
        seconds = min(seconds, mine / batch)
        for peer, theirs in found.items():
            name = f"mae/step_{spec.shape[0]}_against_{peer}_{threads}_threads"
            records.append(record(name, mine, theirs, unit))
    return records, seconds


def write_volumes(folder: Path, size: int) -> list[StoredVolume]:
    """Store phantoms of a size, each shifted along its columns, so that no two are equal."""
    shape = (size, size, size)
    write_phantom(folder / "phantom.nii.gz", shape)
    array = read_nifti(folder / "phantom.nii.gz").volume.array
    store = folder / "0000.zarr"
    create_store(store, "volumes")
    volumes = []
    for i in range(VOLUMES):
        node = f"scan_{i}@0"
        values = np.ascontiguousarray(np.roll(array, i, axis=2), dtype=np.int16)
        sha256 = write_node(store, node, values, attributes={"ct3d": {"domain": "ct"}})
        stored = StoredArray(store, node)
        volumes.append(StoredVolume(f"scan_{i}", stored, shape, sha256))
    return volumes


def reader(size: int, *, batch: int, count: int, seconds: float) -> list[dict[str, Any]]:
    """Return the records of the training loader beside the seconds of the model for a volume."""
    records = []
    with tempfile.TemporaryDirectory() as name:
        recipe = RecipeSpec(shape=(size, size, size), window=WINDOW, range=RANGE)
        items = ScanItems(write_volumes(Path(name), size), recipe)
        for workers in WORKERS:
            spec = TrainSpec(
                steps=count + 2, batch_size=batch, micro_batch_size=batch, num_workers=workers,
                device="cpu",
            )  # fmt: skip
            loaded = batches(items, spec, first_step=0)
            for _ in range(2):
                next(loaded)
            began = time.perf_counter()
            read = sum(len(part["values"]) for step in loaded for part in step)
            mine = (time.perf_counter() - began) / read
            records.append(
                record(f"mae/reader_{size}_{workers}_workers", mine, seconds, "s a volume")
            )
    return records


def main() -> None:
    """Print the table and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=128, help="voxels of a volume's side")
    parser.add_argument("--batch", type=int, default=1, help="volumes of a step")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--json", type=Path, help="file that the records are joined to")
    args = parser.parse_args()
    spec = network(TINY if args.smoke else BASE, args.size)
    records, seconds = steps(spec, args.batch, args.rounds, args.threads)
    count = 4 if args.smoke else 32
    records += reader(args.size, batch=args.batch, count=count, seconds=seconds)
    publish(records, args.json)


if __name__ == "__main__":
    main()
