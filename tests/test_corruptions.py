"""Corruptions: seeded by identity, byte for byte the same anywhere; of the published strength; clear when a library lacks."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from conftest import clean_environment
from PIL import Image
from sklearn.datasets import load_sample_image

from tta_bench.data.corrupt import large_images
from tta_bench.data.corrupt.corruptions import BENCHMARK, EXTRA, GROUPS, NAMES, corrupt, image_seed, library_versions
from tta_bench.data.corrupt.small_tools import from_hsv, to_hsv
from tta_bench.data.corrupt.strengths import PARAMETERS, Strengths
from tta_bench.data.kinds.digits import load_split

DIGIT = load_split().test_images[3]
GREY = np.full((32, 32, 3), 128, dtype=np.uint8)

MAKE_ALL = """\
import hashlib, json, sys
import numpy as np
from sklearn.datasets import load_sample_image
from tta_bench.data.corrupt.corruptions import NAMES, corrupt, image_seed
from tta_bench.data.kinds.digits import load_split
photo = np.ascontiguousarray(load_sample_image("china.jpg")[100:324, 200:424])
images = {"imagenet": [photo, photo[::-1].copy()], "cifar": list(load_split().test_images[:2])}
jobs = [(s, n, v, i) for s in images for n in NAMES for v in (1, 5) for i in range(2)]
found = {}
for strengths, name, severity, i in (jobs if sys.argv[1] == "forward" else jobs[::-1]):
    seed = image_seed(f"image/{i}", name, severity, 0)
    pixels = corrupt(images[strengths][i], name, severity, strengths=strengths, seed=seed)
    assert pixels.dtype == np.uint8 and pixels.shape == images[strengths][i].shape
    found[f"{strengths} {name} {severity} {i}"] = hashlib.sha256(pixels.tobytes()).hexdigest()
print(json.dumps(found))
"""


@pytest.mark.faults
def test_all_19_are_the_same_bytes_in_two_processes_and_two_orders() -> None:
    def start(order: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", MAKE_ALL, order]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=clean_environment())

    processes = [start("forward"), start("backward")]
    one, two = (json.loads(process.communicate(timeout=300)[0]) for process in processes)
    assert len(one) == 2 * 19 * 2 * 2
    assert one == two
    assert len(set(one.values())) == len(one), "no two shifts, and no two images, look the same"


def test_the_names_are_the_published_ones() -> None:
    assert len(BENCHMARK) == 15
    assert EXTRA == ("speckle_noise", "gaussian_blur", "spatter", "saturate")
    assert len(set(NAMES)) == 19
    assert [len(names) for names in GROUPS.values()] == [3, 4, 4, 4, 4]
    assert image_seed("a", "fog", 1, 0) == int.from_bytes(hashlib.sha256(b'["a","fog",1,0]').digest()[:4], "big")


STORED = pathlib.Path(__file__).parent / "pinned" / "corruptions.npz"


def images(strengths: str) -> list[np.ndarray]:
    photo = np.ascontiguousarray(load_sample_image("china.jpg")[100:324, 200:424])
    return [photo] if strengths == "imagenet" else list(load_split().test_images[:2])


def blocks(pixels: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of each of 4×4 blocks and of each colour: (2, 4, 4, 3)."""
    side = len(pixels) // 4
    parts = pixels.astype(np.float64).reshape(4, side, 4, side, 3)
    return np.stack([parts.mean((1, 3)), parts.std((1, 3))])


def of_all_severities(strengths: Strengths, name: str) -> np.ndarray:
    """The blocks of each image under each severity: (5, images, 2, 4, 4, 3), as ``corruptions.npz`` has them."""
    return np.array([
        [blocks(corrupt(image, name, severity, strengths=strengths, seed=image_seed(f"image/{i}", name, severity, 0)))
         for i, image in enumerate(images(strengths))]
        for severity in range(1, 6)
    ])  # fmt: skip


@pytest.mark.parametrize("strengths", ["cifar", "imagenet"])
def test_integer_severities_keep_their_pixels(strengths: Strengths) -> None:
    """To rounding: two of the 38 differ by single grey levels between processors (elastic_transform, frost)."""
    with np.load(STORED) as stored:
        for name in NAMES:
            np.testing.assert_allclose(
                of_all_severities(strengths, name), stored[f"{strengths}/{name}"], atol=0.3, err_msg=name
            )


