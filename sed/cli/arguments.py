"""The part of a command line that the commands on a config share."""

from __future__ import annotations

import argparse


def config_parser(description: str | None, config_help: str | None = None) -> argparse.ArgumentParser:
    """A parser with --config-file and, at the end of the line, KEY VALUE words that override the config (`opts`)."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help=config_help)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides")
    return parser
