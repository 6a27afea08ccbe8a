"""The entry scripts. A package only so that tests find these: Detectron2's wheel installs a package `tools` too."""
