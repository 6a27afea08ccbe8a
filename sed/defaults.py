"""Every configuration key, its default, its meaning and what it may be: the one place that holds defaults.

Keys that Detectron2 has keep its names and meaning; ours stand beside them with the paper's symbol. How a config is
read: sed.config.
"""

from __future__ import annotations

from math import inf

from fvcore.common.config import CfgNode


def get_cfg() -> CfgNode:
    """A fresh, mutable config of the defaults."""
    c = CfgNode()
    c.VERSION = 2
    c.ENGINE = "auto"  # auto | detectron2 | torchvision
    c.OUTPUT_DIR = "./output"
    c.SEED = 0  # weights, data order and augmentation all follow from it

    # ---------------------------------------------------------------- model
    c.MODEL = CfgNode()
    c.MODEL.META_ARCHITECTURE = "ScaleConsistentRCNN"  # | ScaleConsistentRetinaNet | ScaleConsistentDETR
    c.MODEL.DEVICE = "auto"  # auto (cuda where there is one) | cuda | cpu
    c.MODEL.WEIGHTS = ""  # "" (from scratch) | imagenet | coco (torchvision's own enums) | a local file
    c.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]  # RGB, 0..255
    c.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]
    c.MODEL.BACKBONE = CfgNode()
    c.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"  # | build_small_fpn_backbone (METHOD 12)
    c.MODEL.BACKBONE.FREEZE_AT = 2  # 0: nothing, 1: stem, 2: stem and first stage, ...
    c.MODEL.RESNETS = CfgNode()
    c.MODEL.RESNETS.DEPTH = 50  # 18 | 50
    c.MODEL.RESNETS.NORM = "FrozenBN"  # FrozenBN | BN | GN
    c.MODEL.FPN = CfgNode()
    c.MODEL.FPN.OUT_CHANNELS = 256
    c.MODEL.ANCHOR_GENERATOR = CfgNode()
    c.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]  # one list a level
    c.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[0.5, 1.0, 2.0]]  # one list for all levels, or one a level
    c.MODEL.RPN = CfgNode()
    c.MODEL.RPN.PRE_NMS_TOPK_TRAIN = 2000
    c.MODEL.RPN.PRE_NMS_TOPK_TEST = 1000
    c.MODEL.RPN.POST_NMS_TOPK_TRAIN = 1000
    c.MODEL.RPN.POST_NMS_TOPK_TEST = 1000
    c.MODEL.RPN.NMS_THRESH = 0.7
    c.MODEL.RPN.BATCH_SIZE_PER_IMAGE = 256
    c.MODEL.ROI_HEADS = CfgNode()
    c.MODEL.ROI_HEADS.NUM_CLASSES = 80  # K
    c.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 512
    c.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.05
    c.MODEL.ROI_HEADS.NMS_THRESH_TEST = 0.5
    c.MODEL.ROI_BOX_HEAD = CfgNode()
    c.MODEL.ROI_BOX_HEAD.FC_DIM = 1024
    c.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    c.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO = 2
    c.MODEL.RETINANET = CfgNode()
    c.MODEL.RETINANET.NUM_CLASSES = 80  # K
    c.MODEL.RETINANET.SCORE_THRESH_TEST = 0.05
    c.MODEL.RETINANET.NMS_THRESH_TEST = 0.5
    c.MODEL.RETINANET.TOPK_CANDIDATES_TEST = 1000
    c.MODEL.DETR = CfgNode()  # the DETR family; of the other MODEL keys WEIGHTS, PIXEL_* and BACKBONE.FREEZE_AT count
    c.MODEL.DETR.CONFIG = ""  # which model: a config.json, a folder with one, or a name on the Hugging Face hub
    c.MODEL.DETR.NUM_CLASSES = 80  # K

    # ---------------------------------------------------------------- data
    c.DATASETS = CfgNode()
    c.DATASETS.TRAIN = ()  # labelled: names, or paths of COCO json files
    c.DATASETS.UNLABELED = ()  # names, COCO json files or folders of images; empty: split DATASETS.TRAIN
    c.DATASETS.TEST = ()
    c.DATASETS.IMAGE_ROOT = ""  # folder of the images of a json given by path; "": looked for beside the json
    c.DATALOADER = CfgNode()
    c.DATALOADER.NUM_WORKERS = 4
    c.DATALOADER.ASPECT_RATIO_GROUPING = True
    c.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True  # labelled images without any box
    c.INPUT = CfgNode()
    c.INPUT.MIN_SIZE_TRAIN = (640, 800)  # short side, drawn from the range
    c.INPUT.MAX_SIZE_TRAIN = 1333
    c.INPUT.MIN_SIZE_TEST = 800
    c.INPUT.MAX_SIZE_TEST = 1333
    c.INPUT.RANDOM_FLIP = "horizontal"  # horizontal (p = 0.5) | none
    c.INPUT.CUTOUT_FILL = "random"  # random (noise per pixel) | constant
    c.INPUT.GEOMETRIC = "none"  # none | randaugment (A.2: rotate, translate or shear, before the views part)
    c.INPUT.GEOMETRIC_LEVEL = 5.0  # of RandAugment's 10

    # ---------------------------------------------------------------- optimisation
    c.SOLVER = CfgNode()
    c.SOLVER.OPTIMIZER = "SGD"  # SGD | AdamW
    c.SOLVER.BASE_LR = 0.01
    c.SOLVER.BACKBONE_MULTIPLIER = 1.0
    c.SOLVER.MOMENTUM = 0.9
    c.SOLVER.WEIGHT_DECAY = 0.0001
    c.SOLVER.WEIGHT_DECAY_NORM = 0.0
    c.SOLVER.MAX_ITER = 180000
    c.SOLVER.LR_SCHEDULER_NAME = "WarmupMultiStepLR"  # | WarmupCosineLR
    c.SOLVER.STEPS = (120000, 160000)
    c.SOLVER.GAMMA = 0.1
    c.SOLVER.WARMUP_ITERS = 1000
    c.SOLVER.WARMUP_FACTOR = 0.001
    c.SOLVER.ACCUMULATE = 1  # batches a step
    c.SOLVER.REFERENCE_WORLD_SIZE = 0  # processes that this config is meant for; with others it is scaled; 0: never
    c.SOLVER.CHECKPOINT_PERIOD = 5000
    c.SOLVER.CHECKPOINTS_KEPT = 2
    c.SOLVER.AMP = CfgNode()
    c.SOLVER.AMP.ENABLED = False
    c.SOLVER.AMP.DTYPE = "bfloat16"  # bfloat16 | float16 (with loss scaling)
    c.SOLVER.CLIP_GRADIENTS = CfgNode()
    c.SOLVER.CLIP_GRADIENTS.ENABLED = False
    c.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "value"  # value | norm (each parameter's) | full_model (norm of all together)
    c.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 1.0

    # ---------------------------------------------------------------- evaluation
    c.TEST = CfgNode()
    c.TEST.EVAL_PERIOD = 5000
    c.TEST.IMS_PER_BATCH = 8
    c.TEST.DETECTIONS_PER_IMAGE = 100

    # ---------------------------------------------------------------- semi-supervised training, all methods
    c.SEMI = CfgNode()
    c.SEMI.METHOD = "sed"  # supervised | sed | pseudo_label
    c.SEMI.LABELED_PERCENT = 0.0  # split of DATASETS.TRAIN where DATASETS.UNLABELED is empty; 0: see the next
    c.SEMI.LABELED_COUNT = 0  # the same as a number of images
    c.SEMI.FOLD = 0  # which split; a fold is a seed of the split and of nothing else
    c.SEMI.IMS_PER_BATCH_LABELED = 8  # n_s, over all processes
    c.SEMI.IMS_PER_BATCH_UNLABELED = 8  # n_u, over all processes
    c.SEMI.BURN_IN = 10000  # supervised steps before the teacher is copied from the student
    c.SEMI.RAMP_STEPS = 0  # after burn-in the unsupervised weights rise linearly over so many steps; 0: at once
    c.SEMI.STRONG_LABELED = True  # every second labelled image also gets the strong view; the control gets the same
    c.SEMI.EMA = CfgNode()
    c.SEMI.EMA.POLICY = "step"  # a: step (START, then END from the first LR drop) | cosine | constant (START)
    c.SEMI.EMA.START = 0.99
    c.SEMI.EMA.END = 0.9
    c.SEMI.COLLAPSE_STEPS = 200  # warn when the teacher finds next to nothing for so many steps; 0: never

    # ---------------------------------------------------------------- SED (METHOD 3, 4, 6, 7)
    c.SED = CfgNode()
    c.SED.LAMBDA_SCALE = 0.5  # lambda_s; 0 leaves the term and its network passes out
    c.SED.LAMBDA_DISTILL = 1.0  # lambda_d; 0 likewise
    # Of Eq. 3, and of the scale term where the teacher is its target. soft: as printed | hard: the likeliest answer, as
    # in Tab. 4 | hard_regions: the region head alone | objects: the teacher's sure detections (sed/core/objects.py) in
    # both terms; then BOX.KIND, REWEIGHT, TEMPERATURE and TOP_MASS act on the region head alone
    c.SED.DISTILL_TARGET = "soft"
    c.SED.THRESHOLD = 0.7  # objects: least score of a detection that the teacher is sure of
    c.SED.TEMPERATURE = 1.0  # of the teacher's targets; below 1 they are sharper
    c.SED.TOP_MASS = 0.0  # of the teacher's targets: share of the hard label in them
    c.SED.SCALE_TARGET = "student"  # student: Eq. 2 as printed | teacher: the anchored form (METHOD 11)
    c.SED.SCALE_SOURCE = "strong"  # which student view is P(X) of Eq. 2: strong | weak (one more pass)
    c.SED.SMALL_VIEW = "weak"  # which view is made small: weak | strong
    c.SED.MAX_SCALE = 1  # S: the small view is 1/2^s, s drawn from {1..S}
    c.SED.REGIONS_PER_VIEW = 256  # proposals a view for the region terms (pairs an image: twice that)
    c.SED.LAMBDA_IOU = 1.0  # lambda of Alg. 1: GIoU beside the class divergence when queries are matched
    c.SED.BOX = CfgNode()
    c.SED.BOX.WEIGHT = 1.0  # on the box terms; 0 leaves them out
    c.SED.BOX.KIND = "l2"  # l2 (the paper) | l1 | giou
    c.SED.REWEIGHT = CfgNode()
    c.SED.REWEIGHT.KIND = "histogram"  # histogram (Eq. 5) | none | ohem | focal
    c.SED.REWEIGHT.SCALE_TERM = True  # False: the scale term's plain mean, distillation alone is re-weighted
    c.SED.REWEIGHT.BINS = 10  # M
    c.SED.REWEIGHT.MOMENTUM = 0.0  # of the histogram over steps; 0: each step counts its own (the paper)
    c.SED.REWEIGHT.OVER_PROCESSES = False  # False: each process counts its own samples | True: all together
    c.SED.REWEIGHT.OHEM_FRACTION = 0.1
    c.SED.REWEIGHT.FOCAL_GAMMA = 2.0

    # ---------------------------------------------------------------- hard pseudo-labels (Unbiased Teacher)
    c.PSEUDO_LABEL = CfgNode()
    c.PSEUDO_LABEL.THRESHOLD = 0.7
    c.PSEUDO_LABEL.WEIGHT = 4.0
    c.PSEUDO_LABEL.BOX_LOSS = False  # Unbiased Teacher trains no boxes on pseudo-labels
    c.PSEUDO_LABEL.HALF_SIZE = False  # True: also the half-size view, with the same labels, halved (METHOD 11)
    return c


