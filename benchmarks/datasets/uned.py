"""Rows of UnED's info files, and the sources of its images.

Counts from arXiv 2309.01858 and its reference code (nikosips/Universal-Image-Embeddings).
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """Rows of one domain, and the source of its images."""

    rows: dict[str, int]  # by split
    fetch: str  # archives and their source
    folders: str  # below data/images


INFO_FILES = (
    "info files: info_files.zip from https://cmp.felk.cvut.cz/univ_emb, unpacked in data; "
    "the page also links the images of every domain"
)

DOMAINS: Mapping[str, Source] = {
    "cars": Source(
        {"train": 6_346, "val": 1_708, "test": 8_131},
        "Cars196, Stanford's images of 196 car models: car_ims",
        "cars/car_ims",
    ),
    "sop": Source(
        {"train": 48_942, "val": 10_609, "test": 60_502},
        "Stanford Online Products, from the CVGL group's page: its twelve folders",
        "sop/*_final",
    ),
    "inshop": Source(
        {"train": 20_897, "val": 4_982, "test": 14_218, "index": 12_612},
        "DeepFashion's In-shop Clothes Retrieval, on request from the MMLab of CUHK: img",
        "deepfashion/inshop/img",
    ),
    "inat": Source(
        {"train": 273_929, "val": 51_917, "test": 136_093},
        "iNaturalist 2018, from the competition's page (visipedia/inat_comp): train_val2018",
        "inat/iNaturalist/train_val2018",
    ),
    "met": Source(
        {"train": 397_121, "val": 129, "test": 1_003, "index": 397_121, "small_index": 38_307},
        "The Met dataset, from its authors' page at CTU Prague: the training and all three test archives",
        "met/MET, met/test_met, met/test_noart, met/test_other",
    ),
    "gldv2": Source(
        {"train": 1_422_914, "val": 157_556, "test": 1_129, "index": 761_757},
        "Google Landmarks v2, from the CVDF's mirror (cvdfoundation/google-landmark): index, test and train",
        "gldv2/images/index, gldv2/images/test, gldv2/images/train",
    ),
    "food2k": Source(
        {"train": 472_349, "val": 49_323, "test": 9_979},
        "Food2K, on request from its authors at ICT, Chinese Academy of Sciences: Food2k_complete",
        "food2k/Food2k_complete",
    ),
    "rp2k": Source(
        {"train": 188_724, "val": 17_185, "test": 10_931},
        "RP2K, shelf images from Pinlan's page: all",
        "rp2k/all/train, rp2k/all/test",
    ),
}
