"""Semi-supervised training in a plain PyTorch loop: your torchvision detector, two lists of images, no config.

    python examples/plain_loop.py

A small Faster R-CNN learns handwritten digits from scratch, from 30 labelled images and 300 without labels; a few
minutes on a CPU, no download. It prints the AP of the teacher, the model that is kept, before and after training with
the unlabelled images: 23.9 and 49.3 on the machine where it was written. The second has had more steps, too; what the
unlabelled images are worth shows against `Supervised` with as many (docs/evidence.md).
"""

import argparse
import tempfile

import torch
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from sed.data.coco import load_coco
from sed.data.digits import make_digits
from sed.data.loaders import collate_labeled, collate_unlabeled, test_loader
from sed.data.mapper import Mapper
from sed.detectors import wrap
from sed.detectors.backbones import SmallFPN
from sed.evaluation.coco import evaluate
from sed.methods import Schedule, SEDPlus, SEDPlusOptions


def build_model(classes: int) -> FasterRCNN:
    """Any Faster R-CNN or RetinaNet of torchvision does; this one is small enough for a CPU."""
    return FasterRCNN(
        SmallFPN("GN", 48),  # maps "0" to "3", strides 4 to 32
        rpn_anchor_generator=AnchorGenerator(((12, 16), (24, 32), (48, 64), (96, 128)), ((1.0,),) * 4),
        rpn_batch_size_per_image=64,
        rpn_post_nms_top_n_train=150,
        rpn_post_nms_top_n_test=100,
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 6, 1),
        box_head=TwoMLPHead(48 * 6**2, 192),
        box_predictor=FastRCNNPredictor(192, classes + 1),  # torchvision counts the background
        box_batch_size_per_image=64,
    )


def main() -> None:
    """Two lists, one loop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--burn-in", type=int, default=250, help="steps on the labelled images alone")
    parser.add_argument("--steps", type=int, default=450, help="steps in all")
    parser.add_argument("--batch", type=int, default=8, help="labelled, and as many unlabelled, images a step")
    args = parser.parse_args()
    torch.manual_seed(0)

    # Data: two lists of records (a file's name, its size, its boxes), and a test set
    folder = make_digits(tempfile.mkdtemp(), counts=(330, 0, 60))
    train, test = load_coco(folder / "train.json"), load_coco(folder / "test.json")
    labeled, unlabeled = train.records[:30], train.records[30:]
    mapper = Mapper(min_size=(128, 128), max_size=128, flip=False, strong_labeled=True)  # augments: weak, strong

    # Model, method, optimizer
    detector = wrap(build_model(len(train.classes)))
    schedule = Schedule(burn_in=args.burn_in, max_iter=args.steps, first_drop=int(0.8 * args.steps))
    method = SEDPlus(detector, schedule, options=SEDPlusOptions(regions_per_view=64)).train()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=0.002, weight_decay=1e-4)
    drop = torch.optim.lr_scheduler.MultiStepLR(optimizer, [schedule.first_drop])

    def report(when: str) -> None:
        found = evaluate(method.teacher.module, test_loader(test.records, mapper, 20, 0, multiple=32), test, "cpu")
        print(f"{when}: {found['AP']:.1f} AP, {found['AP50']:.1f} AP50", flush=True)

    draw = torch.Generator().manual_seed(0)
    for step in range(args.steps):
        if step == args.burn_in:
            report(f"before, {len(labeled)} labelled images alone")
        places = [step * args.batch + i for i in range(args.batch)]  # each sample of the run is augmented differently
        pick = torch.randint(len(labeled), (args.batch,), generator=draw).tolist()
        images = collate_labeled([mapper.labeled(labeled[i], p) for i, p in zip(pick, places, strict=True)])
        views = None
        if method.needs_unlabeled(step):
            pick = torch.randint(len(unlabeled), (args.batch,), generator=draw).tolist()
            views = collate_unlabeled([mapper.unlabeled(unlabeled[i], p) for i, p in zip(pick, places, strict=True)])
        losses = method(images, views, step)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        optimizer.step()
        drop.step()
        method.update_teacher(step)
    report(f"after, with {len(unlabeled)} images without labels")


if __name__ == "__main__":
    main()
