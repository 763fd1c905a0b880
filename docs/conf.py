"""The site of the documentation: `python -m sphinx -W docs build/docs`. No page needs a network to be built."""

import dataclasses
import inspect
from typing import Any

import fusedstep

project = "fusedstep"
author = "the authors of fusedstep"
version = release = fusedstep.__version__

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
default_role = "literal"  # numpydoc writes names of arguments in single backquotes
nitpicky = False

add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings name all types
maximum_signature_line_length = 88
numpydoc_show_class_members = False

html_theme = "pydata_sphinx_theme"
html_title = "fusedstep"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_sidebars = {page: [] for page in ("index", "formulas", "changelog")}
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": {"index": [], "**": ["page-toc"]},
    "footer_start": ["copyright"],
    "footer_end": [],
}
copyright = "the authors of fusedstep; Apache License 2.0"  # noqa: A001 (Sphinx asks for this name)


def is_an_optimizer(obj: Any) -> bool:
    """Return whether an object is a class of optimizers, whose options are those of `Optimizer`."""
    base = fusedstep.optimizers.Optimizer
    return inspect.isclass(obj) and issubclass(obj, base) and obj is not base


def short_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Leave out what is said of the options in every class: on the site, a page of their own says it once."""
    del app, what, name, options
    if is_an_optimizer(obj):
        start, end = lines.index("grad_scale : float or callable"), lines.index("Notes")
        lines[start:end] = ["**options", "    Those of `Optimizer`.", ""]


def short_signature(app: Any, what: str, name: str, obj: Any, options: Any, signature: str, returns: str) -> Any:
    """Show what is special to an optimizer; what all of them share stands as ``**options``, as in the docstrings."""
    del app, what, name, options, signature, returns
    if not is_an_optimizer(obj):
        return None
    base = fusedstep.optimizers.Optimizer
    parameters = inspect.signature(obj).parameters.values()
    shared = {each.name: each.default for each in dataclasses.fields(base)}
    own = [each for each in parameters if each.name not in shared or each.default != shared[each.name]]
    own = [each.replace(annotation=each.empty) for each in own if each.name != "overrides"]
    return f"({', '.join(map(str, own))}, **options)", None


def setup(app: Any) -> None:
    """Connect functions with the events of Sphinx in which they are called, the docstring before numpydoc reads it."""
    app.connect("autodoc-process-docstring", short_docstring, priority=0)
    app.connect("autodoc-process-signature", short_signature)
