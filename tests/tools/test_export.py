"""`ssod export`: an ONNX file that finds what the detector finds, or one line that says why there is none."""

import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from sed.cli import engines, export
from sed.core.structures import Images
from sed.detectors import onnx_file
from sed.detectors.onnx_file import Difference, ExportError, difference, save_onnx
from tests.reference.transformers_case import TransformersCase
from tests.tools import bench_export
from tests.tools.bench_export import make, noise

CONFIG = "configs/quickstart.yaml"
SIZES = ((96, 130), (203, 127), (64, 64))  # none is that of the export
SLOW = (
    "resnet_rcnn",
    "resnet50_rcnn",
    "lite0_rcnn",
    "lite0_retinanet",
    "resnet_retinanet",
    "rt_detr",
    "rt_detr_v2",
    "d_fine",
)
FAST = ("small_rcnn", "detr", "yolos")


def write(detector, path, least=0.05, **more):
    save_onnx(detector, path, ("ä", "b", "c"), "none", least, **{"side": 100, **more})
    return onnxruntime.InferenceSession(path)


def own(detector, image):
    with torch.no_grad():
        return detector.detect(Images.from_list([image.permute(2, 0, 1)]))[0]


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_the_file_finds_what_the_detector_finds(name, tmp_path):
    detector = make(name)
    session = write(detector, tmp_path / "model.onnx")
    for size in SIZES:
        boxes, labels, scores = session.run(None, {"image": noise(size).numpy()})
        want = own(detector, noise(size))
        keep = want.scores > 0.05
        assert 3 <= len(scores) == keep.sum()
        np.testing.assert_allclose(scores, want.scores[keep], rtol=0, atol=1e-4)
        np.testing.assert_allclose(boxes / max(size), want.boxes[keep] / max(size), rtol=0, atol=1e-4)
        np.testing.assert_array_equal(labels, want.classes[keep])
        assert (boxes.dtype, labels.dtype, scores.dtype) == (np.float32, np.int64, np.float32)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.fixture(scope="module")
def small():
    return make("small_rcnn")


def test_the_file_says_what_it_takes(small, tmp_path):
    session = write(small, tmp_path / "model.onnx", 0.99)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["class_names"]) == ["ä", "b", "c"]
    assert float(about["score_threshold"]) == 0.99
    assert "uint8" in about["input"]
    (image,) = session.get_inputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", ["height", "width", 3])
    assert [output.name for output in session.get_outputs()] == ["boxes", "labels", "scores"]
    assert not onnx.load(tmp_path / "model.onnx").graph.initializer[0].external_data
    boxes, labels, scores = session.run(None, {"image": np.zeros((70, 90, 3), np.uint8)})
    assert (boxes.shape, labels.shape, scores.shape) == ((0, 4), (0,), (0,))


def test_the_detector_stays_as_it_was(small, tmp_path):
    small.train()
    before = {name: value.clone() for name, value in small.state_dict().items()}
    least = small.model.roi_heads.score_thresh
    write(small, tmp_path / "model.onnx")
    assert small.training
    assert small.model.roi_heads.score_thresh == least
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
    small.eval()


