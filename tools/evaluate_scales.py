"""Evaluate finished weights at several input sizes: `sed.cli.evaluate_scales`, which says how."""

from sed.cli.evaluate_scales import main
from sed.cli.last_resort import last_resort

if __name__ == "__main__":
    with last_resort():
        main()
