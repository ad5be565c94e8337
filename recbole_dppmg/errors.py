"""Errors that a user can act on; the command line prints them in one line and exits with code 2."""


class DPPMGError(Exception):
    """Base of every expected error. The message names what is at fault and what to do."""


class ConfigError(DPPMGError):
    """A key is unknown, mistyped or out of range."""


class DataError(DPPMGError):
    """A dataset, a row, an item's text or an image cannot be used."""


class AssetError(DPPMGError):
    """A pretrained model cannot be found or fails its checksum."""


class StorageError(DPPMGError):
    """Something cannot be written, e.g. as the disk is full."""


class BundleError(DPPMGError):
    """A bundle is incomplete, damaged or of another version."""
