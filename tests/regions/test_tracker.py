"""The tracker against SAM 2's own predictor, transformers' session, and itself cut in parts."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from ct3dlib.regions import tracker
from ct3dlib.regions.medsam2_network import NO_OBJECT
from ct3dlib.regions.tracker import Prompt, encode, track
from tests.regions.medsam2_golden import (
    NUM_SLICES,
    SIZE,
    features,
    golden,
    network,
    pictures,
    prompts,
)


def _follow(asked, *, seen=None, patience=None, precision="fp32"):
    return track(network(), seen or features(), asked, patience=patience, precision=precision)


@pytest.fixture(scope="module")
def whole():
    """The golden prompts over all slices."""
    return _follow(prompts())


def _assert_close(found, wanted, tolerance=1e-5):
    assert [(f.start, f.stop) for f in found] == [(w.start, w.stop) for w in wanted]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.logits, other.logits, rtol=0, atol=tolerance)
        torch.testing.assert_close(one.score, other.score, rtol=0, atol=tolerance)


def test_tracks_are_those_of_sam2s_own_predictor(monkeypatch):
    monkeypatch.setattr(tracker, "NUM_POINTERS", NUM_SLICES)  # its span in videos that short
    found = _follow(prompts())
    for name in ("logits", "score"):
        values = torch.stack([getattr(one, name) for one in found])
        torch.testing.assert_close(values, golden()[name], rtol=0, atol=1e-4)
    present = golden()["score"] > 0  # both branches of the network are held to account
    assert present.any(dim=1).all()
    assert not present.all(dim=1).any()


def test_the_four_masks_and_their_qualities_are_those_of_sam2(monkeypatch):
    model, (coarse, middle, fine) = network().model, features().at(torch.tensor([0]))
    monkeypatch.setattr(model.mask_decoder, "dynamic_multimask_via_stability", False)
    sparse, dense = network()._embed(*network()._no_points(1))
    masks, qualities = [], []
    for several in (False, True):
        drawn, quality, _, _ = model.mask_decoder(
            image_embeddings=coarse,
            image_positional_embeddings=network().prompt_position,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=several,
            high_resolution_features=[fine, middle],
        )
        masks.append(drawn[:, 0])
        qualities.append(quality[:, 0])
    torch.testing.assert_close(torch.cat(masks, 1), golden()["multi"], rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.cat(qualities, 1), golden()["iou"], rtol=0, atol=1e-4)


def test_the_pointer_of_a_mask_is_that_of_sam2():
    prompt = prompts()[2]
    found = network().find_masks(features().at(torch.tensor([prompt.key])), prompt.mask[None])
    torch.testing.assert_close(found.pointer, golden()["mptr"], rtol=0, atol=1e-4)


def test_a_long_track_is_that_of_transformers_session(monkeypatch):
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

    count, box = 20, (22.0, 32.0, 58.0, 88.0)  # further than the 16 pointers reach
    grey = pictures()[torch.arange(count) % NUM_SLICES]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    video = (grey[:, None] / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    session = Sam2VideoInferenceSession(video, SIZE, SIZE, dtype=torch.float32)
    session.obj_id_to_idx(1)
    corners = torch.tensor(box).view(1, 1, 2, 2)
    point = {"point_coords": corners, "point_labels": torch.tensor([[[2, 3]]])}
    session.add_point_inputs(0, 0, point)
    session.obj_with_new_inputs = [1]
    with torch.no_grad():
        model = network().model
        wanted = [model(session, frame_idx=z).pred_masks[0, 0] for z in range(count)]

    remember = network().remember  # the session keeps memories in bfloat16

    def rounded(*args, **kwargs):
        return remember(*args, **kwargs).bfloat16().float()

    monkeypatch.setattr(network(), "remember", rounded)
    seen = encode(network(), grey, range(count), batch=4, precision="fp32")
    (found,) = _follow([Prompt(0, 0, count, box=box)], seen=seen)
    assert (found.score > 0).sum() > 4
    torch.testing.assert_close(found.logits, torch.stack(wanted), rtol=0, atol=1e-4)


def test_memory_does_not_grow_with_the_length_of_a_track(monkeypatch):
    recall, lengths = network().recall, []

    def counted(coarse, memories, pointers, **ages):
        lengths.append((len(memories), len(pointers)))
        return recall(coarse, memories, pointers, **ages)

    monkeypatch.setattr(network(), "recall", counted)
    monkeypatch.setattr(tracker, "NUM_POINTERS", 5)
    monkeypatch.setattr(tracker, "NUM_MEMORIES", 3)
    _follow([replace(prompts()[0], key=0)])
    assert lengths == [(1, 1), (2, 2), (3, 3), (3, 4), *[(3, 5)] * 5]


def test_tracks_together_are_tracks_one_by_one(whole):
    _assert_close([_follow([prompt])[0] for prompt in prompts()], whole)


def test_the_order_of_prompts_does_not_matter(whole):
    _assert_close(_follow(prompts()[::-1])[::-1], whole)


def test_up_and_down_do_not_see_each_other(whole):
    below = _follow([replace(prompt, stop=prompt.key + 1) for prompt in prompts()])
    above = _follow([replace(prompt, start=prompt.key) for prompt in prompts()])
    for low, high, both in zip(below, above, whole, strict=True):
        joined = torch.cat((low.logits, high.logits[1:]))
        torch.testing.assert_close(joined, both.logits, rtol=0, atol=1e-5)


def test_a_range_cuts_tracks_and_changes_nothing_in_it(whole):
    ranges = [(2, 8), (7, 9), (5, 6)]
    asked = [replace(p, start=a, stop=b) for p, (a, b) in zip(prompts(), ranges, strict=True)]
    wanted = [
        replace(one, start=a, stop=b, logits=one.logits[a:b], score=one.score[a:b])
        for one, (a, b) in zip(whole, ranges, strict=True)
    ]
    _assert_close(_follow(asked), wanted)


def test_slices_that_no_prompt_reaches_need_not_be_encoded(whole):
    some = [2, 3, 4, 5, 7, 8]
    seen = encode(network(), pictures()[some], some, batch=6, precision="fp32")
    found = _follow(
        [replace(prompts()[0], start=2, stop=6), replace(prompts()[1], start=7, stop=9)], seen=seen
    )
    wanted = [
        replace(whole[0], start=2, stop=6, logits=whole[0].logits[2:6], score=whole[0].score[2:6]),
        replace(whole[1], start=7, stop=9, logits=whole[1].logits[7:9], score=whole[1].score[7:9]),
    ]
    _assert_close(found, wanted)


def test_patience_ends_a_track_and_changes_nothing_before(whole):
    found = _follow(prompts(), patience=2)
    # Object 1 is gone from slices 3 to 6 and comes back below, object 2 from slice 4.
    assert (whole[1].score > 0).tolist() == [True] * 3 + [False] * 4 + [True] + [False] * 2
    reached = [one.score > NO_OBJECT for one in found]
    assert reached[0].tolist() == [True] * 9 + [False]
    assert reached[1].tolist() == [False] * 5 + [True] * 5
    assert reached[2].tolist() == [True] * 8 + [False] * 2
    for one, other, seen in zip(found, whole, reached, strict=True):
        torch.testing.assert_close(one.score[seen], other.score[seen], rtol=0, atol=1e-5)
        torch.testing.assert_close(one.logits[seen], other.logits[seen], rtol=0, atol=1e-5)
        assert (one.logits[~seen] == NO_OBJECT).all()


def test_each_slice_is_encoded_once_for_all_objects():
    sizes = []
    hook = network().model.vision_encoder.register_forward_hook(
        lambda module, args, output: sizes.append(len(args[0]))
    )
    try:
        seen = encode(network(), pictures(), range(NUM_SLICES), batch=4, precision="fp32")
        _follow(prompts(), seen=seen)
    finally:
        hook.remove()
    assert sizes == [4, 4, 2]


def test_pictures_are_bytes_or_numbers_in_batches_of_any_size():
    found = encode(network(), pictures().float(), range(NUM_SLICES), batch=10, precision="fp32")
    assert found.slices.tolist() == list(range(NUM_SLICES))
    for name in ("top", "s1", "s0"):
        one, other = getattr(found, name), getattr(features(), name)
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_bfloat16_draws_the_same_masks(whole):
    seen = encode(network(), pictures(), range(NUM_SLICES), batch=4, precision="bf16")
    assert {seen.top.dtype, seen.s1.dtype, seen.s0.dtype} == {torch.bfloat16}
    found = _follow(prompts(), seen=seen, precision="bf16")
    compared = 0
    for one, other in zip(found, whole, strict=True):
        assert one.logits.dtype == one.score.dtype == torch.float32
        torch.testing.assert_close(one.score, other.score, rtol=0, atol=0.1)
        both = (one.score > 0) & (other.score > 0)  # scores of random weights are close to 0
        for a, b in zip(one.logits[both] > 0, other.logits[both] > 0, strict=True):
            assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.95
            compared += 1
    assert compared >= 8


def test_no_prompt_is_no_track():
    assert _follow([]) == []


BOX = (1.0, 2.0, 3.0, 4.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((5, 0, 5, BOX), r"key 5 lies outside the slices 0:5"),
        ((1, 2, 5, BOX), r"key 1 lies outside the slices 2:5"),
        ((1, 0, 5), "a prompt is a box or a mask, exactly one of them"),
        ((1, 0, 5, BOX, torch.ones(2, 2) > 0), "a prompt is a box or a mask, exactly one of them"),
        ((1, 0, 5, (3.0, 2.0, 3.0, 4.0)), r"\(3\.0, 2\.0, 3\.0, 4\.0\) is empty; drop the prompt"),
        ((1, 0, 5, None, torch.ones(2, 2) < 0), "the mask on slice 1 is empty; drop the prompt"),
    ],
    ids=["above", "below", "neither", "both", "flat", "blank"],
)
def test_a_prompt_for_nothing_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Prompt(*values)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (Prompt(4, 0, 11, BOX), {}, "prompt 1 reaches slice 10, which is not among the 10 encoded"),
        (
            Prompt(4, 0, 10, mask=torch.ones(64, 64) > 0),
            {},
            r"prompt 1 has a mask of \(64, 64\) pixels, the network takes 128 x 128; resize it",
        ),
        (Prompt(4, 0, 10, BOX), {"patience": 0}, "patience is 0 slices, wanted 1 or more, or none"),
        (
            Prompt(4, 0, 10, BOX),
            {"precision": "bf16"},
            r"features are torch\.float32, bf16 takes torch\.bfloat16; encode the slices with",
        ),
    ],
    ids=["slice", "mask", "patience", "precision"],
)
def test_prompts_that_cannot_be_followed_are_refused(prompt, options, message):
    with pytest.raises(ValueError, match=message):
        _follow([prompts()[0], prompt], **options)


@pytest.mark.parametrize(
    ("shape", "slices", "message"),
    [
        ((2, 128, 128), [3], r"2 pictures are of slices \[3\], wanted one or more that ascend"),
        ((2, 128, 128), [3, 3], r"2 pictures are of slices \[3, 3\]"),
        ((0, 128, 128), [], r"0 pictures are of slices \[\]"),
        ((1, 64, 64), [0], r"pictures have \(64, 64\) pixels, the network takes 128 x 128; resize"),
    ],
    ids=["count", "twice", "none", "size"],
)
def test_pictures_that_fit_no_slices_are_refused(shape, slices, message):
    with pytest.raises(ValueError, match=message):
        encode(network(), torch.zeros(shape), slices, batch=2, precision="fp32")


def test_the_tracker_is_imported_without_transformers():
    code = "import sys, ct3dlib.regions.tracker; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
