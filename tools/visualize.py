"""Draw data, training batches or predictions: `sed.cli.visualize`, which says how."""

from sed.cli.last_resort import last_resort
from sed.cli.visualize import main

if __name__ == "__main__":
    with last_resort():
        main()