def test_the_functions_between_severities_are_the_packages_own_at_them() -> None:
    pytest.importorskip("imagecorruptions")
    [photo] = images("imagenet")
    for name, severity in itertools.product(NAMES, range(1, 6)):
        np.random.seed(3)
        options = {"seed": 3} if name in ("glass_blur", "impulse_noise") else {}
        given = large_images.corrupt(photo, name, severity, options)
        assert np.array_equal(given, corrupt(photo, name, severity, strengths="imagenet", seed=3)), (name, severity)


def test_parameters_between_severities_are_interpolated() -> None:
    assert PARAMETERS["imagenet"]["gaussian_noise"].at(2.25) == pytest.approx(0.135)
    assert PARAMETERS["imagenet"]["fog"].at(2.5) == pytest.approx((2.25, 1.85))
    assert PARAMETERS["imagenet"]["motion_blur"].at(1.5) == (13, 4.0), "12.5 taps are 13"
    assert PARAMETERS["imagenet"]["jpeg_compression"].at(4.75) == 8
    assert PARAMETERS["imagenet"]["glass_blur"].at(1.75) == pytest.approx((0.85, 2, 1))
    assert PARAMETERS["imagenet"]["elastic_transform"].at(0.5) == 6.25
    assert PARAMETERS["cifar"]["contrast"].at(0.25) == pytest.approx(0.9375), "a quarter of the way from no effect"
    assert PARAMETERS["cifar"]["shot_noise"].at(0.5) == 2000, "half the standard deviation of 500 photons"
    assert PARAMETERS["cifar"]["shot_noise"].at(1.5) == 375


@pytest.mark.parametrize("strengths", ["cifar", "imagenet"])
def test_strengths_rise_from_no_effect_in_quarters(strengths: Strengths) -> None:
    for name in NAMES:
        for image in images(strengths)[:1]:
            made = [corrupt(image, name, q / 4, strengths=strengths, seed=1).astype(float) for q in range(1, 5)]
            change = [np.abs(pixels - image).mean() for pixels in made]
            assert change[0] <= change[3] + 0.5, name
            assert change[0] < 0.9 * change[3] or name in ("glass_blur", "saturate"), name


def test_seeds_of_quarters_are_their_own_and_those_of_integers_as_they_were() -> None:
    assert image_seed("a", "fog", 3.0, 0) == image_seed("a", "fog", 3, 0)
    assert image_seed("a", "fog", 3.25, 0) == int.from_bytes(hashlib.sha256(b'["a","fog",3.25,0]').digest()[:4], "big")


RANDOM = ["gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "glass_blur", "motion_blur", "snow", "frost", "fog",
          "spatter", "elastic_transform"]  # fmt: skip


@pytest.mark.parametrize("strengths", ["cifar", "imagenet"])
@pytest.mark.parametrize("name", RANDOM)
def test_another_seed_is_another_draw_and_global_state_is_left_alone(name: str, strengths: str) -> None:
    np.random.seed(7)
    before = np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    one, again, other = (corrupt(DIGIT, name, 5, strengths=strengths, seed=seed) for seed in (1, 1, 2))  # type: ignore[arg-type]
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert np.array_equal(np.random.get_state()[1], before)  # type: ignore[index]


@pytest.mark.parametrize(
    "name", sorted(set(NAMES) - {"saturate", "spatter", "elastic_transform", "glass_blur", "motion_blur", "snow"})
)
def test_severity_5_changes_more_than_severity_1(name: str) -> None:
    def change(severity: int) -> float:
        made = [
            corrupt(x, name, severity, strengths="cifar", seed=i) for i, x in enumerate(load_split().test_images[:20])
        ]
        return float(np.abs(np.stack(made).astype(float) - load_split().test_images[:20]).mean())

    assert change(5) > change(1) > 0


def made(name: str, severity: int, image: np.ndarray = DIGIT, seed: int = 0) -> np.ndarray:
    return corrupt(image, name, severity, strengths="cifar", seed=seed).astype(np.float64) / 255


def test_known_values() -> None:
    x = DIGIT / 255
    mean = x.mean((0, 1))
    assert np.allclose(made("contrast", 5), (x - mean) * 0.15 + mean, atol=1 / 255)
    assert np.allclose(made("brightness", 3), np.clip(x + 0.15, 0, 1), atol=1.01 / 255), "of a grey image"
    assert np.abs(made("gaussian_noise", 5, GREY).std() - 0.10) < 0.005
    assert np.abs(made("speckle_noise", 5, GREY).std() - 0.2 * 128 / 255) < 0.005
    assert np.abs((made("impulse_noise", 5, GREY) != 128 / 255).mean() - 0.07) < 0.015
    buffer = io.BytesIO()
    Image.fromarray(DIGIT).save(buffer, "JPEG", quality=40)
    assert np.allclose(made("jpeg_compression", 5) * 255, np.asarray(Image.open(buffer)), atol=1)
    box = Image.fromarray(DIGIT).resize((20, 20), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BOX)
    assert np.allclose(made("pixelate", 5) * 255, np.asarray(box), atol=1)


