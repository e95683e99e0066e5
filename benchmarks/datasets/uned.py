"""Rows of UnED's info files, and the sources of its images.

Counts from arXiv 2309.01858 and its reference code (nikosips/Universal-Image-Embeddings).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Source:
    """Rows of one domain, and the source of its images."""

    train: int
    val: int
    test: int
    fetch: str  # archives and their source
    folders: str  # below data/images
    indexes: Mapping[str, int] = field(default_factory=dict)  # rows of gallery splits

    @property
    def rows(self) -> dict[str, int]:
        """Rows by split."""
        return {"train": self.train, "val": self.val, "test": self.test, **self.indexes}


INFO_FILES = (
    "info files: info_files.zip from https://cmp.felk.cvut.cz/univ_emb, unpacked in data; "
    "the page also links the images of every domain"
)

DOMAINS: Mapping[str, Source] = {
    "cars": Source(
        6_346, 1_708, 8_131, "Cars196, Stanford's images of 196 car models: car_ims", "cars/car_ims"
    ),
    "sop": Source(
        48_942,
        10_609,
        60_502,
        "Stanford Online Products, from the CVGL group's page: its twelve folders",
        "sop/*_final",
    ),
    "inshop": Source(
        20_897,
        4_982,
        14_218,
        "DeepFashion's In-shop Clothes Retrieval, on request from the MMLab of CUHK: img",
        "deepfashion/inshop/img",
        {"index": 12_612},
    ),
    "inat": Source(
        273_929,
        51_917,
        136_093,
        "iNaturalist 2018, from the competition's page (visipedia/inat_comp): train_val2018",
        "inat/iNaturalist/train_val2018",
    ),
    "met": Source(
        397_121,
        129,
        1_003,
        "The Met dataset, from its authors' page at CTU Prague: the training and all three test archives",
        "met/MET, met/test_met, met/test_noart, met/test_other",
        {"index": 397_121, "small_index": 38_307},
    ),
    "gldv2": Source(
        1_422_914,
        157_556,
        1_129,
        "Google Landmarks v2, from the CVDF's mirror (cvdfoundation/google-landmark): index, test and train",
        "gldv2/images/index, gldv2/images/test, gldv2/images/train",
        {"index": 761_757},
    ),
    "food2k": Source(
        472_349,
        49_323,
        9_979,
        "Food2K, on request from its authors at ICT, Chinese Academy of Sciences: Food2k_complete",
        "food2k/Food2k_complete",
    ),
    "rp2k": Source(
        188_724,
        17_185,
        10_931,
        "RP2K, shelf images from Pinlan's page: all",
        "rp2k/all/train, rp2k/all/test",
    ),
}
