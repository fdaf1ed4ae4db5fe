"""Which images a folder holds, and when it is Kodak."""

from pathlib import Path

import pytest

from eval.datasets import describe, kodak_sums, list_images, sha256

PHOTOS = Path(__file__).parent / "photos"


def test_images_are_listed_by_name_and_other_files_are_not(tmp_path):
    for name in ("b.PNG", "a.jpg", "notes.txt", "c.webp"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "b.PNG", "c.webp"]


def test_a_folder_without_images_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no images in"):
        list_images(tmp_path)


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(NotADirectoryError, match="not a folder"):
        list_images(tmp_path / "nowhere")


def test_the_list_holds_kodaks_24_images():
    assert sorted(kodak_sums()) == [f"kodim{i:02d}.png" for i in range(1, 25)]


def test_our_photos_are_kodaks():
    photos = list_images(PHOTOS)
    assert len(photos) == 3
    for photo in photos:
        assert sha256(photo) == kodak_sums()[photo.name]


def test_three_of_kodaks_images_are_not_called_kodak():
    assert describe(list_images(PHOTOS)) == "photos, 3 images"


def test_kodak_is_known_by_its_bytes(tmp_path, monkeypatch):
    for name in kodak_sums():
        (tmp_path / name).write_bytes(name.encode())
    images = list_images(tmp_path)
    assert "not Kodak's bytes" in describe(images)

    monkeypatch.setattr("eval.datasets.kodak_sums", lambda: {path.name: sha256(path) for path in images})
    assert describe(images) == "Kodak, 24 images, SHA-256 checked"
