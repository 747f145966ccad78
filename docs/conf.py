"""Sphinx configuration: every code cell is executed, nothing is fetched."""

import os
import re
from pathlib import Path

from bayeskit import __version__

ROOT = Path(__file__).resolve().parent.parent

# The kernels that execute the pages import the same package as this file, installed or not.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# numpyro's progress bar warns where Jupyter's widgets are not installed.
os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")
# The examples are small: compiling takes longer than running, so compile plainly, and once for all
# pages that fit problems of the same shapes.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / "docs" / "_build" / "jax-cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

project = "bayeskit"
author = "The bayeskit developers"
copyright = "The bayeskit developers, Apache License 2.0"
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build", "jupyter_execute"]

html_theme = "furo"
html_title = f"bayeskit {release}"
html_show_sourcelink = False

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_timeout = 300
# A warning of the package is part of what a page shows; others are printed by libraries.
nb_output_stderr = "show"
nb_merge_streams = True

# Types are in the docstrings; annotations are jaxtyping's, which Sphinx cannot link.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autosummary_generate = False
napoleon_google_docstring = False
napoleon_use_rtype = False

_TABLES = re.compile(r"<!-- benchmark results of (\w+) -->")
_NO_TABLES = "No benchmark results are committed yet; `python -m benchmarks` makes them.\n"


def include_benchmarks(app, page, source):
    """Put the committed tables of a family in place of the mark, headings lowered."""
    mark = _TABLES.search(source[0])
    if mark is None:
        return
    files = sorted((ROOT / "benchmarks" / "results").glob(f"{mark[1]}.*.md"))
    parts = []
    for file in files:
        app.env.note_dependency(str(file))
        parts.append(re.sub(r"^(#{1,4})(?= )", r"##\1", file.read_text(), flags=re.MULTILINE))
    source[0] = source[0].replace(mark[0], "\n\n".join(parts) or _NO_TABLES)


def escape_mathematics(app, what, name, obj, options, lines):
    """Keep ``|x|`` and ``(*batch, n)`` of docstrings from being read as markup.

    They have no emphasis and no substitutions; code in backticks is left alone.
    """
    for i, line in enumerate(lines):
        parts = re.split(r"(``.*?``|`.*?`|:math:`.*?`)", line)
        parts[::2] = [re.sub(r"(?<!\\)(\*(?=\S)|\|)", r"\\\1", part) for part in parts[::2]]
        lines[i] = "".join(parts)


def setup(app):
    """Connect what is above."""
    app.connect("source-read", include_benchmarks)
    # Before napoleon, which adds markup of its own.
    app.connect("autodoc-process-docstring", escape_mathematics, priority=400)
