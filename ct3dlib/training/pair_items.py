"""Studies with what was written of them: a scan, its regions and its text, as training items.

N studies, S steps of a text, L tokens of a step, R regions.
"""

import copy
import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ct3dlib.cohort.hashes import array_sha256
from ct3dlib.cohort.store import StoredVolume, key_of
from ct3dlib.cohort.studies import Study
from ct3dlib.config import RecipeSpec, Shape
from ct3dlib.regions.drawn import scan_record
from ct3dlib.regions.key_lesions import real_slices
from ct3dlib.scan.axes import to_model
from ct3dlib.scan.normalize import held_box
from ct3dlib.text.encoding import EncodedText
from ct3dlib.training.draws import seed_of
from ct3dlib.training.loader import Items
from ct3dlib.training.scan_items import ScanItems
from ct3dlib.training.slice_items import pair_regions

logger = logging.getLogger(__name__)

UNKNOWN_REGION = 255


class PairItems(Items):
    """A study an item: one of its reconstructions, drawn at each visit, and its text.

    An item holds `values` (1 D H W as stored) and `window` (2) as `ScanItems`; `regions` (1 D H W
    uint8: 0 to 20, or 255 all over where nobody looked for them); `input_ids` and `token_regions`
    (S L int32), `mention` (R int8) and `text_id` (int64) of the text; `study_id` (int64: hash of
    the study's name). Where the recipe may pad, also `valid` (1 D H W bool: False where it did);
    where it takes slices around a key slice, `z_real` (D bool: False where that one stands in).

    Args:
        studies: Of one recipe and shape; those without a text are left out.
        texts: By the name of the study.
        recipe: Of the volumes.
        regions: Masks on the grid of the volumes, of any splits.
        draw: Whether a reconstruction is drawn; False: the first, as in validation.

    Raises:
        StoreError: The shapes of the volumes differ, or regions lie on another grid.
        ValueError: The shapes of the texts differ.
    """

    def __init__(
        self,
        studies: Sequence[Study],
        texts: Mapping[str, EncodedText],
        *,
        recipe: RecipeSpec,
        regions: Sequence[StoredVolume] = (),
        draw: bool = True,
    ) -> None:
        self.studies = [study for study in studies if study.name in texts]
        volumes = [volume for study in self.studies for volume in study.volumes]
        self.scans = ScanItems(volumes, recipe)
        self.texts = _tensors([texts[study.name] for study in self.studies])
        counts = [len(study.volumes) for study in self.studies]
        self._first = np.cumsum([0, *counts])  # of a study's volumes among all
        self._regions = {volume.volume: found for volume, found in pair_regions(volumes, regions)}
        self._recipe = recipe
        self._draw = draw
        logger.info(
            "%s studies of %s volumes with a text, %s of the volumes with regions; %s studies "
            "without a text are left out",
            *(len(self.studies), len(volumes), len(self._regions)),
            len(studies) - len(self.studies),
        )

    def __len__(self) -> int:
        """Return the number of studies."""
        return len(self.studies)

    @property
    def shape(self) -> Shape:
        """Voxels of a volume, as models see its axes.

        Raises:
            StoreError: There is no volume.
        """
        return self.scans.shape

    @property
    def key(self) -> str:
        """A hash of volumes, regions and texts, and of how they belong together."""
        texts = {name: array_sha256(values.numpy()) for name, values in self.texts.items()}
        regions = sorted((name, found.sha256) for name, found in self._regions.items())
        studies = [(study.name, len(study.volumes)) for study in self.studies]
        return key_of("pair", self.scans.key, studies, regions, texts, self._draw)

    def item(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return a study: a reconstruction drawn from `rng`, or the first, with its text."""
        study = self.studies[index]
        which = int(rng.integers(len(study.volumes))) if self._draw else 0
        volume = study.volumes[which]
        item = {
            **self.scans.item(int(self._first[index]) + which, rng),
            "regions": self._oriented(self._read_regions(volume)),
            **{name: values[index] for name, values in self.texts.items()},
            "study_id": torch.tensor(seed_of("study", study.name)),
        }
        if self._recipe.pads:
            item["valid"] = self._oriented(_valid(volume))
        if self._recipe.slices is not None:
            item["z_real"] = torch.tensor(real_slices(volume))
        return item

    def shuffled(self, seed: int) -> "PairItems":
        """Return the same studies, each with the text of another patient's: a control.

        Nothing is to be learnt of them; see `derangement`.

        Raises:
            ValueError: Too many studies are of one patient or have one text.
        """
        patients = [study.patient for study in self.studies]
        given = torch.from_numpy(derangement(patients, self.texts["text_id"].tolist(), seed=seed))
        other = copy.copy(self)
        other.texts = {name: values[given] for name, values in self.texts.items()}
        return other

    def _read_regions(self, volume: StoredVolume) -> NDArray[np.uint8]:
        """Return the regions of a volume, D H W."""
        found = self._regions.get(volume.volume)
        if found is None:
            return np.full(volume.shape, UNKNOWN_REGION, np.uint8)
        return np.asarray(found.read(), np.uint8)

    def _oriented(self, array: NDArray[np.generic]) -> Tensor:
        """Return a stored array, D H W, with the axes that models see, 1 D H W."""
        return torch.from_numpy(np.ascontiguousarray(to_model(array, self._recipe.axes)))[None]


def derangement(
    patients: Sequence[str], text_ids: Sequence[int], *, seed: int
) -> NDArray[np.int64]:
    """Return whose text each study gets: another patient's, and never one equal to its own.

    A random permutation whose clashes are swapped away one by one, each with a study drawn among
    those that it may change with. There is one while twice the studies of a patient and of a text
    together are fewer than all, for any patient and text of the row.

    Args:
        patients: Of each study.
        text_ids: Of each study.
        seed: Of the draws.

    Raises:
        ValueError: A study has nobody to change with.
    """
    _, patient, studies = np.unique([*patients], return_inverse=True, return_counts=True)
    _, text, copies = np.unique([*text_ids], return_inverse=True, return_counts=True)
    rng = np.random.default_rng(seed_of("derangement", seed))
    everyone = np.arange(len(patients))
    given = rng.permutation(everyone)

    def clash(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.bool_]:
        return (patient[a] == patient[b]) | (text[a] == text[b])

    for i in np.flatnonzero(clash(everyone, given)):
        if not clash(everyone[[i]], given[[i]]).item():  # an earlier swap has mended it
            continue
        fits = np.flatnonzero(~clash(everyone[[i]], given) & ~clash(everyone, given[[i]]))
        if not len(fits):
            raise ValueError(
                f"{len(patients)} studies cannot each have the text of another patient that "
                f"differs from their own: {studies.max()} are of one patient, {copies.max()} have "
                f"one text; take more studies"
            )
        j = rng.choice(fits)
        given[[i, j]] = given[[j, i]]
    return given


def _tensors(texts: Sequence[EncodedText]) -> dict[str, Tensor]:
    """Return texts as N x what an item holds: loader processes share tensors, not arrays."""
    return {
        "input_ids": _stacked("input_ids", [text.input_ids for text in texts], np.int32),
        "token_regions": _stacked("token_regions", [one.token_regions for one in texts], np.int32),
        "mention": _stacked("mention", [text.mention for text in texts], np.int8),
        "text_id": torch.tensor([text.text_id for text in texts], dtype=torch.int64),
    }


def _stacked(name: str, values: Sequence[NDArray[np.integer]], dtype: type[np.integer]) -> Tensor:
    """Return arrays of one shape as a tensor."""
    shapes = {value.shape for value in values}
    if len(shapes) > 1:
        raise ValueError(f"{name} of texts need one shape, not {sorted(shapes)}; encode them alike")
    return torch.from_numpy(np.array(values, dtype=dtype))


def _valid(volume: StoredVolume) -> NDArray[np.bool_]:
    """Return where a volume is not padded, D H W.

    Raises:
        StoreError: The store does not say where its scan lies.
    """
    start, shape = held_box(scan_record(volume))
    valid = np.zeros(volume.shape, bool)
    d, h, w = (slice(a, a + n) for a, n in zip(start, shape, strict=True))
    valid[d, h, w] = True
    return valid
