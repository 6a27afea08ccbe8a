"""Every option, declared once: frozen dataclasses whose fields carry default, meaning, choices and range.

A field's name is its key in the config (`SEDOptions.lambda_scale` is SED.LAMBDA_SCALE); a dataclass within a dataclass
is a section within a section. `sed.defaults` makes the config, its checks and docs/options.md from them. Methods take
such a dataclass as their options. Standard library only, so that every package can import it.
"""

from sed.options.option import Row, from_section, option, rows, section
from sed.options.root import Options

__all__ = ["Options", "Row", "from_section", "option", "rows", "section"]
