"""NanoDet as a backbone: shapes, geometry and the arithmetic of its boxes."""

import torch

from groundingml.models.nanodet import NanoDet, NanoDetConfig, NanoDetHead, expected_distances, grid_centres

SMALL = NanoDetConfig(
    stem_channels=4, stage_channels=(8, 8, 8, 8), stage_blocks=(1, 1, 1, 1), channels=8, num_classes=3
)


def test_maps_cover_the_image_padded_to_a_multiple_of_the_last_stride() -> None:
    nanodet = NanoDet(SMALL).eval()
    maps = nanodet(torch.randn(2, 3, 50, 70))
    assert [tuple(x.shape) for x in maps] == [(2, 8, 8, 12), (2, 8, 4, 6), (2, 8, 2, 3)]
    assert nanodet.covered_size(maps) == (64, 96)


def test_padding_with_zeros_beforehand_changes_nothing() -> None:
    nanodet = NanoDet(SMALL).eval()
    image = torch.randn(1, 3, 50, 70)
    padded = torch.zeros(1, 3, 64, 96)
    padded[:, :, :50, :70] = image
    for ours, theirs in zip(nanodet(image), nanodet(padded), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_distance_is_the_mean_of_the_distribution() -> None:
    logits = torch.full((4, 11), -1e4)
    logits[0, 3] = 0.0  # all mass on 3
    logits[1, 2] = logits[1, 4] = 0.0  # half on 2, half on 4
    logits[2, :] = 0.0  # even: 0 .. 10
    logits[3, 10] = 0.0
    torch.testing.assert_close(expected_distances(logits.flatten(), 11), torch.tensor([3.0, 3.0, 5.0, 10.0]))


def test_grid_runs_along_rows_first() -> None:
    centres = grid_centres(2, 3, 8, torch.zeros(1))
    assert centres.tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]


def test_boxes_reach_from_the_centre_of_their_cell() -> None:
    head = NanoDetHead(SMALL)
    with torch.no_grad():
        for layer in head.boxes:
            layer.weight.zero_()
            bias = torch.full((4, 11), -1e4)
            for side, distance in enumerate((1, 2, 3, 4)):  # left, top, right, bottom, in strides
                bias[side, distance] = 0.0
            layer.bias.copy_(bias.flatten())
        boxes = head.boxes_xyxy([torch.zeros(1, 8, 1, 2), torch.zeros(1, 8, 1, 1), torch.zeros(1, 8, 1, 1)])
    expected = [[4 - 8, 4 - 16, 4 + 24, 4 + 32], [12 - 8, 4 - 16, 12 + 24, 4 + 32]]
    assert boxes[0, :2].tolist() == expected
    assert boxes[0, 2].tolist() == [8 - 16, 8 - 32, 8 + 48, 8 + 64]
    assert boxes[0, 3].tolist() == [16 - 32, 16 - 64, 16 + 96, 16 + 128]
