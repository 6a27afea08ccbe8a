"""Detect objects in images: `sed.cli.predict`, which says how."""

from sed.cli.last_resort import last_resort
from sed.cli.predict import main

if __name__ == "__main__":
    with last_resort():
        main()
