"""Small images for classification: scikit-learn's digits, and Fashion-MNIST out of its Debian package.

Nothing is downloaded unless Fashion-MNIST is asked for, and nothing is installed: the package is only a container.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steepest.lab.data.progress import waiting
from steepest.lab.data.storage import new_folder, temporary_folder, write_file
from steepest.lab.errors import UserError, unknown

Runner = Callable[[Sequence[str], Path], "subprocess.CompletedProcess[str]"]

IMAGE_SETS = ("digits", "fashion-mnist")
# The package, and the four files in it that are read, with their checksums. The files are those of the authors (MIT),
# so they are the same in every rebuild of the package.
PACKAGE = "dataset-fashion-mnist"
VERSION = "0.0~git20200523.55506a9-1"
MEGABYTES = 30.9
_FOLDER = "./usr/share/datasets/fashion-mnist/"
FASHION_MNIST = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}


@dataclass(frozen=True)
class Images:
    """Labelled images.

    Attributes:
        name: of the set.
        pixels: (images, pixels), float32 in [0, 1].
        labels: (images,), int64 from 0.
    """

    name: str
    pixels: NDArray[np.float32]
    labels: NDArray[np.int64]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.labels.max()) + 1


@dataclass(frozen=True)
class Split:
    """Training images in imbalanced classes, and a test set with equally many images of each class.

    Attributes:
        counts: training images of each class.
    """

    train: Images
    test: Images
    counts: tuple[int, ...]


def load_images(name: str, cache: Path, *, progress: bool = True) -> Images:
    """Return "digits" or "fashion-mnist".

    Args:
        name: of the set.
        cache: the cache folder, where Fashion-MNIST is kept.
        progress: show a spinner when on a terminal.

    Raises:
        UserError: an unknown name, or Fashion-MNIST is not in the cache and cannot be fetched.
    """
    if name == "digits":
        return digits()
    if name == "fashion-mnist":
        return fashion_mnist(cache, progress=progress)
    raise unknown("set of images", name, IMAGE_SETS)


def digits() -> Images:
    """Return the 1,797 handwritten digits of 8 x 8 pixels that scikit-learn carries."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return Images("digits", (pixels / 16.0).astype(np.float32), labels.astype(np.int64))


def run_apt(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run apt-get in a folder; no rights beyond the user's own are needed to download."""
    command = ["apt-get", *arguments]
    return subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True, errors="replace")


def fashion_mnist(cache: Path, *, progress: bool = True, run: Runner | None = None) -> Images:
    """Return Fashion-MNIST (70,000 images of 28 x 28 pixels, the test set last), fetching it if it is not in the cache.

    Args:
        cache: the cache folder; the package's four files land in its `fashion-mnist`.
        progress: show a spinner when on a terminal.
        run: runs apt-get with the given arguments in a folder. Default: `run_apt`, if this system has apt-get.

    Raises:
        UserError: it cannot be fetched (the message says how to do it by hand), or its checksums are wrong.
    """
    folder = cache / "fashion-mnist"
    if not _complete(folder):
        by_hand = cache / "downloads" / f"{PACKAGE}.deb"
        with temporary_folder(cache / "downloads") as temporary:
            package = by_hand if by_hand.is_file() else _download(temporary, by_hand, progress, run)
            files = _unpack(package)
        with new_folder(folder, replace=True) as fresh:
            for name, content in files.items():
                write_file(fresh / name, content)
    arrays = [_read_idx((folder / name).read_bytes()) for name in FASHION_MNIST]
    pixels = np.concatenate([arrays[0], arrays[2]])
    labels = np.concatenate([arrays[1], arrays[3]])
    flat = pixels.reshape(len(pixels), -1).astype(np.float32) / np.float32(255)
    return Images("fashion-mnist", flat, labels.astype(np.int64))


def _complete(folder: Path) -> bool:
    paths = {folder / name: checksum for name, checksum in FASHION_MNIST.items()}
    return all(path.is_file() and _sha256(path.read_bytes()) == checksum for path, checksum in paths.items())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _download(folder: Path, by_hand: Path, progress: bool, run: Runner | None) -> Path:
    why = "this system has no apt-get"
    if run is not None or shutil.which("apt-get"):
        with waiting(f"Downloading {PACKAGE} ({MEGABYTES:.1f} MB)", show=progress):
            result = (run or run_apt)(["--quiet", "download", f"{PACKAGE}={VERSION}"], folder)
        packages = sorted(folder.glob("*.deb"))
        if result.returncode == 0 and packages:
            return packages[0]
        last = [line.strip() for line in result.stderr.splitlines() if line.strip()][-2:]
        why = f"apt-get says: {' / '.join(last) or 'nothing'}"
    raise UserError(
        f"Fashion-MNIST cannot be fetched: {why}. Get the Debian package {PACKAGE} {VERSION} (section main, "
        f"{MEGABYTES:.1f} MB; `apt-get update` may be needed first) and put it at {by_hand}, or use the digits, which "
        "need no download."
    )


