"""Every option, declared once: frozen dataclasses whose fields carry default, meaning, choices and range.

A field is a key of the config by its name (`SEDOptions.lambda_scale` is SED.LAMBDA_SCALE), a dataclass in a dataclass
is a section in a section. `sed.defaults` makes the config, its checks and docs/options.md of them; what a method or a
detector is built with is such a dataclass. Standard library only: every room may read it.
"""

from sed.options.option import Row, from_section, option, rows, section
from sed.options.root import Options

__all__ = ["Options", "Row", "from_section", "option", "rows", "section"]