CLASSES_KEYS = {  # meta-architecture -> the key of K
    "ScaleConsistentRCNN": "MODEL.ROI_HEADS.NUM_CLASSES",
    "ScaleConsistentRetinaNet": "MODEL.RETINANET.NUM_CLASSES",
    "ScaleConsistentDETR": "MODEL.DETR.NUM_CLASSES",
}
# What `SED.PRESET name`, in a file or on the command line, sets: the switches below to the paper's values, then its
# own. Keys beside it or later have the last word. docs/evidence.md says what each is worth.
_SWITCHES = ("LAMBDA_SCALE", "LAMBDA_DISTILL", "DISTILL_TARGET", "THRESHOLD", "TEMPERATURE", "TOP_MASS", "SCALE_TARGET")
_SWITCHES += ("SCALE_SOURCE", "SMALL_VIEW", "BOX.WEIGHT", "BOX.KIND")
_SWITCHES += ("REWEIGHT.KIND", "REWEIGHT.SCALE_TERM", "REWEIGHT.BINS", "REWEIGHT.MOMENTUM")


def _presets() -> dict[str, dict[str, object]]:
    cfg, paper = get_cfg(), {}
    for switch in _SWITCHES:
        value: object = cfg.SED
        for part in switch.split("."):
            value = value[part]  # type: ignore[index]
        paper[f"SED.{switch}"] = value
    anchored = {**paper, "SED.SCALE_TARGET": "teacher"}
    plus = {
        "SED.LAMBDA_SCALE": 2.0,
        "SED.LAMBDA_DISTILL": 2.0,
        "SED.DISTILL_TARGET": "objects",
        "SED.BOX.KIND": "l1",
        "SED.REWEIGHT.KIND": "none",
    }
    return {"paper": paper, "anchored": anchored, "plus": {**anchored, **plus}}


