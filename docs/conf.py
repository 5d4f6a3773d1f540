"""The documentation site: `make docs-site`."""

import re
from importlib import metadata
from pathlib import Path

from sphinx.util import logging

project = "tvm-pattern"
version = release = metadata.version("tvm-pattern")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = "tvm-pattern"
exclude_patterns = ["_build"]

myst_heading_anchors = 4
myst_enable_extensions = ["deflist"]

autodoc_typehints = "none"  # the docstrings say types, with shapes and units
autodoc_member_order = "bysource"
napoleon_numpy_docstring = True
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

_ROOT = Path(__file__).resolve().parent.parent
_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)(#[^)]*)?\)")


def _name_files_of_the_repository(app, page, source):
    """Links to what lies outside of the site become names; what is not there is warned of."""

    def name(link):
        text, path = link[1], link[2]
        if not (_ROOT / path).exists():
            logging.getLogger(__name__).warning("%s links to %s, which is not there", page, path)
        return text if path in text else f"{text} (`{path}`)"

    source[0] = _OUTSIDE.sub(name, source[0])


def setup(app):
    app.connect("source-read", _name_files_of_the_repository)
