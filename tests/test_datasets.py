"""Which images a folder holds, and when it is Kodak."""

from pathlib import Path

import pytest

from eval.datasets import DATA_SETS, describe, known_sums, list_images, main, sha256

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


def test_the_lists_hold_every_image():
    assert sorted(known_sums("kodak")) == [f"kodim{i:02d}.png" for i in range(1, 25)]
    assert len(set(known_sums("cid22val").values())) == 41


def test_our_photos_are_kodaks():
    photos = list_images(PHOTOS)
    assert len(photos) == 3
    for photo in photos:
        assert sha256(photo) == known_sums("kodak")[photo.name]


def test_three_of_kodaks_images_are_not_called_kodak():
    assert describe(list_images(PHOTOS)) == "photos, 3 images"


@pytest.mark.parametrize(("key", "title"), DATA_SETS.items())
def test_a_data_set_is_known_by_its_bytes(key, title, tmp_path, monkeypatch, capsys):
    for name in known_sums(key):
        (tmp_path / name).write_bytes(name.encode())
    images = list_images(tmp_path)
    assert f"not {title}'s bytes" in describe(images)

    sums = {path.name: sha256(path) for path in images}
    monkeypatch.setattr("eval.datasets.known_sums", lambda known: sums if known == key else {})
    assert describe(images) == f"{title}, {len(images)} images, SHA-256 checked"
    assert main([key, str(tmp_path)]) == 0
    assert describe(images) in capsys.readouterr().out

    images[0].write_bytes(b"other")
    images[1].unlink()
    (tmp_path / "stranger.png").touch()
    assert main([key, str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in (images[0].name, images[1].name, "stranger.png"))
    assert images[2].name not in error
