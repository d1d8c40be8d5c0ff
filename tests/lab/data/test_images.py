"""Images: the split and its imbalance, and Fashion-MNIST out of a package that the tests make. No network."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from steepest.lab.data import images as module
from steepest.lab.data.images import (
    Images,
    class_counts,
    digits,
    fashion_mnist,
    imbalanced_split,
    load_images,
)
from steepest.lab.errors import UserError

FOLDER = "./usr/share/datasets/fashion-mnist/"


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return gzip.compress(header + values.astype(np.uint8).tobytes(), mtime=0)


PIXELS = np.arange(5 * 2 * 3).reshape(5, 2, 3) * 8
LABELS = np.array([3, 1, 0, 2, 1])
CONTENT = {
    "train-images-idx3-ubyte.gz": idx(PIXELS[:3]),
    "train-labels-idx1-ubyte.gz": idx(LABELS[:3]),
    "t10k-images-idx3-ubyte.gz": idx(PIXELS[3:]),
    "t10k-labels-idx1-ubyte.gz": idx(LABELS[3:]),
}


def deb(files: dict[str, bytes]) -> bytes:
    """A Debian package: an `ar` archive with an odd-sized member before the data, as real ones have."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(FOLDER + name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    archive = b"!<arch>\n"
    for name, content in (
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", b"odd"),
        ("data.tar.xz", lzma.compress(buffer.getvalue())),
    ):
        archive += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
        archive += b"\n" * (len(content) % 2)
    return archive


class Apt:
    """Puts a package where apt-get would."""

    def __init__(self, package: bytes | None) -> None:
        self.package = package
        self.calls: list[list[str]] = []

    def __call__(self, arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
        self.calls.append(list(arguments))
        if self.package is None:
            return subprocess.CompletedProcess(list(arguments), 100, "", "E: Unable to locate package\n")
        (folder / "dataset-fashion-mnist_0_all.deb").write_bytes(self.package)
        return subprocess.CompletedProcess(list(arguments), 0, "", "")


@pytest.fixture(autouse=True)
def checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}
    monkeypatch.setattr(module, "FASHION_MNIST", known)


def test_fashion_mnist_comes_out_of_its_package_once(tmp_path: Path) -> None:
    apt = Apt(deb(CONTENT))
    for _ in range(2):
        found = fashion_mnist(tmp_path, progress=False, run=apt)
        np.testing.assert_allclose(found.pixels, PIXELS.reshape(5, 6) / 255, rtol=1e-6)
        assert found.labels.tolist() == LABELS.tolist()
    assert apt.calls == [["--quiet", "download", f"{module.PACKAGE}={module.VERSION}"]]
    assert sorted(path.name for path in (tmp_path / "fashion-mnist").iterdir()) == sorted(CONTENT)
    assert list((tmp_path / "downloads").iterdir()) == []


def test_a_package_put_there_by_hand_needs_no_apt(tmp_path: Path) -> None:
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "dataset-fashion-mnist.deb").write_bytes(deb(CONTENT))
    apt = Apt(None)
    assert fashion_mnist(tmp_path, progress=False, run=apt).labels.tolist() == LABELS.tolist()
    assert apt.calls == []


def test_a_damaged_file_in_the_cache_is_fetched_again(tmp_path: Path) -> None:
    apt = Apt(deb(CONTENT))
    fashion_mnist(tmp_path, progress=False, run=apt)
    (tmp_path / "fashion-mnist" / "t10k-labels-idx1-ubyte.gz").write_bytes(b"")
    assert fashion_mnist(tmp_path, progress=False, run=apt).labels.tolist() == LABELS.tolist()
    assert len(apt.calls) == 2


def test_without_the_package_the_message_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"Unable to locate package.*put it at .*dataset-fashion-mnist\.deb.*digits"):
        fashion_mnist(tmp_path, progress=False, run=Apt(None))
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="has no apt-get"):
        load_images("fashion-mnist", tmp_path, progress=False)


@pytest.mark.parametrize(
    ("package", "message"),
    [
        (deb({**CONTENT, "train-labels-idx1-ubyte.gz": b"other"}), "wrong checksum of train-labels"),
        (deb({}), "is not the Debian package"),
        (b"<html>", "no ar archive"),
        (b"!<arch>\n", r"no data\.tar\.xz"),
        (deb(CONTENT)[:-40], "is not the Debian package"),
    ],
)
def test_a_wrong_package_is_refused_and_leaves_nothing(package: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        fashion_mnist(tmp_path, progress=False, run=Apt(package))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


def test_unknown_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="digits"):
        load_images("digit", tmp_path)


def test_digits() -> None:
    found = digits()
    assert found.pixels.shape == (1797, 64)
    assert found.pixels.dtype == np.float32
    assert (found.pixels.min(), found.pixels.max()) == (0.0, 1.0)
    assert found.classes == 10
    assert np.bincount(found.labels).min() >= 170


def test_class_counts_fall_exponentially() -> None:
    assert class_counts(140, 1) == (140,) * 10
    assert class_counts(1000, 10) == (1000, 774, 599, 464, 359, 278, 215, 167, 129, 100)
    assert class_counts(140, 100) == (140, 84, 50, 30, 18, 11, 6, 4, 2, 1)
    assert class_counts(8, 100, classes=3) == (8, 1, 1)


def test_the_split_is_stratified_and_follows_the_seed() -> None:
    found = digits()
    rows = {seed: imbalanced_split(found, ratio=10, largest=140, test=30, seed=seed) for seed in range(3)}
    for split in rows.values():
        assert np.bincount(split.test.labels).tolist() == [30] * 10
        assert tuple(np.bincount(split.train.labels)) == split.counts
        assert sorted(split.counts, reverse=True) == list(class_counts(140, 10))
    assert len({split.counts for split in rows.values()}) == 3
    again = imbalanced_split(found, ratio=10, largest=140, test=30, seed=1)
    np.testing.assert_array_equal(again.train.pixels, rows[1].train.pixels)


def test_with_one_seed_ratios_share_the_test_set_and_training_sets_are_nested() -> None:
    # Every image is told apart by its first pixel.
    labels = np.repeat(np.arange(4), 50)
    found = Images("numbered", np.arange(200, dtype=np.float32)[:, None], labels)
    small, large = (imbalanced_split(found, ratio=ratio, largest=40, test=10, seed=5) for ratio in (20, 2))
    assert small.test.pixels.tolist() == large.test.pixels.tolist()
    assert set(small.train.pixels.ravel()) < set(large.train.pixels.ravel())
    assert not set(large.train.pixels.ravel()) & set(large.test.pixels.ravel())
    assert np.argsort(small.counts).tolist() == np.argsort(large.counts).tolist()


def test_too_few_images_are_refused() -> None:
    with pytest.raises(UserError, match="class of 174 images"):
        imbalanced_split(digits(), ratio=10, largest=150, test=30, seed=0)
    with pytest.raises(UserError, match=r"at least 1, got 0\.5"):
        imbalanced_split(digits(), ratio=0.5, largest=140, test=30, seed=0)