PRESETS = _presets()
CHOICES = {
    "ENGINE": ("auto", "detectron2", "torchvision"),
    "MODEL.META_ARCHITECTURE": tuple(CLASSES_KEYS),
    "MODEL.RESNETS.NORM": ("FrozenBN", "BN", "GN"),
    "INPUT.RANDOM_FLIP": ("horizontal", "none"),
    "INPUT.CUTOUT_FILL": ("random", "constant"),
    "INPUT.GEOMETRIC": ("none", "randaugment"),
    "SOLVER.OPTIMIZER": ("SGD", "AdamW"),
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR"),
    "SOLVER.AMP.DTYPE": ("bfloat16", "float16"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm", "full_model"),
    "SEMI.METHOD": ("supervised", "sed", "pseudo_label"),
    "SEMI.EMA.POLICY": ("step", "cosine", "constant"),
    "SED.DISTILL_TARGET": ("soft", "hard", "hard_regions", "objects"),
    "SED.SMALL_VIEW": ("weak", "strong"),
    "SED.BOX.KIND": ("l2", "l1", "giou"),
    "SED.SCALE_TARGET": ("student", "teacher"),
    "SED.SCALE_SOURCE": ("strong", "weak"),
    "SED.REWEIGHT.KIND": ("histogram", "none", "ohem", "focal"),
}


LIMITS = {
    "SED.LAMBDA_SCALE": (0, inf),
    "SED.LAMBDA_DISTILL": (0, inf),
    "SED.THRESHOLD": (0, 1),
    "SED.BOX.WEIGHT": (0, inf),
    "SEMI.IMS_PER_BATCH_LABELED": (1, inf),
    "SED.MAX_SCALE": (0, inf),
    "SED.TEMPERATURE": (1e-3, inf),
    "SED.TOP_MASS": (0, 1),
    "SED.REWEIGHT.MOMENTUM": (0, 0.9999),
    "INPUT.GEOMETRIC_LEVEL": (0, 10),
}
