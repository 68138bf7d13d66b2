"""Rendering: what stands where, in which color, and that one image never changes another."""

import io

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from skimage.color import rgb2lab

from dermlens.errors import UsageError
from dermlens.report.figures import (
    LESION_COLOR,
    TWO_SIDED,
    UNSIGNED_MAP,
    Panel,
    attribution_figure,
    attribution_grid,
    colorize,
    normalize,
    outline,
    overlay,
    overlay_on_photograph,
)

SHAPE = (6, 9)
MOST = (253, 231, 37)
LEAST = (68, 1, 84)
FOR, AGAINST = (205, 0, 150), (0, 220, 255)


@pytest.fixture(autouse=True)
def no_open_figures():
    yield
    assert plt.get_fignums() == []


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)


def hot(row: int, column: int, value: float = 1.0) -> np.ndarray:
    values = np.zeros(SHAPE, np.float32)
    values[row, column] = value
    return values


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([[0, 1, 2, 4]], {}, [[0, 0.25, 0.5, 1]]),
        ([[-3, -1, 1]], {}, [[0, 0.5, 1]]),
        ([[5, 5.5, 6]], {}, [[0, 0.5, 1]]),
        ([[-4, -1, 0, 2]], {"signed": True}, [[-1, -0.25, 0, 0.5]]),
        ([[1, 2, 4]], {"signed": True}, [[0.25, 0.5, 1]]),
        ([[-2, -1]], {"signed": True}, [[-1, -0.5]]),
    ],
)
def test_normalize_by_hand(values, options, expected):
    result = normalize(np.array(values, float), percentile=100, **options)
    assert result.dtype == np.float32
    assert result == pytest.approx(np.array(expected, np.float32))


def test_extreme_values_are_clipped_at_the_percentile():
    values = np.arange(101.0)[None]
    values[0, -1] = 1e6
    result = normalize(values, percentile=90)
    assert result[0, 45] == pytest.approx(0.5)
    assert (result[0, 90:] == 1).all() and result[0, 89] < 1
    signed = normalize(-values, signed=True, percentile=90)
    assert np.array_equal(signed, -result)


def test_one_hot_pixel_in_a_large_map_survives_the_percentile():
    values = np.zeros((100, 100))
    values[3, 70] = 1e-9
    assert np.array_equal(np.argwhere(normalize(values) == 1), [[3, 70]])


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, np.nan])
def test_constant_maps_become_finite(signed, value):
    result = normalize(np.full(SHAPE, value), signed=signed)
    expected = np.sign(np.nan_to_num(value)) if signed else 0.0
    assert (result == expected).all()
    assert np.isfinite(overlay(picture(), np.full(SHAPE, value), signed=signed)).all()


def test_scale_of_a_map_does_not_matter():
    values = np.random.default_rng(1).normal(size=SHAPE)
    for signed in (False, True):
        once = overlay(picture(), values, signed=signed)
        assert np.array_equal(overlay(picture(), 1024 * values, signed=signed), once)
    assert np.array_equal(overlay(picture(), values + 16), overlay(picture(), values))


def test_colors_are_rgb_at_both_ends_and_neutral_at_zero():
    assert colorize(np.array([[0.0, 1.0]])).tolist() == [[list(LEAST), list(MOST)]]
    signed = colorize(np.array([[-1.0, 0.0, 1.0]]), signed=True)
    assert signed.dtype == np.uint8
    assert signed[0, 0].tolist() == list(AGAINST) and signed[0, 2].tolist() == list(FOR)
    assert np.ptp(signed[0, 1].astype(int)) <= 2 and signed[0, 1].min() > 240
    named = colorize(np.array([[0.0, 1.0]]), color_map="gray")
    assert named.tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_zero_of_a_signed_map_leaves_the_image_whatever_else_is_in_it():
    for other in (5.0, -5.0):
        drawn = overlay(picture(), hot(2, 7, other), opacity=1, signed=True)
        assert np.array_equal(drawn[0, 0], picture()[0, 0])
        assert drawn[2, 7].tolist() == list(FOR if other > 0 else AGAINST)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 7), (5, 8), (4, 0)])
