"""Check the data of a config before training: `sed.cli.check`, which says how."""

from sed.cli.check import main
from sed.cli.last_resort import last_resort

if __name__ == "__main__":
    with last_resort():
        main()