def _unpack(package: Path) -> dict[str, bytes]:
    """Read the four files out of a Debian package and check them; nothing else of it is looked at."""
    try:
        with tarfile.open(fileobj=io.BytesIO(lzma.decompress(_ar_member(package.read_bytes(), b"data.tar.xz")))) as tar:
            members = {name: tar.extractfile(_FOLDER + name) for name in FASHION_MNIST}
            files = {name: member.read() for name, member in members.items() if member is not None}
    except (KeyError, ValueError, lzma.LZMAError, tarfile.TarError) as error:
        raise UserError(f"{package.name} is not the Debian package {PACKAGE} {VERSION}: {error}.") from None
    for name, checksum in FASHION_MNIST.items():
        actual = _sha256(files.get(name, b""))
        if actual != checksum:
            raise UserError(
                f"wrong checksum of {name} in {package.name}: expected SHA-256 {checksum}, got {actual}. Nothing was "
                "kept. Check the mirror that the package came from."
            )
    return files


def _ar_member(archive: bytes, wanted: bytes) -> bytes:
    """Return one file of an `ar` archive, the outer format of Debian packages: headers of 60 bytes, even offsets."""
    position = 8
    if archive[:position] != b"!<arch>\n":
        raise ValueError("it is no ar archive")
    while position + 60 <= len(archive):
        name, size = archive[position : position + 16].rstrip(b" /"), int(archive[position + 48 : position + 58])
        position += 60
        if name == wanted:
            return archive[position : position + size]
        position += size + size % 2
    raise ValueError(f"it holds no {wanted.decode()}")


def _read_idx(compressed: bytes) -> NDArray[np.uint8]:
    """Read the IDX format of MNIST: 0, 0, 8 (bytes), number of dimensions, each as a big-endian int32, the values."""
    content = gzip.decompress(compressed)
    dimensions = content[3]
    shape = np.frombuffer(content, ">i4", count=dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def class_counts(largest: int, ratio: float, classes: int = 10) -> tuple[int, ...]:
    """Return largest ratio^(-c / (classes - 1)) for c = 0, 1, ..., rounded, but at least 1."""
    counts = (largest * ratio ** (-c / (classes - 1)) for c in range(classes))
    return tuple(max(1, int(count + 0.5)) for count in counts)


def imbalanced_split(images: Images, *, ratio: float, largest: int, test: int, seed: int) -> Split:
    """Split into a balanced test set and a training set whose class sizes fall exponentially.

    The seed decides which images are tested and which class is how frequent. With one seed every `ratio` has the same
    test set and the same order of the classes, and the training sets are nested.

    Args:
        images: to draw from.
        ratio: size of the largest training class over that of the smallest; 1 is balanced.
        largest: training images of the most frequent class.
        test: test images of each class.
        seed: of the draw.

    Raises:
        UserError: a class has fewer than `largest` + `test` images, or `ratio` is below 1.
    """
    if ratio < 1:
        raise UserError(f"the imbalance ratio must be at least 1, got {ratio:g}.")
    available = np.bincount(images.labels)
    if largest + test > available.min():
        raise UserError(
            f"{images.name} has a class of {available.min()} images, too few for {largest} to train on and {test} to "
            "test: lower one of them."
        )
    random = np.random.default_rng(seed)
    ranks = random.permutation(images.classes)
    counts = tuple(class_counts(largest, ratio, images.classes)[rank] for rank in ranks)
    train_indices, test_indices = [], []
    for label, count in enumerate(counts):
        members = random.permutation(np.flatnonzero(images.labels == label))
        test_indices.append(members[:test])
        train_indices.append(members[test : test + count])
    train, tested = (
        Images(images.name, images.pixels[index], images.labels[index])
        for index in (np.concatenate(train_indices), np.concatenate(test_indices))
    )
    return Split(train, tested, counts)
