"""The installed version, which answers name as their system fingerprint."""

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str:
    """Version of the distribution, `0+source` when it runs from a bare source tree."""
    try:
        return version("trimtab")
    except PackageNotFoundError:
        return "0+source"