@pytest.mark.parametrize(
    "name", ["gaussian_blur", "defocus_blur", "zoom_blur", "glass_blur", "motion_blur", "elastic_transform"]
)
def test_blurs_leave_a_constant_image_constant(name: str) -> None:
    assert np.abs(made(name, 5, GREY) * 255 - 128).max() <= 1.01


def test_a_motion_blur_keeps_the_brightness_and_moves_along_a_line() -> None:
    point = np.zeros((32, 32, 3), dtype=np.uint8)
    point[16, 16] = 255
    blurred = made("motion_blur", 5, point)[..., 0]
    rows, columns = np.nonzero(blurred)
    assert blurred.sum() == pytest.approx(1, abs=0.05)
    assert len(rows) > 3
    assert np.abs(np.corrcoef(rows, columns)[0, 1]) > 0.9 or rows.std() < 0.5


def test_glass_blur_copies_neighbours_as_the_published_generator_does() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    moved = corrupt(noise, "glass_blur", 1, strengths="cifar", seed=0).astype(int)  # at this severity the blur is nil
    near = np.stack([np.roll(noise, (dy, dx), (0, 1)) for dy in (0, 1) for dx in (0, 1)]).astype(int)
    distance = np.abs(near - moved).max(axis=-1)[:, 2:31, 2:31]
    assert (distance.min(axis=0) <= 2).all(), "every pixel is itself or a neighbour above or to the left"
    assert 0.1 < (distance.argmin(axis=0) == 0).mean() < 0.5
    library = pytest.importorskip("imagecorruptions.corruptions")
    unique = np.arange(32 * 32 * 3, dtype=np.uint16).reshape(32, 32, 3)
    theirs = library._shuffle_pixels_njit_glass_blur(32, 32, unique.copy(), (0.05, 1, 1), 0)
    assert len(np.unique(theirs[..., 0])) < 800, "the library copies, too: pixels occur twice, others are gone"


def test_hsv_is_invertible() -> None:
    x = np.random.default_rng(0).random((32, 32, 3))
    assert np.allclose(from_hsv(*to_hsv(x)), x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((DIGIT, "fogg", 1, "cifar"), "unknown corruption 'fogg'; did you mean 'fog'"), ((DIGIT, "fog", 6, "cifar"), "severity must be 1 to 5"),
     ((DIGIT, "fog", 0, "cifar"), "severity must be 1 to 5"), ((DIGIT, "fog", 2.3, "cifar"), "or quarters between, not 2.3"),
     ((DIGIT / 255, "fog", 1, "cifar"), "must be uint8"), ((np.zeros((40, 40, 3), np.uint8), "fog", 1, "cifar"), "for 32x32 images"),
     ((np.zeros((16, 16, 3), np.uint8), "fog", 1, "imagenet"), "32x32 or larger")],
)  # fmt: skip
def test_bad_arguments(arguments: tuple[np.ndarray, str, int, str], message: str) -> None:
    image, name, severity, strengths = arguments
    with pytest.raises(ValueError, match=message):
        corrupt(image, name, severity, strengths=strengths, seed=0)  # type: ignore[arg-type]


def test_without_opencv_small_images_need_it_for_spatter_alone(tmp_path: pathlib.Path) -> None:
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')\n")
    code = """
import numpy as np
from tta_bench.data.corrupt.corruptions import NAMES, corrupt
from tta_bench.errors import UsageError
image, bad = np.full((32, 32, 3), 99, np.uint8), []
for strengths in ("cifar", "imagenet"):
    for name in NAMES:
        try:
            corrupt(image, name, 1, strengths=strengths, seed=0)
        except UsageError as error:
            assert "libGL.so.1" in str(error) and "opencv-python-headless" in str(error)
            bad.append((strengths, name))
assert bad == [("cifar", "spatter"), *(("imagenet", name) for name in NAMES)], bad
"""
    done = subprocess.run([sys.executable, "-c", code], env=clean_environment(PYTHONPATH=str(tmp_path)), capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_versions_that_matter_are_recorded() -> None:
    assert set(library_versions("cifar", "contrast")) == {"numpy", "scipy", "pillow"}
    assert {"imagecorruptions-imaug", "opencv", "scikit-image", "numba"} <= set(
        library_versions("imagenet", "contrast")
    )
    assert "absent" not in library_versions("imagenet", "fog").values()
