"""Reading and writing computational sequences."""

import h5py
import numpy as np
import pytest
from make_corpus import grid, recording

from jax_emossl.data import csd
from jax_emossl.errors import UserError


def test_round_trip(tmp_path):
    entries = {"b": recording(0, 5), "a": recording(1, 3)}
    csd.write(tmp_path / "x.csd", "root", ((r, *e) for r, e in entries.items()), {"dimension names": ["x", "y", "z"]})
    with csd.Sequence(tmp_path / "x.csd") as sequence:
        assert sequence.root == "root"
        assert sequence.ids == ["a", "b"]
        assert "a" in sequence and "c" not in sequence
        assert sequence.metadata == {"root name": "root", "dimension names": ["x", "y", "z"]}
        for entry, (frames, intervals) in entries.items():
            read = sequence.read(entry)
            assert sequence.shape(entry) == frames.shape
            np.testing.assert_array_equal(read[0], frames)
            np.testing.assert_array_equal(read[1], intervals)


def test_other_numeric_types_become_float32_and_float64(tmp_path):
    csd.write(tmp_path / "x.csd", "root", [("a", np.arange(6).reshape(3, 2), grid(3).astype(np.float32))])
    with csd.Sequence(tmp_path / "x.csd") as sequence:
        frames, intervals = sequence.read("a")
    assert (frames.dtype, intervals.dtype) == (np.float32, np.float64)


def test_values_beyond_float32_are_not_finite(tmp_path):
    csd.write(tmp_path / "x.csd", "root", [("a", np.array([[1e300]]), grid(1))])
    with csd.Sequence(tmp_path / "x.csd") as sequence:
        assert np.isinf(sequence.read("a")[0]).all()


def test_text_features_have_intervals_but_cannot_be_read(tmp_path):
    csd.write(tmp_path / "x.csd", "words", [("a", np.array([[b"sp"], [b"well"]]), grid(2))])
    with csd.Sequence(tmp_path / "x.csd") as sequence:
        np.testing.assert_array_equal(sequence.intervals("a"), grid(2))
        with pytest.raises(UserError, match="entry 'a', has features of type"):
            sequence.read("a")


@pytest.mark.parametrize(("text", "value"), [('["x", "y"]', ["x", "y"]), ("['x', 'y']", ["x", "y"]), ("x y", None), ("[(", None)])
def test_metadata_is_json_or_what_str_gives(tmp_path, text, value):
    csd.write(tmp_path / "x.csd", "root", [("a", *recording(0, 3))])
    with h5py.File(tmp_path / "x.csd", "a") as file:
        file["root"].create_dataset("metadata/names", data=[text], dtype=h5py.string_dtype())
    with csd.Sequence(tmp_path / "x.csd") as sequence:
        assert sequence.metadata.get("names") == value


def test_links_to_other_files_are_not_followed(tmp_path):
    csd.write(tmp_path / "secret.csd", "root", [("a", *recording(0, 3))])
    csd.write(tmp_path / "x.csd", "root", [("b", *recording(0, 3))])
    with h5py.File(tmp_path / "x.csd", "a") as file:
        file["root/data/a"] = h5py.ExternalLink("secret.csd", "root/data/a")
    with csd.Sequence(tmp_path / "x.csd") as sequence, pytest.raises(UserError, match="no group 'root/data/a'"):
        sequence.read("a")


@pytest.mark.parametrize("options", [{"compression": "gzip"}, {"compression": "gzip", "shuffle": True}, {"compression": "lzf"}, {}])
def test_compressed_chunks_are_read_like_plain_ones(tmp_path, options):
    frames, intervals = recording(0, 50)
    csd.write(tmp_path / "x.csd", "root", [("a", frames, intervals)])
    with h5py.File(tmp_path / "x.csd", "a") as file:
        del file["root/data/a/features"]
        data = file.create_dataset("root/data/a/features", frames.shape, "<f4", chunks=(16, 2), **options)
        data[:20], data[20:] = frames[:20], frames[20:]
    with csd.Sequence(tmp_path / "x.csd") as sequence:
        np.testing.assert_array_equal(sequence.read("a")[0], frames)


def test_chunks_that_were_never_written_hold_the_fill_value(tmp_path):
    csd.write(tmp_path / "x.csd", "root", [("a", *recording(0, 50))])
    with h5py.File(tmp_path / "x.csd", "a") as file:
        del file["root/data/a/features"]
        data = file.create_dataset("root/data/a/features", (50, 3), "<f4", chunks=(16, 2), compression="gzip", fillvalue=7)
        data[:5] = 1
    with csd.Sequence(tmp_path / "x.csd") as sequence:
        features = sequence.read("a")[0]
    assert (features[:5] == 1).all() and (features[5:] == 7).all()


def test_a_damaged_chunk_is_refused_with_its_entry(tmp_path):
    csd.write(tmp_path / "x.csd", "root", [("a", *recording(0, 50))])
    with h5py.File(tmp_path / "x.csd", "a") as file:
        del file["root/data/a/features"]
        data = file.create_dataset("root/data/a/features", (50, 3), "<f4", chunks=(50, 3), compression="gzip")
        data[:] = recording(0, 50)[0]
        where = data.id.get_chunk_info(0)
    with open(tmp_path / "x.csd", "r+b") as file:
        file.seek(where.byte_offset)
        file.write(b"\xff" * where.size)
    with csd.Sequence(tmp_path / "x.csd") as sequence, pytest.raises(UserError, match="entry 'a', cannot be read"):
        sequence.read("a")
