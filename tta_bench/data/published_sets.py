"""The published data sets that ``tta-bench data get`` knows: addresses, sizes, checksums, and where these are listed.

A file has an address here only where two public places list the same checksum for it; where one does, or a login is
needed, the set says what to do by hand. ``python -m tta_bench.data.published_sets`` prints the table of docs/data.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_TFDS = "tensorflow/datasets: tensorflow_datasets"
_UNCERTAINTY = "ENSTA-U2IS-AI/torch-uncertainty: torch_uncertainty/datasets/classification"
_OOD = "kkirchheim/pytorch-ood: src/pytorch_ood/dataset/img"
_RAI = "mit-ll-responsible-ai/responsible-ai-toolbox: src/rai_toolbox/datasets"
_JULIA = "JuliaML/MLDatasets.jl: src/datasets/vision"
_HENDRYCKS = "https://people.eecs.berkeley.edu/~hendrycks"
_V2 = "https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main"
_NOT_OURS = "the images remain their owners'"


@dataclass(frozen=True)
class Remote:
    """A file with a public address.

    Attributes:
        name: of the file.
        url: its address.
        bytes: its size.
        checksum: ``md5:…`` or ``sha256:…``, in hexadecimal.
        seen: public places that list this checksum, ``repository: path``.
    """

    name: str
    url: str
    bytes: int
    checksum: str
    seen: Sequence[str]


@dataclass(frozen=True)
class Download:
    """A published data set as it is fetched; what it holds is a :class:`tta_bench.data.reference.PublishedSet`.

    Attributes:
        title: its name.
        licence: as its authors state it.
        page: its authors' page.
        line: a suite's line, with ``{root}`` for the folder that it names.
        variable: the environment variable that shipped suites have for that folder, or empty.
        root: that folder, below the one that is given to ``tta-bench data get``.
        layout: what it looks like.
        files: what is fetched: archives, or arrays as they are; empty: see ``by_hand``.
        folder: where they go, below the given folder; ``.`` where an archive has one folder at its top.
        by_hand: what to do where there is no address.
    """

    title: str
    licence: str
    page: str
    line: str
    variable: str
    root: str
    layout: str
    files: Sequence[Remote] = ()
    folder: str = "."
    by_hand: str = ""

    @property
    def bytes(self) -> int:
        """Of all its files."""
        return sum(remote.bytes for remote in self.files)


def _cifar_binary(classes: int, size: int, sha256: str, folder: str, layout: str) -> Download:
    name = f"cifar-{classes}-binary.tar.gz"
    seen = (f"{_TFDS}/url_checksums/cifar{classes}.txt", f"{_JULIA}/cifar{classes}.jl")
    remote = Remote(name, f"https://www.cs.toronto.edu/~kriz/{name}", size, f"sha256:{sha256}", seen)
    line = f"data: {{{{kind: cifar_c, root: CIFAR-{classes}-C, classes: {classes}, archive: {{root}}}}}}"
    return Download(
        f"CIFAR-{classes}, binary version", "none stated", "https://www.cs.toronto.edu/~kriz/cifar.html", line,
        "CIFAR10_BINARY" if classes == 10 else "", folder, layout, [remote],
    )  # fmt: skip


def _cifar_c(classes: int, record: int, size: int, md5: str) -> Download:
    name = f"CIFAR-{classes}-C.tar"
    seen = (f"{_UNCERTAINTY}/cifar/cifar_c.py", f"{_OOD}/cifar.py", f"{_RAI}/cifar_corruptions.py")
    remote = Remote(name, f"https://zenodo.org/record/{record}/files/{name}", size, f"md5:{md5}", seen)
    return Download(
        f"CIFAR-{classes}-C", "CC BY 4.0", f"https://zenodo.org/records/{record}",
        f"data: {{{{kind: cifar_c, root: {{root}}, classes: {classes}}}}}", "CIFAR10_C" if classes == 10 else "",
        f"CIFAR-{classes}-C", "19 corruptions `<corruption>.npy`, `labels.npy`", [remote],
    )  # fmt: skip


def _cifar10_1(part: str, size: int, sha256: str) -> Remote:
    name = f"cifar10.1_{part}.npy"
    second = {
        "v4": "izhan19717/The-Geometry-of-Randomized-Smoothing-on-Feasible-Sets: README.md",
        "v6": "FriesEleven/image-classification: src/image_classification/data/cifar10_1.py",
    }[part[:2]]
    url = f"https://github.com/modestyachts/CIFAR-10.1/raw/master/datasets/{name}"
    return Remote(name, url, size, f"sha256:{sha256}", (f"{_TFDS}/url_checksums/cifar10_1.txt", second))


def _imagenet_c(part: str, size: int, md5: str) -> Remote:
    url = f"https://zenodo.org/record/2235448/files/{part}.tar"
    return Remote(
        f"{part}.tar", url, size, f"md5:{md5}", (f"{_UNCERTAINTY}/imagenet/imagenet_c.py", f"{_OOD}/imagenet.py")
    )


def _imagenet_v2(variant: str, size: int, sha256: str) -> Remote:
    name = f"imagenetv2-{variant}.tar.gz"
    seen = (
        f"{_TFDS}/datasets/imagenet_v2/checksums.tsv",
        "8ga-tech/RepViT-Reproduction: report/IMAGENETV2_PROVENANCE.md",
    )
    return Remote(name, f"{_V2}/{name}", size, f"sha256:{sha256}", seen)


def _hendrycks(letter: str, page: str, count: int, size: int, sha256: str, second: str) -> Download:
    name = f"imagenet-{letter}"
    seen = (f"{_TFDS}/url_checksums/imagenet_{letter}.txt", second)
    return Download(
        f"ImageNet-{letter.upper()}", f"MIT; {_NOT_OURS}", f"https://github.com/hendrycks/{page}",
        f"data: {{{{kind: imagenet, imagenet_{letter}: {{root}}}}}}", f"IMAGENET_{letter.upper()}", name,
        f"200 classes `<wnid>/<image>`, {count:,} images",
        [Remote(f"{name}.tar", f"{_HENDRYCKS}/{name}.tar", size, f"sha256:{sha256}", seen)],
    )  # fmt: skip


SETS: dict[str, Download] = {
    "cifar10": _cifar_binary(
        10, 170_052_171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        "cifar-10-batches-bin", "`data_batch_1.bin` to `data_batch_5.bin`, `test_batch.bin`",
    ),
    "cifar100": _cifar_binary(
        100, 168_513_733, "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        "cifar-100-binary", "`train.bin`, `test.bin`",
    ),
    "cifar10_c": _cifar_c(10, 2535967, 2_918_471_680, "56bf5dcef84df0e2308c6dcbcbbd8499"),
    "cifar100_c": _cifar_c(100, 3555552, 2_918_473_216, "11f0ed0f1191edbf9fa23466ae6021d3"),
    "cifar10_1": Download(
        "CIFAR-10.1", f"MIT; {_NOT_OURS}", "https://github.com/modestyachts/CIFAR-10.1",
        "data: {{kind: cifar10_1, root: {root}}}", "", "CIFAR-10.1",
        "`cifar10.1_v4_data.npy`, `cifar10.1_v4_labels.npy`, and the same of v6",
        [
            _cifar10_1("v4_data", 6_208_640, "5aaedc268df8f4cffca2ac0cf9e608ae1897a8cddb630c7a850a2ea8f6558e75"),
            _cifar10_1("v4_labels", 8_212, "1f9544300ded199539b6662364ce7fe6c2e1ea9f87408f06db4b1a6184cffb18"),
            _cifar10_1("v6_data", 6_144_128, "2997188e5816f5bd545dc77771b6227828c28146049fcecf3fa10775474cacc6"),
            _cifar10_1("v6_labels", 8_128, "ae40beda001693674edc94d925ee8268cfe68905f8f9aff800c8dcdfcd6c9448"),
        ],
        "CIFAR-10.1",
    ),
    "imagenet": Download(
        "ImageNet, validation images", "ImageNet's terms of access", "https://image-net.org/download-images",
        "data: {{kind: imagenet, source: {root}}}", "IMAGENET_VAL", "val", "1,000 classes `<wnid>/<image>`, 50,000 images",
        by_hand="log in at https://image-net.org/download-images, and fetch ILSVRC2012_img_val.tar (6,744,924,160 bytes, "
        "MD5 29b22e2961454d5413ddabcf34fc5622) and ILSVRC2012_devkit_t12.tar.gz (MD5 fa75699e90414af021442c21a62c3abf) "
        "into DIR; torchvision verifies both and makes the class folders in DIR/val:\n"
        '    cd DIR && python -c "import tta_bench.torchvision_repair, torchvision; '
        "torchvision.datasets.ImageNet('.', 'val')\"",
    ),
    "imagenet_c": Download(
        "ImageNet-C", "CC BY 4.0", "https://zenodo.org/records/2235448",
        "data: {{kind: imagenet_c, root: {root}}}", "IMAGENET_C", "ImageNet-C",
        "19 corruptions `<corruption>/<severity>/<wnid>/<image>`, 50,000 images each and severity",
        [
            _imagenet_c("noise", 22_565_673_785, "e80562d7f6c3f8834afb1ecf27252745"),
            _imagenet_c("blur", 7_112_704_951, "2d8e81fdd8e07fef67b9334fa635e45c"),
            _imagenet_c("weather", 12_797_438_995, "33ffea4db4d93fe4a428c40a6ce0c25d"),
            _imagenet_c("digital", 7_757_510_705, "89157860d7b10d5797849337ca2e5c03"),
            _imagenet_c("extra", 15_789_490_144, "d492dfba5fc162d8ec2c3cd8ee672984"),
        ],
        "ImageNet-C",
    ),
    "imagenet_r": _hendrycks(
        "r", "imagenet-r", 30_000, 2_191_079_936, "18c6bf493b39a0d975d48e587437f562caab9c52ae6327dcfa9dd8eb54aa1b52",
        "bruu0uu/stable-datasets: stable_datasets/images/imagenet_r.py",
    ),
    "imagenet_a": _hendrycks(
        "a", "natural-adv-examples", 7_500, 687_552_512,
        "3bb3632277e6ba6392ea64c02ddbf4dd2266c9caffd6bc09c9656d28f012589e", "95616ARG/PRDNN: README.md",
    ),
    "imagenet_v2": Download(
        "ImageNet-V2", f"MIT; {_NOT_OURS}", "https://github.com/modestyachts/ImageNetV2",
        "data: {{kind: imagenet, imagenet_v2: {root}}}", "IMAGENET_V2", "ImageNetV2",
        "three variants `imagenetv2-<variant>-format-val/<number>/<image>`, 10,000 images each",
        [
            _imagenet_v2(
                "matched-frequency", 1_264_079_360, "f0c37fdf925916b19ea1323cd9a2208cdb6959ba2c32eef2a7fc393835c9ca7c"
            ),
            _imagenet_v2(
                "threshold0.7", 1_249_906_176, "32142bfe998f9cfa4141be691f6a80eeb1e27b24bd532a668eb08c26d98897a2"
            ),
            _imagenet_v2(
                "top-images", 1_245_927_936, "85e4ace30f3f0d660152062254b8759dda66267b27f7ec0fd8d5768f1073a04b"
            ),
        ],
        "ImageNetV2",
    ),
    "imagenet_sketch": Download(
        "ImageNet-Sketch", f"MIT; {_NOT_OURS}", "https://github.com/HaohanWang/ImageNet-Sketch",
        "data: {{kind: imagenet, imagenet_sketch: {root}}}", "IMAGENET_SKETCH", "sketch",
        "1,000 classes `<wnid>/<image>`, 50,889 images",
        by_hand="only one public place lists a checksum, so none is verified here; fetch ImageNet-Sketch.zip "
        "(7,593,573,012 bytes; SHA-256 by tensorflow/datasets alone: "
        "4d3ce6b82a7c48aabf14aeac105eb533e75707f152cc858f55bfc022031a72ed) from\n"
        "    https://huggingface.co/datasets/songweig/imagenet_sketch/resolve/main/data/ImageNet-Sketch.zip\n"
        "  and unpack it: unzip ImageNet-Sketch.zip -d DIR",
    ),
    "imagenet_c_bar": Download(
        "ImageNet-C-bar", "see the page", "https://github.com/facebookresearch/augmentation-corruption",
        "data: {{kind: imagenet, imagenet_c_bar: {root}}}", "", "ImageNet-C-bar",
        "10 corruptions `<corruption>/<severity>/<wnid>/<image>`",
        by_hand="its authors' page has the images, or the code that makes them from the validation images",
    ),
    "imagenet_3dcc": Download(
        "ImageNet-3DCC", "see the page", "https://github.com/EPFL-VILAB/3DCommonCorruptions",
        "data: {{kind: imagenet, imagenet_3dcc: {root}}}", "", "ImageNet-3DCC",
        "12 corruptions `<corruption>/<severity>/<wnid>/<image>`",
        by_hand="its authors' page has the script that fetches the images",
    ),
}  # fmt: skip


def _rows() -> Iterator[str]:
    yield "| name | licence | file | bytes | checksum, and where it is listed |"
    yield "| --- | --- | --- | --- | --- |"
    for name, published in SETS.items():
        head = f"`{name}`: [{published.title}]({published.page}) | {published.licence}"
        if not published.files:
            yield f"| {head} | by hand | | `tta-bench data get {name} DIR` says how |"
        for remote in published.files:
            kind, _, value = remote.checksum.partition(":")
            seen = "; ".join(remote.seen)
            yield f"| {head} | [{remote.name}]({remote.url}) | {remote.bytes:,} | {kind.upper()} {value}: {seen} |"
            head = " |"


def markdown() -> str:
    """The table of docs/data.md."""
    return "\n".join(_rows())


if __name__ == "__main__":
    print(markdown())
