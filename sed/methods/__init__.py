"""Training methods, one file each. A method is a module that owns student and teacher and turns batches into losses.

    method = SEDPlus(sed.detectors.wrap(model), Schedule(burn_in=500, max_iter=2000, first_drop=1600)).train()

How a training loop calls it: `sed.methods.base`. A complete loop: examples/plain_loop.py.
"""

from sed.methods.base import Method, Schedule
from sed.methods.build import build_method, method_from_config
from sed.methods.pseudo_label import PseudoLabel
from sed.methods.sed import SED
from sed.methods.sed_plus import SEDPlus
from sed.methods.supervised import Supervised
from sed.options.methods import EMA, PseudoLabelOptions, ReweightOptions, SEDOptions, SEDPlusOptions

__all__ = [
    "EMA",
    "SED",
    "Method",
    "PseudoLabel",
    "PseudoLabelOptions",
    "ReweightOptions",
    "SEDOptions",
    "SEDPlus",
    "SEDPlusOptions",
    "Schedule",
    "Supervised",
    "build_method",
    "method_from_config",
]
