"""What a folder of images holds."""

from __future__ import annotations

import logging
import os

import pytest

from sed.data.errors import DataError
from sed.data.folders import list_images, look_through


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def names(folder):
    return [path.relative_to(folder).as_posix() for path in look_through(folder).images]


def test_every_readable_kind_at_any_depth(tmp_path):
    make(tmp_path, "b.JPG", "a.jpeg", "c/d.png", "c/e.bmp", "c/f/g.webp", "h.tif", "i.TIFF", "j.txt", "k.gif", "l")
    assert names(tmp_path) == ["a.jpeg", "b.JPG", "c/d.png", "c/e.bmp", "c/f/g.webp", "h.tif", "i.TIFF"]
    assert look_through(tmp_path).left_out == {"of other kinds": ["j.txt", "k.gif", "l"]}


def test_hidden_files_are_left_out(tmp_path):
    make(tmp_path, "a.jpg", "._a.jpg", ".b.jpg", ".ipynb_checkpoints/a.jpg", "__MACOSX/a.jpg", "c/.DS_Store")
    assert names(tmp_path) == ["a.jpg"]
    hidden = ["._a.jpg", ".b.jpg", ".ipynb_checkpoints", "__MACOSX", "c/.DS_Store"]
    assert look_through(tmp_path).left_out == {"hidden": hidden}


def test_links_are_followed_and_nothing_is_taken_twice(tmp_path):
    outside = make(tmp_path / "outside", "x.jpg", "deep/y.jpg")
    top = make(tmp_path / "top", "a.jpg", "sub/b.jpg")
    (top / "link").symlink_to(outside)  # a folder elsewhere
    (top / "again").symlink_to(outside)  # the same once more
    (top / "loop").symlink_to(top)
    (top / "sub" / "up").symlink_to(top / "sub")
    (top / "z.jpg").symlink_to(outside / "x.jpg")  # a file of the linked folder
    (top / "0.jpg").symlink_to(top / "a.jpg")  # one that is there itself
    (top / "dead.jpg").symlink_to(tmp_path / "nowhere.jpg")
    images, left_out = look_through(top)
    contents = sorted(path.read_bytes().decode() for path in images)
    assert contents == ["a.jpg", "deep/y.jpg", "sub/b.jpg", "x.jpg"]
    assert top / "a.jpg" in images
    assert set(left_out) == {"linked twice", "no regular file"}
    assert {"0.jpg", "loop", "sub/up"} < set(left_out["linked twice"])
    assert left_out["no regular file"] == ["dead.jpg"]


def test_a_folder_comes_before_links_to_it(tmp_path):
    make(tmp_path, "z/1.jpg")
    (tmp_path / "a").symlink_to(tmp_path / "z")
    assert names(tmp_path) == ["z/1.jpg"]
    assert look_through(tmp_path).left_out == {"linked twice": ["a"]}
    with pytest.raises(DataError, match="nowhere: no such folder"):
        look_through(tmp_path / "nowhere")


def test_a_linked_folder_itself(tmp_path):
    (tmp_path / "link").symlink_to(make(tmp_path / "real", "a.jpg", "b/c.jpg"))
    assert names(tmp_path / "link") == ["a.jpg", "b/c.jpg"]


def test_pipes_and_folders_with_the_name_of_an_image(tmp_path):
    make(tmp_path, "a.jpg", "b.jpg/c.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert names(tmp_path) == ["a.jpg", "b.jpg/c.jpg"]
    assert look_through(tmp_path).left_out == {"no regular file": ["pipe.jpg"]}


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_closed_folder_is_told(tmp_path):
    make(tmp_path, "a.jpg", "closed/b.jpg")
    (tmp_path / "closed").chmod(0)
    try:
        assert look_through(tmp_path).left_out == {"in a folder that cannot be read": ["closed"]}
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_one_line_counts_what_is_left_out(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("sed"), "propagate", True)
    make(tmp_path, "a.jpg", "._a.jpg", "b.txt", "c.gif")
    with caplog.at_level(logging.WARNING):
        assert [path.name for path in list_images(tmp_path)] == ["a.jpg"]
    (message,) = {record.getMessage() for record in caplog.records if record.name == "sed.data.folders"}
    assert message == (f"{tmp_path}: 1 images; left out: 1 hidden (such as ._a.jpg); 2 of other kinds (such as b.txt)")
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"no image in this folder; looked for .jpg, .*; left out: 1 hidden"):
        list_images(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no image in this folder; looked for .* at any depth$"):
        list_images(tmp_path / "empty")