def test_hot_pixel_stands_where_it_is(row, column):
    drawn = overlay(np.zeros((*SHAPE, 3), np.uint8), hot(row, column), opacity=1)
    assert drawn.shape == (*SHAPE, 3) and drawn.dtype == np.uint8
    assert np.array_equal(np.argwhere((drawn == MOST).all(axis=2)), [[row, column]])
    assert (drawn == 0).all(axis=2).sum() == SHAPE[0] * SHAPE[1] - 1


def test_overlay_mixes_image_and_map():
    image = picture()
    assert np.array_equal(overlay(image, hot(1, 2), opacity=0), image)
    for opacity in (0.25, 0.5, 1.0):
        expected = image.astype(float)
        expected[1, 2] = np.round((1 - opacity) * image[1, 2] + opacity * np.array(MOST))
        drawn = overlay(image, hot(1, 2), opacity=opacity)
        assert np.abs(drawn - expected).max() == 0
    half = np.ones(SHAPE, np.float32)
    half[0, 0], half[1, 2] = 0.5, 0.0
    # Half of the evidence is drawn half as opaque.
    color = colorize(np.array([[0.5]]))[0, 0]
    expected = np.round(0.5 * image[0, 0] + 0.5 * color)
    assert np.abs(overlay(image, half, opacity=1)[0, 0] - expected).max() <= 1
    assert np.array_equal(overlay(image.astype(np.float32), hot(1, 2)), overlay(image, hot(1, 2)))


def test_overlays_have_the_photographs_own_size_and_a_color_bar():
    photograph = np.random.default_rng(3).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    values = hot(0, 0)
    drawn = overlay_on_photograph(photograph, values, (0.0, 75.0, 200.0, 225.0), opacity=1)
    assert drawn.shape[1] == 200 and 300 < drawn.shape[0] < 360
    # What the network did not see is darker, what it saw without evidence untouched.
    assert np.array_equal(drawn[:75], photograph[:75] // 2)
    assert np.array_equal(drawn[200:225, 150:], photograph[200:225, 150:])
    assert drawn[76, 1].tolist() == list(MOST)
    bar = drawn[300]
    assert bar[0].tolist() == list(LEAST) and bar[-1].tolist() == list(MOST)


PIGMENT = {
    "skin": (222, 178, 160), "tan": (196, 148, 116), "brown": (120, 76, 48), "dark": (60, 40, 34),
    "red": (168, 70, 66), "orange brown": (179, 106, 40),
}  # fmt: skip
# Machado, Oliveira & Fernandes, "A physiologically-based model for simulation of color vision
# deficiency", 2009, severity 1, for linear RGB.
EYES = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
               [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
               [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
               [0.004733, 0.691367, 0.303900]],
}  # fmt: skip


def seen(color: tuple[int, ...], eyes: str) -> np.ndarray:
    """A color in CIELAB as somebody sees it."""
    share = np.array(color) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(EYES[eyes]) @ linear, 0, 1)
    shown = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return rgb2lab(shown[None, None])[0, 0]


@pytest.mark.parametrize("eyes", EYES)
@pytest.mark.parametrize("name", TWO_SIDED)
def test_two_sided_colors_are_told_apart_and_from_pigment_by_all_eyes(name, eyes):
    ends = colorize(np.array([[-1.0, 1.0]]), signed=True, color_map=name)[0]
    against, spoken_for = (seen(tuple(end), eyes) for end in ends)
    assert np.linalg.norm(against - spoken_for) > 30
    if name == UNSIGNED_MAP:
        for pigment, color in PIGMENT.items():
            for end in (against, spoken_for):
                assert np.linalg.norm(end - seen(color, eyes)) > 20, pigment


def test_overlay_refuses_what_does_not_fit():
    with pytest.raises(UsageError, match=r"\(9, 6\) does not fit an image of \(6, 9\)"):
        overlay(picture(), hot(0, 0).T)
    for opacity in (-0.1, 1.1):
        with pytest.raises(UsageError, match=r"outside 0\.\.1"):
            overlay(picture(), hot(0, 0), opacity=opacity)


def marked(drawn: np.ndarray, color: tuple[int, int, int]) -> list[str]:
    return ["".join("#" if (p == color).all() else "." for p in row) for row in drawn]


