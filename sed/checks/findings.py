"""The kinds of findings of a check of a user's data, each with its severity and remedy; and the list of findings."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)
KEPT = 200  # findings of one kind in one file that are kept with their item; beyond, only their number
KEPT_IN_ALL = 1000  # of one kind in all files


@dataclass(frozen=True)
class Kind:
    """One kind of finding.

    Attributes:
        severity: error: training stops, or learns from wrong data; warning: training works, but the result is likely
            worse; note: for information.
        title: what it is.
        remedy: what to do.
    """

    severity: str
    title: str
    remedy: str


@dataclass(frozen=True)
class Finding:
    """One finding: a kind of fault in one item.

    Attributes:
        code: a key of KINDS.
        file: the json, folder or image that it lies in; a config key where the config itself is at fault.
        item: which annotation, image or category.
        text: what was found, and what was expected.
        image: an image file that shows it; "" if none.
        box: [x, y, width, height] in that image; None if it concerns no box.
        other: the image that it is compared with; "" if none.
    """

    code: str
    file: str
    item: str
    text: str
    image: str = ""
    box: tuple[float, ...] | None = None
    other: str = ""

    @property
    def kind(self) -> Kind:
        """Severity, title and remedy."""
        return KINDS[self.code]


class Findings:
    """A list of findings: all are counted, the first `KEPT` of each kind and file are kept with their item."""

    def __init__(self) -> None:
        self.kept: list[Finding] = []
        self.counts: Counter[tuple[str, str]] = Counter()
        self._kept: Counter[str] = Counter()

    def add(
        self,
        code: str,
        file: str,
        item: str,
        text: str,
        image: str = "",
        box: tuple[float, ...] | None = None,
        other: str = "",
    ) -> None:
        """Record one finding; `code` is a key of KINDS."""
        if code not in KINDS:
            raise KeyError(code)
        self.counts[code, file] += 1
        if self.counts[code, file] <= KEPT and self._kept[code] < KEPT_IN_ALL:
            self._kept[code] += 1
            self.kept.append(Finding(code, file, item, text, image, box, other))

    def has(self, severity: str, file: str | None = None) -> bool:
        """Whether there is one of this severity (in this file)."""
        return any(KINDS[code].severity == severity and file in (None, where) for code, where in self.counts)

    def total(self, severity: str) -> int:
        """How many of this severity."""
        return sum(n for (code, _), n in self.counts.items() if KINDS[code].severity == severity)

    def groups(self) -> list[tuple[Kind, str, int, list[Finding]]]:
        """(kind, code, number of all, those kept) of each kind that was found, errors first."""
        order = list(KINDS)
        codes = sorted({code for code, _ in self.counts}, key=order.index)
        codes.sort(key=lambda code: SEVERITIES.index(KINDS[code].severity))
        return [
            (
                KINDS[code],
                code,
                sum(n for (other, _), n in self.counts.items() if other == code),
                [finding for finding in self.kept if finding.code == code],
            )
            for code in codes
        ]


KINDS = {
    # ------------------------------------------------------------------------------------------ config and files
    "source-missing": Kind(ERROR, "A data set is not there", "Correct the path or name in DATASETS.*."),
    "train-empty": Kind(ERROR, "No labelled data set", "Set DATASETS.TRAIN to your COCO json of labelled images."),
    "test-empty": Kind(WARNING, "No test set", "Set DATASETS.TEST, or the detector is not evaluated."),
    "no-unlabelled": Kind(
        ERROR,
        "No unlabelled images",
        "Set DATASETS.UNLABELED, or split DATASETS.TRAIN by SEMI.LABELED_PERCENT, or set SEMI.METHOD supervised.",
    ),
    "split-and-unlabelled": Kind(
        ERROR, "A split and unlabelled images exclude each other", "Set SEMI.LABELED_PERCENT and _COUNT to 0."
    ),
    "num-classes": Kind(ERROR, "Wrong number of classes", "Set the key to the number of categories."),
    "folder-empty": Kind(ERROR, "A folder without images", "Correct DATASETS.UNLABELED, or put the images there."),
    "ignored-images": Kind(
        WARNING, "Images of a type that is not read", "Convert them to JPEG or PNG if they are to be used."
    ),
    "ignored-files": Kind(NOTE, "Other files in an image folder", "Nothing to do: they are ignored."),
    # ------------------------------------------------------------------------------------------ structure
    "json-broken": Kind(ERROR, "Not a json file", "Export it again; a copy or a download may have been cut off."),
    "json-structure": Kind(
        ERROR,
        "Not a COCO annotation file",
        "Export as COCO json for object detection: an object with the lists images, annotations and categories.",
    ),
    "item-fields": Kind(ERROR, "Entries without their fields", "Add the fields, or export again."),
    "no-images": Kind(ERROR, "No image listed", "Export again with images."),
    "no-boxes": Kind(ERROR, "No usable box", "Label some images; an empty labelled set trains nothing."),
    "image-id-twice": Kind(ERROR, "Two images with one id", "Give each image its own id."),
    "annotation-id-twice": Kind(ERROR, "Two annotations with one id", "Give each annotation its own id."),
    "category-id-twice": Kind(ERROR, "Two categories with one id", "Give each category its own id."),
    "category-name-twice": Kind(ERROR, "Two categories with one name", "Merge them, or rename one."),
    "category-name-similar": Kind(
        WARNING, "Two categories with nearly one name", "If they mean the same, merge them; as they are, they compete."
    ),
    "category-unknown": Kind(ERROR, "Annotations of an unknown category", "Add the category, or correct the id."),
    "image-unknown": Kind(ERROR, "Annotations without an image", "Add the image's entry, or remove the annotation."),
    "category-unused": Kind(
        WARNING, "Categories without a box", "Remove the category, or label some; it cannot be learned or tested."
    ),
    "classes-differ": Kind(ERROR, "Sets with different categories", "Export all sets with the same categories."),
    "classes-missing": Kind(
        WARNING, "A test set that lacks categories", "Nothing to do, if it shows none of them: they have no AP."
    ),
    "image-sides": Kind(ERROR, "Images of an impossible size", "Write height and width in pixels."),
    "image-no-size": Kind(NOTE, "Images without a size", "Nothing to do: sizes are read from the image files."),
    "file-twice": Kind(WARNING, "One image file under several ids", "Keep one entry, with all its annotations."),
    "crowd-flag": Kind(ERROR, "iscrowd is neither 0 nor 1", "Write 0 (an object) or 1 (a crowd, not trained on)."),
    "area-wrong": Kind(
        WARNING,
        "Areas larger than their box",
        "Write width x height, or leave `area` out; AP of small and large objects is counted by it.",
    ),
    "unlabelled-annotated": Kind(
        NOTE, "Unlabelled images with annotations", "Nothing to do: annotations of unlabelled images are never read."
    ),
    "told": Kind(WARNING, "Told while a set was read", "See the message; training tells the same."),
    "refused": Kind(ERROR, "Training would refuse this set", "See the message."),
    # ------------------------------------------------------------------------------------------ boxes
    "box-form": Kind(
        WARNING,
        "Boxes that are not four numbers of pixels",
        "Write bbox as [x, y, width, height] in pixels; training leaves them out.",
    ),
    "box-nan": Kind(WARNING, "Boxes with NaN or infinity", "Correct or remove them; training leaves them out."),
    "boxes-corners": Kind(
        ERROR,
        "Boxes look like two corners",
        "COCO wants [x, y, width, height]; these look like [x0, y0, x1, y1]: subtract x0 and y0 from the last two.",
    ),
    "boxes-normalised": Kind(
        ERROR,
        "Boxes look normalised to 0..1",
        "COCO wants pixels: multiply x and width by the image's width, y and height by its height.",
    ),
    "box-negative": Kind(
        WARNING, "Boxes of negative size", "Correct them (corners may be swapped); training leaves them out."
    ),
    "box-empty": Kind(WARNING, "Boxes of zero size", "Correct or remove them; training leaves them out."),
    "box-outside": Kind(
        WARNING,
        "Boxes outside their image",
        "Correct or remove them; training leaves them out. Was the image cropped or resized after labelling?",
    ),
    "box-sticks-out": Kind(
        WARNING, "Boxes that stick out", "Clip them to the image, as training does; many: look for a resized image."
    ),
    "box-twice": Kind(
        WARNING, "One object labelled twice", "Remove one of the two; AP counts one as missed, and training suffers."
    ),
    "box-two-classes": Kind(
        WARNING, "One box with two categories", "Decide for one, unless an object may be both for you."
    ),
    "box-huge": Kind(NOTE, "Boxes that fill their image", "Look at some: a whole-image label is no box."),
    "box-tiny": Kind(
        NOTE,
        "Boxes of a few pixels in training",
        "Look at some: real objects need larger images (INPUT.MIN_SIZE_TRAIN), stray clicks should be removed.",
    ),
    # ------------------------------------------------------------------------------------------ images
    "image-missing": Kind(ERROR, "Image files that are missing", "Add them, or set DATASETS.IMAGE_ROOT."),
    "image-unreadable": Kind(ERROR, "Files that are no readable image", "Repair them, or remove them from the set."),
    "image-truncated": Kind(ERROR, "Image files that are cut off", "Copy them again, or remove them from the set."),
    "image-size": Kind(
        ERROR,
        "Images of another size than the json says",
        "Use the images that were labelled, or scale the boxes; correct height and width.",
    ),
    "image-exif-unclear": Kind(
        WARNING,
        "Turned by EXIF, and the size does not show whether they were labelled upright",
        "Save them upright without the EXIF flag, and look at their boxes; training turns them upright.",
    ),
    "image-exif-boxes": Kind(
        ERROR,
        "Boxes that fit only the other frame of an image turned by EXIF",
        "Swap width and height of these images in the json: the size there says whether they are read upright.",
    ),
    "image-exif": Kind(
        NOTE,
        "Turned by EXIF",
        "Look at the boxes of one: training reads the frame that has the size in the json; to change it, swap "
        "width and height there.",
    ),
    "image-16bit": Kind(
        WARNING,
        "Images of more than 8 bits a channel",
        "Training makes 8 bits of those that the brightest value needs: scale them yourself if that is too coarse.",
    ),
    "image-blank": Kind(WARNING, "Images of a single colour", "Remove them, or export them again."),
    "image-small": Kind(WARNING, "Very small images", "Check that they are no thumbnails."),
    "image-narrow": Kind(
        WARNING, "Very long images", "Cut them into tiles: resized to fit the longest side, little of them is left."
    ),
    "image-grey": Kind(NOTE, "Greyscale images", "Nothing to do: all three channels get the same value."),
    "image-alpha": Kind(NOTE, "Images with transparency", "Look at one: transparency is dropped, colours may appear."),
    # ------------------------------------------------------------------------------------------ sets
    "mostly-empty": Kind(
        WARNING, "Most labelled images have no box", "Check that all annotations were exported."
    ),
    "image-no-box": Kind(
        NOTE,
        "Labelled images without a box",
        "Check that they show no object. DATALOADER.FILTER_EMPTY_ANNOTATIONS leaves them out of training.",
    ),
    "class-rare": Kind(
        WARNING, "Classes with fewer than 5 labelled boxes", "Label more of them, or expect nothing of these classes."
    ),
    "classes-unequal": Kind(NOTE, "Very unequal classes", "Watch the AP of each class; label more of the rare ones."),
    "same-across": Kind(
        ERROR, "A test image in another set", "Take it out of one of them, or the test is not independent of training."
    ),
    "same-unlabelled": Kind(
        WARNING,
        "A labelled or test image among the unlabelled ones",
        "Nothing to do where it is the same file: it is left out there. Remove a copy; it counts double.",
    ),
    "same-within": Kind(WARNING, "One image twice in a set", "Remove the copy; it counts double."),
    "near-test": Kind(
        WARNING,
        "Nearly one image in training and test",
        "Move neighbours (frames of one film, crops of one photograph) to one side, or the test result is too good.",
    ),
    "near": Kind(NOTE, "Nearly the same images", "Nothing to do, if you know of them; copies add little."),
}  # fmt: skip
