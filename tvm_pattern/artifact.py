"""A compiled library and its manifest: run it, save it, load it again.

``lib.export("m.so")`` writes the shared library and beside it ``m.so.json``, the manifest: what the
library takes and gives, which machine it needs, which versions built it, the report of the
compilation and the SHA-256 of the library file. ``load`` checks all of it before any code runs.
"""

from .library import Library
from .loading import load
from .manifest import MANIFEST_SCHEMA, ArtifactError, Manifest, manifest_path
from .publish import manifest_of

__all__ = [
    "MANIFEST_SCHEMA",
    "ArtifactError",
    "Library",
    "Manifest",
    "load",
    "manifest_of",
    "manifest_path",
]
