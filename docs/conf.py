"""The documentation site: `make docs` builds it; see CONTRIBUTING.md."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

import fastgd

project = "fastgd"
author = "The fastgd developers"
copyright = author
version = release = fastgd.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "numpydoc",
    "sphinx_design",
    "sphinx_copybutton",
    # In docs/_ext: code that is run, formulas, links, the catalogue, and what the site is held to.
    "running",
    "formulas",
    "repository",
    "optimizer_pages",
    "checked",
]
templates_path = ["_templates"]
exclude_patterns = ["_ext", "_templates"]
default_role = "py:obj"  # as docstrings write `SGD`

myst_enable_extensions = ["colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

autosummary_generate = True
autodoc_typehints = "none"  # numpydoc says them in words
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
viewcode_line_numbers = True
copybutton_exclude = ".linenos, .gp, .go"

# numpydoc links attributes by their bare names, which several classes have.
suppress_warnings = ["ref.python"]
html_context = {"default_mode": "auto"}
html_theme = "pydata_sphinx_theme"
html_title = "fastgd"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": "fastgd"},
    "navbar_align": "left",
    "header_links_before_dropdown": 8,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "icon_links": [
        {
            "name": "Source",
            "url": "https://github.com/fastgd/fastgd",
            "icon": "fa-brands fa-github",
        }
    ],
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_sidebars = {"start": [], "choose": []}
