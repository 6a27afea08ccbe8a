"""Train or evaluate a detector: `sed.cli.train_net`, which says how."""

from sed.cli.last_resort import last_resort
from sed.cli.train_net import main, parse
from sed.runtime.launch import launch_main

if __name__ == "__main__":
    with last_resort():
        launch_main(main, parse())