@pytest.mark.slow
def test_a_size_makes_the_file_of_one_size_and_exports_more(tmp_path):
    detector = make("deformable_detr")
    with pytest.raises(ExportError, match=r"finds other boxes .* with --size H W"):
        write(detector, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
    session = write(detector, tmp_path / "model.onnx", size=(256, 320))
    assert session.get_inputs()[0].shape == [256, 320, 3]


class Shifted(nn.Module):
    """A graph whose boxes are a pixel off."""

    def __init__(self, whole):
        super().__init__()
        self.whole, self.detector = whole, whole.detector
        self.register_buffer("score_threshold", whole.score_threshold)

    def forward(self, image):
        boxes, labels, scores = self.whole(image)
        return boxes + 1, labels, scores


def test_a_file_that_finds_something_else_is_not_left(small, tmp_path, monkeypatch):
    whole = onnx_file.graph
    monkeypatch.setattr(onnx_file, "graph", lambda *of: Shifted(whole(*of)))
    (tmp_path / "model.onnx").write_text("of before")
    with pytest.raises(ExportError, match=r"model.onnx is not written: .* differ by 1 pixels"):
        write(small, tmp_path / "model.onnx")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["of before"]


def test_weights_that_are_no_numbers_are_no_equal_files(tmp_path):
    detector = make("small_rcnn")
    detector.model.roi_heads.box_predictor.cls_score.bias.data.fill_(float("nan"))
    with pytest.raises(ExportError, match="nothing to compare"):
        write(detector, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_the_exporter_cannot_follow_is_one_line(tmp_path, capfd):
    with pytest.raises(ExportError, match=r"exporter cannot follow RfDetr.*bicubic") as error:
        write(make("rf_detr"), tmp_path / "model.onnx")
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ExportError, match="Linear cannot be exported as ONNX; detectors of ENGINE torchvision can"):
        write(nn.Linear(1, 1), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_size_with_fewer_places_than_queries_is_one_line(tmp_path):
    detector = TransformersCase("rt_detr").build(num_queries=30)
    with pytest.raises(ExportError, match=r"is not written: RTDetr.*: a view of 32 x 32 pixels has fewer places"):
        write(detector, tmp_path / "model.onnx", size=(32, 30))


def found(*rows):
    boxes, labels, scores = zip(*rows, strict=True)
    return [np.array(boxes, np.float32).reshape(-1, 4), np.array(labels), np.array(scores)]


def test_the_difference_is_that_to_the_nearest_of_the_class():
    one, two = ([0, 0, 10, 10], 0, 0.9), ([20, 20, 40, 40], 1, 0.9)
    assert difference(found(one, two), found(two, one), 100) == Difference()
    moved = ([20, 20, 40, 40.5], 1, 0.7)
    assert difference(found(two, one), found(moved, one), 100) == Difference(
        0.5, pytest.approx(0.005), pytest.approx(0.2)
    )
    assert not difference(found(one), found(two), 100).small
    assert not difference(found(one), [np.zeros((0, 4)), np.zeros(0), np.zeros(0)], 100).small
    assert not difference(found(([float("nan")] * 4, 0, 0.9)), found(one), 100).small
    assert not Difference(scores=2e-4).small
    assert not Difference(0.1, 2e-4).small


# ------------------------------------------------------------------------------------------- the command
def words(weights, path, opts):
    return ["--config-file", CONFIG, "--weights", weights, "--output", str(path), *opts]


def test_the_command_says_the_difference(engine, weights, opts, tmp_path, caplog):
    path = tmp_path / "new" / "model.onnx"
    if engine == "detectron2":
        with pytest.raises(SystemExit, match="cannot be exported as ONNX"):
            export.main(words(weights, path, opts))
        return
    with caplog.at_level("INFO"):
        export.main(words(weights, path, ["--score-threshold", "0.1", *opts]))
    assert "onnxruntime and the model differ by at most" in caplog.text
    about = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    assert json.loads(about["class_names"]) == ["0", "1", "2", "3", "4"]
    assert about["resize"].startswith("short side to 128, longer side at most ")


def test_a_run_is_exported_with_its_own_weights(weights, opts, tmp_path, monkeypatch):
    shutil.copy(weights, tmp_path / "model_best.pth")
    cfg = engines.pick(CONFIG, opts).load_config(CONFIG, opts)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    given = []
    monkeypatch.setattr(export, "save_onnx", lambda detector, *of: given.append((detector, of)) or Difference())
    export.main(["--run", str(tmp_path), "--output", str(tmp_path / "m.onnx"), "--size", "96", "128", *opts])
    ((detector, (path, classes, resize, least, size, side)),) = given
    content = torch.load(weights, weights_only=False)
    content, state = content.get("model", content), detector.plain_state_dict()
    assert content.keys() & state.keys()
    assert all(torch.equal(torch.as_tensor(content[name]), state[name]) for name in content.keys() & state.keys())
    assert (path, classes, least, size, side) == (tmp_path / "m.onnx", tuple("01234"), 0.05, (96, 128), 128)
    assert resize.startswith("stretch to height 96, width 128")


def test_what_cannot_be_is_told_before_the_work(weights, opts, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "save_onnx", None)
    with pytest.raises(SystemExit, match="expected the path of a file to write, this is a folder"):
        export.main(words(weights, tmp_path, opts))
    with pytest.raises(SystemExit, match=r"no config\.yaml in it"):
        export.main(["--run", str(tmp_path), "--output", str(tmp_path / "x.onnx")])
    for flags in (["--size", "0", "5"], ["--score-threshold", "nan"]):
        with pytest.raises(SystemExit, match="2"):
            export.main(words(weights, tmp_path / "x.onnx", [*flags, *opts]))
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"^error: onnx and onnxruntime not installed; pip install 'ssod\[onnx\]'"):
        export.main(words("lost.pth", tmp_path / "x.onnx", opts))


@pytest.mark.slow
def test_the_table_of_the_page_can_be_measured(capsys):
    bench_export.measure(("small_rcnn", "rf_detr"), 64)
    first, second = capsys.readouterr().out.splitlines()[2:]
    assert first.startswith("| small_rcnn | any | ")
    assert second == "| rf_detr | no | | |"
