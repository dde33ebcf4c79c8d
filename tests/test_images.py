"""Pictures in one folder per class: their classes and ids, their pixels as Pillow decodes them, and a sentence for what cannot be one."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_arrays import assert_sentence

from tracin_core.data import images as module
from tracin_core.data.readers import reader_for
from tracin_core.errors import DataError, UnreadableSampleError
from tracin_core.recipe import ImagesData

LOSSLESS = {"png": "PNG", "bmp": "BMP", "gif": "GIF", "webp": "WEBP", "tif": "TIFF", "tiff": "TIFF", "PNG": "PNG"}


def pixels(height: int = 6, width: int = 4, channels: int = 0, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def put(root: Path, path: str, values: np.ndarray | None = None, *, form: str | None = None, **options: object) -> Path:
    """A picture below the root."""
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels() if values is None else values).save(place, format=form, **options)
    return place


def test_the_first_folder_is_the_class(tmp_path: Path) -> None:
    """Deeper folders are part of the id only, and what is no picture in a class folder is listed with the reason."""
    for path in ("dog/a.png", "dog/summer/a.png", "cat/b.png", "stray.png", ".thumbs/x.png", "cat/._b.png"):
        put(tmp_path, path)
    (tmp_path / "cat/notes.txt").write_text("a note")
    reader = reader_for(ImagesData(root=tmp_path))
    samples = reader.list()
    assert samples.to_dict("list") == {
        "id": ["cat_b", "dog_a", "dog_summer_a"],
        "target": ["cat", "dog", "dog"],
        "path": ["cat/b.png", "dog/a.png", "dog/summer/a.png"],
    }
    assert dict(reader.left_out()) == {
        ".thumbs/x.png": "it is hidden",
        "cat/._b.png": "it is hidden",
        "cat/notes.txt": "its name does not end as a picture's does",
        "stray.png": "it lies in no class folder",
    }


@pytest.mark.parametrize(
    ("classes", "targets"),
    [(["10", "2", "0"], [10, 2, 0]), (["0.5", "2"], [0.5, 2.0]), (["-1", "1"], [-1, 1]), (["1", "b"], ["1", "b"])],
    ids=["whole", "decimal", "signed", "text"],
)
def test_classes_named_by_numbers_are_numbers(tmp_path: Path, classes: list[str], targets: list[object]) -> None:
    for name in classes:
        put(tmp_path, f"{name}/a.png")
    samples = reader_for(ImagesData(root=tmp_path)).list()
    assert dict(zip(samples["id"], samples["target"], strict=True)) == {
        f"{name}_a": target for name, target in zip(classes, targets, strict=True)
    }


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_every_lossless_form_reads_the_same(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    put(tmp_path, f"a/x.{suffix}", pixels(), form=LOSSLESS[suffix], **options)
    put(tmp_path, f"b/x.{suffix}", pixels(seed=1), form=LOSSLESS[suffix], **options)
    reader = reader_for(ImagesData(root=tmp_path))
    told: list[int] = []
    inputs = reader.read(reader.list().iloc[::-1], progress=told.append)
    assert (inputs.dtype, inputs.shape, told) == (np.float32, (2, 1, 6, 4), [1, 2])
    np.testing.assert_array_equal(inputs[1, 0], pixels().astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(inputs[0, 0], pixels(seed=1).astype(np.float32) / np.float32(255))


def test_colours_come_first_and_grey_is_their_luma(tmp_path: Path) -> None:
    """[3, H, W]; grey is 0.299 R + 0.587 G + 0.114 B, to half a level. A JPEG is near, and grey pictures have three equal colours."""
    values = pixels(channels=3)
    put(tmp_path, "a/x.png", values)
    samples = reader_for(ImagesData(root=tmp_path)).list()
    coloured = reader_for(ImagesData(root=tmp_path, colours="rgb")).read(samples)[0]
    for channel in range(3):
        np.testing.assert_array_equal(coloured[channel], values[..., channel] / np.float32(255))
    grey = reader_for(ImagesData(root=tmp_path)).read(samples)[0, 0]
    np.testing.assert_allclose(255 * grey, values @ [0.299, 0.587, 0.114], rtol=0, atol=0.51)
    smooth = np.linspace(0, 255, 256).reshape(16, 16).astype(np.uint8)
    put(tmp_path / "jpeg", "a/x.jpg", smooth, quality=95)
    jpeg = reader_for(ImagesData(root=tmp_path / "jpeg", colours="rgb"))
    read = jpeg.read(jpeg.list())[0]
    np.testing.assert_allclose(255 * read, np.broadcast_to(smooth, (3, 16, 16)), rtol=0, atol=8)


def test_unequal_pictures_are_refused_or_scaled(tmp_path: Path) -> None:
    """The cure of the sentence works; scaling halves by the mean of a triangle over neighbours, and is named in the cache key."""
    put(tmp_path, "a/x.png")
    put(tmp_path, "b/y.png", np.full((12, 8), 51, dtype=np.uint8))
    reader = reader_for(ImagesData(root=tmp_path))
    samples = reader.list()
    with pytest.raises(DataError, match=r"'b/y.png' has 12 x 8 pixels, but 'a/x.png' has 6 x 4; give height = 6 and width = 4"):
        reader.read(samples)
    scaled = reader_for(ImagesData(root=tmp_path, height=6, width=4))
    inputs = scaled.read(samples)
    np.testing.assert_array_equal(inputs[0, 0], pixels() / np.float32(255))
    np.testing.assert_allclose(inputs[1, 0], 0.2, rtol=1e-6)
    names = {
        reader_for(ImagesData(root=tmp_path, **more)).preprocessing
        for more in ({}, {"colours": "rgb"}, {"height": 6, "width": 4}, {"height": 4, "width": 6})
    }
    assert len(names) == 4


def test_palettes_and_single_bits_are_pictures(tmp_path: Path) -> None:
    """Forms of 8 bits and fewer decode to the colours that they mean."""
    wide = Image.fromarray(pixels(channels=3)).quantize(16)
    (tmp_path / "a").mkdir()
    wide.save(tmp_path / "a/palette.png")
    Image.fromarray(pixels() > 127).save(tmp_path / "a/bits.png")
    opaque = np.dstack([pixels(channels=3), np.full((6, 4), 255, dtype=np.uint8)])
    put(tmp_path, "a/opaque.png", opaque)
    reader = reader_for(ImagesData(root=tmp_path, colours="rgb"))
    samples = reader.list()
    read = dict(zip(samples["id"], np.moveaxis(reader.read(samples), 1, -1) * 255, strict=True))
    np.testing.assert_allclose(read["a_palette"], np.asarray(wide.convert("RGB")), atol=1e-4)
    np.testing.assert_allclose(read["a_bits"][..., 0], 255 * (pixels() > 127), atol=1e-4)
    np.testing.assert_allclose(read["a_opaque"], opaque[..., :3], atol=1e-4)


def test_ids_that_clash_name_both_files(tmp_path: Path) -> None:
    put(tmp_path, "a/b_c.png")
    put(tmp_path, "a/b/c.png")
    with pytest.raises(DataError, match=r"'a/b/c.png' and 'a/b_c.png' would have one id, 'a_b_c'; rename"):
        reader_for(ImagesData(root=tmp_path)).list()
    put(tmp_path / "same", "a/x.png")
    put(tmp_path / "same", "a/x.bmp")
    with pytest.raises(DataError, match=r"'a/x.bmp' and 'a/x.png'"):
        reader_for(ImagesData(root=tmp_path / "same")).list()
    for name in ("1", "01"):
        put(tmp_path / "numbers", f"{name}/x.png")
    with pytest.raises(DataError, match="'01' and '1' are the same number"):
        reader_for(ImagesData(root=tmp_path / "numbers")).list()


def test_no_picture_says_what_is_looked_for(tmp_path: Path) -> None:
    put(tmp_path, "stray.png")
    with pytest.raises(DataError, match=r"no picture <class>/<name> .*\.bmp, \.gif"):
        reader_for(ImagesData(root=tmp_path)).list()
    with pytest.raises(DataError, match="'nowhere' does not exist"):
        reader_for(ImagesData(root=tmp_path / "nowhere")).list()
    put(tmp_path, "a/x.png")
    reader = reader_for(ImagesData(root=tmp_path))
    with pytest.raises(DataError, match="no sample to read"):
        reader.read(reader.list().iloc[:0])


def encoded(form: str, values: np.ndarray | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(30, 30) if values is None else values).save(buffer, format=form, **options)
    return buffer.getvalue()


def claims(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels, and has none."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def frames(form: str) -> bytes:
    return encoded(form, save_all=True, append_images=[Image.fromarray(pixels(30, 30, seed=2))])


BROKEN = {
    "empty": (b"", "is empty"),
    "text": (b"no picture at all", "cannot be read"),
    "page": (b"<html><body>not found</body></html>", "cannot be read"),
    "cut png": (encoded("PNG")[:200], "cannot be read"),
    "cut jpeg": (encoded("JPEG")[:300], "cannot be read"),
    "cut tiff": (encoded("TIFF")[:60], "cannot be read"),
    "no pixels": (claims(30, 30), "cannot be read"),
    "bomb": (claims(20_000, 20_000), "cannot be read|more than 89,478,485"),
    "small bomb": (claims(9_500, 9_500), "cannot be read|more than 89,478,485"),
    "endless": (claims(2**31 - 1, 2**31 - 1), "cannot be read"),
    "two frames": (frames("GIF"), "has 2 frames"),
    "two pages": (frames("TIFF"), "has 2 frames"),
    "sixteen bits": (encoded("PNG", np.arange(900, dtype=np.uint16).reshape(30, 30)), "pixel format I;16"),
    "decimal": (encoded("TIFF", np.ones((30, 30), dtype=np.float32)), "pixel format F"),
    "transparent": (encoded("PNG", pixels(30, 30, 4)), "transparent in places"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be read"),
}


@pytest.mark.parametrize(("content", "told"), BROKEN.values(), ids=BROKEN)
def test_broken_pictures_are_named(tmp_path: Path, content: bytes, told: str) -> None:
    """Whatever its name says, a file is decoded as what it is, or refused."""
    put(tmp_path, "a/good.png", pixels(30, 30))
    (tmp_path / "b").mkdir()
    (tmp_path / "b/broken.png").write_bytes(content)
    reader = reader_for(ImagesData(root=tmp_path))
    samples = reader.list()
    with pytest.raises(UnreadableSampleError, match=rf"'broken\.png' .*({told})") as caught:
        reader.read(samples)
    assert_sentence(caught.value, tmp_path)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF"])
def test_flipped_bytes_are_pixels_or_a_sentence(tmp_path: Path, form: str) -> None:
    """Decoders meet every kind of damage; nothing but a refusal comes out of them."""
    raw, generator = encoded(form), np.random.default_rng(0)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.png").write_bytes(raw)
    reader = reader_for(ImagesData(root=tmp_path))
    samples = reader.list()
    for _ in range(60):
        changed = bytearray(raw)
        for place in generator.integers(0, len(raw), 3):
            changed[place] = int(generator.integers(256))
        (tmp_path / "a/x.png").write_bytes(changed)
        try:
            inputs = reader.read(samples)
        except DataError:
            continue
        assert inputs.dtype == np.float32
        assert inputs.min() >= 0
        assert inputs.max() <= 1


def test_no_link_leads_out(tmp_path: Path) -> None:
    """A link out of the folder is refused by name, one inside it to a file is followed, one to a folder is not and is listed."""
    outside = put(tmp_path, "outside/secret.png")
    root = tmp_path / "root"
    put(root, "a/x.png")
    (root / "b").mkdir()
    (root / "b/same.png").symlink_to(root / "a/x.png")
    (root / "c").symlink_to(root / "a")
    (root / "b/lost.png").symlink_to(root / "a/gone.png")
    os.mkfifo(root / "b/pipe.png")
    reader = reader_for(ImagesData(root=root))
    samples = reader.list()
    assert list(samples["id"]) == ["a_x", "b_same"]
    np.testing.assert_array_equal(*reader.read(samples))
    assert dict(reader.left_out()) == {
        "b/lost.png": "it is no regular file",
        "b/pipe.png": "it is no regular file",
        "c": "it is a link to a folder",
    }
    for name, target in (("out.png", outside), ("folder", outside.parent), ("etc", Path("/etc/passwd"))):
        (root / "b" / name).symlink_to(target)
        with pytest.raises(DataError, match=f"'b/{name}' is a link that leads out of the data folder; copy"):
            reader.list()
        (root / "b" / name).unlink()
    (root / "a/x.png").unlink()
    (root / "a/x.png").symlink_to(outside)  # after the samples were listed
    with pytest.raises(UnreadableSampleError, match=r"'x\.png' leads out of the data folder"):
        reader.read(samples)
    with pytest.raises(UnreadableSampleError, match="leads out of the data folder"):
        reader.read(samples.assign(path="../outside/secret.png"))


def test_names_that_cannot_be_shown_are_left_out(tmp_path: Path) -> None:
    put(tmp_path, "a/x.png")
    put(tmp_path, "a/line\nfeed.png")
    (tmp_path / "a" / os.fsdecode(b"latin\xe9.png")).write_bytes(encoded("PNG"))
    reader = reader_for(ImagesData(root=tmp_path))
    assert list(reader.list()["id"]) == ["a_x"]
    assert [name for name, _ in reader.left_out()] == ["a/latin?.png", "a/line?feed.png"]


def test_too_many_files_are_nobodys_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abcd":
        put(tmp_path, f"a/{name}.png")
    monkeypatch.setattr("tracin_core.data.checks.MOST_FILES", 3)
    with pytest.raises(DataError, match="more than 3 files"):
        reader_for(ImagesData(root=tmp_path)).list()


def test_large_files_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a/x.png")
    reader = reader_for(ImagesData(root=tmp_path))
    monkeypatch.setattr(module, "LARGEST_FILE", 20)
    with pytest.raises(UnreadableSampleError, match=r"'x\.png' has [0-9]+ bytes, more than the 20"):
        reader.read(reader.list())


def test_the_preview_is_what_the_model_sees(tmp_path: Path) -> None:
    put(tmp_path, "a/x.png")
    reader = reader_for(ImagesData(root=tmp_path))
    samples = reader.list()
    reader.preview(samples.iloc[0], reader.read(samples)[0], tmp_path / "seen")
    with Image.open(tmp_path / "seen.png") as image:
        np.testing.assert_array_equal(np.asarray(image)[::14, ::14], pixels())