def test_outline_is_one_pixel_wide_and_inside_the_mask():
    image = np.full((5, 7, 3), 9, np.uint8)
    mask = np.zeros((5, 7), bool)
    mask[1:5, 2:6] = True
    drawn = outline(image, mask, (255, 0, 1))
    # The image's own edge is no border of the mask.
    assert marked(drawn, (255, 0, 1)) == [".......", "..####.", "..#..#.", "..#..#.", "..#..#."]
    assert (drawn[~mask] == 9).all() and (image == 9).all()


def shown(axes) -> np.ndarray:
    (image,) = axes.images
    assert image.origin == "upper"
    return np.asarray(image.get_array())


def test_attribution_figure_shows_image_and_overlays():
    image = picture()
    maps = np.random.default_rng(2).normal(size=(2, *SHAPE))
    panels = [Panel("Plain", maps[0], note="1 pass"), Panel("Signed", maps[1], signed=True)]
    figure = attribution_figure(image, panels, opacity=0.7, title="I1: mel")
    first, plain, signed, *bars = figure.axes
    assert [axes.get_title(loc="left") for axes in (first, plain, signed)] == [
        "image",
        "Plain",
        "Signed",
    ]
    assert plain.get_xlabel() == "1 pass" and figure.get_suptitle() == "I1: mel"
    assert np.array_equal(shown(first), image)
    for axes, values, kind in ((plain, maps[0], False), (signed, maps[1], True)):
        assert np.array_equal(shown(axes), overlay(image, values, opacity=0.7, signed=kind))
    assert [bar.get_ylim() for bar in bars] == [(0, 1), (-1, 1)]
    assert [text.get_text() for text in bars[1].get_yticklabels()] == ["against", "0", "for"]
    assert [text.get_text() for text in bars[0].get_yticklabels()] == ["least", "most"]


def test_attribution_figure_wraps_and_hides_empty_places():
    panels = [Panel(str(k), hot(k, k)) for k in range(6)]
    figure = attribution_figure(picture(), panels)
    grid = figure.axes[:8]
    assert [axes.get_visible() for axes in grid] == [True] * 7 + [False]
    assert [axes.get_title(loc="left") for axes in grid[:7]] == ["image", *map(str, range(6))]
    stream = io.BytesIO()
    figure.savefig(stream)
    assert stream.getvalue().startswith(b"\x89PNG")


def test_attribution_grid_normalizes_each_image_alone():
    images = [picture(0), picture(1)]
    maps = {"CAM": np.stack([hot(1, 7), hot(4, 0, 1000.0)]), "IG": np.zeros((2, *SHAPE))}
    figure = attribution_grid(
        images, maps, signed={"CAM": False, "IG": True}, labels=["mel", "nv"], opacity=1.0
    )
    assert len(figure.axes) == 6
    rows = [figure.axes[:3], figure.axes[3:]]
    assert [axes.get_title(loc="left") for axes in rows[0]] == ["image", "CAM", "IG"]
    assert [axes.get_title(loc="left") for axes in rows[1]] == ["", "", ""]
    assert [row[0].get_ylabel() for row in rows] == ["mel", "nv"]
    for row, image, place in zip(rows, images, ([1, 7], [4, 0]), strict=True):
        assert np.array_equal(shown(row[0]), image)
        assert np.array_equal(np.argwhere((shown(row[1]) == MOST).all(axis=2)), [place])
        assert np.array_equal(shown(row[2]), image)


def test_attribution_grid_outlines_only_known_lesions():
    lesion = np.zeros(SHAPE, bool)
    lesion[1:5, 1:5] = True
    images = [picture(0), picture(1)]
    figure = attribution_grid(
        images,
        {"CAM": np.zeros((2, *SHAPE))},
        signed={"CAM": False},
        labels=["a", "b"],
        lesions=[lesion, None],
    )
    assert np.array_equal(shown(figure.axes[0]), outline(images[0], lesion, LESION_COLOR))
    assert np.array_equal(shown(figure.axes[2]), images[1])


def test_drawing_leaves_global_settings_alone():
    with mpl.rc_context({"font.size": 17.0}):
        attribution_figure(picture(), [Panel("a", hot(0, 0))])
        assert mpl.rcParams["font.size"] == 17.0
