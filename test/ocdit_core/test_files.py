import os

import pytest

from ocdit_core.files import replacing, write_text


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "folder" / "result.txt"
    write_text(path, "first ä")
    assert path.read_text(encoding="utf-8") == "first ä"

    def fail_half_way():
        with replacing(path) as temporary:
            temporary.write_text("half")
            assert temporary.suffix == ".txt"
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fail_half_way()
    assert path.read_text(encoding="utf-8") == "first ä"
    assert list(path.parent.iterdir()) == [path]


def test_the_permissions_are_the_usual_ones(tmp_path):
    write_text(tmp_path / "ours", "x")
    (tmp_path / "plain").write_text("x")
    assert os.stat(tmp_path / "ours").st_mode == os.stat(tmp_path / "plain").st_mode


def test_a_folder_that_is_a_file_is_an_os_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        write_text(tmp_path / "file" / "result.txt", "x")
