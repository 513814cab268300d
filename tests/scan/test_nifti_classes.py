"""Names of classes in a NIfTI header: what others write is read, what is written is read back."""

import nibabel
import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Image, extension_codes

from ct3dlib.errors import VolumeError
from ct3dlib.scan.nifti import read_nifti, write_nifti
from ct3dlib.scan.nifti_classes import classes_extension, read_classes
from ct3dlib.scan.volume import Volume

# As TotalSegmentator lays it out: colours, character data, blanks and line breaks at the end.
THEIRS = """<?xml version="1.0" encoding="UTF-8"?> <CaretExtension>
  <Date><![CDATA[2013-07-14T05:45:09]]></Date>   <VolumeInformation Index="0">   <LabelTable>
<Label Key="1" Red="1.0" Green="0.0" Blue="0.0" Alpha="1"><![CDATA[spleen]]></Label>
<Label Key="117" Red="0.0" Green="1.0" Blue="0.0" Alpha="1"><![CDATA[costal_cartilages]]></Label>
  </LabelTable>  <StudyMetaDataLinkSet>  </StudyMetaDataLinkSet>
  <VolumeType><![CDATA[Label]]></VolumeType>   </VolumeInformation></CaretExtension>
              """


def save(path, *extensions):
    image = Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.diag([-1.0, -1, 2, 1]))
    image.header.extensions.extend(
        extension_codes.handler[code](code, content) for code, content in extensions
    )
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("code", [0, 30], ids=["totalsegmentator", "workbench"])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_label_table_of_other_programs_is_read(tmp_path, name, code):
    path = save(tmp_path / name, (6, b"a comment"), (code, THEIRS.encode()))
    assert read_classes(path) == {1: "spleen", 117: "costal_cartilages"}


@pytest.mark.parametrize(
    "extensions",
    [(), ((6, b"a comment"),), ((0, b"<CaretExtension></CaretExtension>"),)],
    ids=["none", "comment", "no-table"],
)
def test_a_file_without_a_table_names_no_classes(tmp_path, extensions):
    assert read_classes(save(tmp_path / "a.nii.gz", *extensions)) == {}


@pytest.mark.parametrize(
    "table",
    [
        "<LabelTable><Label Key='1'>spleen</LabelTable>",
        "<LabelTable><Label Key='one'>spleen</Label></LabelTable>",
        "<LabelTable><Label>spleen</Label></LabelTable>",
        "<LabelTable><Label Key='1'>\xff</Label></LabelTable>",
    ],
    ids=["not-closed", "no-number", "no-key", "not-utf-8"],
)
def test_a_damaged_table_is_refused(tmp_path, table):
    path = save(tmp_path / "a.nii.gz", (0, table.encode("latin-1")))
    with pytest.raises(VolumeError, match="names of its classes cannot be read") as caught:
        read_classes(path)
    assert caught.value.reason == "BAD_LABELS"
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_names_come_back_and_leave_voxels_and_grid_alone(tmp_path, oblique_affine, name):
    classes = {0: "other", 8: "heart & <sac>", 20: "Brustwand, rechts: ä"}
    array = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    write_nifti(tmp_path / name, Volume(array, oblique_affine, "uint8"), classes=classes)
    assert read_classes(tmp_path / name) == classes
    volume = read_nifti(tmp_path / name).volume
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, oblique_affine, atol=1e-4)
    np.testing.assert_array_equal(  # other readers find the voxels behind the table too
        np.asarray(nibabel.load(tmp_path / name).dataobj), array.transpose(2, 1, 0)
    )


def test_the_same_names_give_the_same_bytes(tmp_path):
    volume = Volume(np.zeros((2, 3, 4), np.uint8), np.diag([2.0, 1, 1, 1]), "uint8")
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(tmp_path / name, volume, classes={1: "spleen"})
    write_nifti(tmp_path / "c.nii.gz", volume)
    one, two, none = ((tmp_path / f"{name}.nii.gz").read_bytes() for name in "abc")
    assert one == two != none
    assert read_classes(tmp_path / "c.nii.gz") == {}


def test_an_extension_is_whole_blocks_of_16_bytes():
    for length in range(20):
        assert classes_extension({1: "x" * length}).get_sizeondisk() % 16 == 0
