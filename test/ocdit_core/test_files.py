import errno
import multiprocessing
import os

import pytest

from ocdit_core.errors import OutputError
from ocdit_core.files import OWN_FILES, check_output, is_own, own_files, protecting, replacing, write_bytes, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != OWN_FILES)


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "folder" / "result.txt"
    write_text(path, "first ä")
    assert path.read_text(encoding="utf-8") == "first ä"

    def fail_half_way():
        with replacing(path) as temporary:
            temporary.write_text("half")
            assert temporary.suffix == ".txt"
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail_half_way()
    assert path.read_text(encoding="utf-8") == "first ä"
    assert names(path.parent) == ["result.txt"]


def test_the_permissions_are_the_usual_ones(tmp_path):
    write_text(tmp_path / "ours", "x")
    (tmp_path / "plain").write_text("x")
    assert os.stat(tmp_path / "ours").st_mode == os.stat(tmp_path / "plain").st_mode


def test_own_files_are_replaced_and_those_of_others_are_not(tmp_path):
    ours, theirs = tmp_path / "ours.json", tmp_path / "theirs.json"
    theirs.write_text("labels")
    for text in ("first", "second"):
        write_text(ours, text)
        assert ours.read_text() == text
    with pytest.raises(OutputError, match=r"theirs\.json: exists and was not written by ocdit"):
        write_text(theirs, "results")
    assert theirs.read_text() == "labels"
    ours.write_text("corrected by hand")
    with pytest.raises(OutputError, match="changed since"):
        write_text(ours, "third")
    assert ours.read_text() == "corrected by hand"
    assert own_files(tmp_path) == []
    assert not is_own(ours)
    assert is_own(ours, changed=True)


def test_a_copied_or_moved_folder_keeps_what_is_ours(tmp_path):
    write_text(tmp_path / "a" / "ours.txt", "x")
    (tmp_path / "a" / "theirs.txt").write_text("y")
    (tmp_path / "a").rename(tmp_path / "b")
    os.utime(tmp_path / "b" / "ours.txt", (0, 0))
    assert own_files(tmp_path / "b") == [tmp_path / "b" / "ours.txt"]


def test_links_and_folders_are_not_replaced(tmp_path):
    write_text(tmp_path / "real.txt", "x")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "nothing")
    (tmp_path / "folder.txt").mkdir()
    for name in ("link", "dangling", "folder"):
        with pytest.raises(OutputError, match=f"{name}.txt: (exists|is a folder)"):
            write_text(tmp_path / f"{name}.txt", "y")
    assert (tmp_path / "link.txt").is_symlink()


def test_inputs_are_not_replaced_though_they_are_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "a.png", "x")
    with protecting([tmp_path / "a.png", tmp_path / "missing", tmp_path / ("long" * 100)]):
        with pytest.raises(OutputError, match=r"a\.png: is an input"):
            check_output("a.png")
        write_text("b.png", "y")
    write_text("a.png", "z")


def test_unguarded_files_are_replaced_and_not_listed(tmp_path):
    (tmp_path / "cache.bin").write_text("old")
    write_bytes(tmp_path / "cache.bin", b"new", guard=False)
    assert [path.name for path in tmp_path.iterdir()] == ["cache.bin"]


def test_a_damaged_list_costs_no_file(tmp_path):
    write_text(tmp_path / "ours.txt", "x")
    with (tmp_path / OWN_FILES).open("ab") as file:
        file.write(b'nonsense\n[1]\n{"file": "theirs.txt", "sha')
    (tmp_path / "theirs.txt").write_text("y")
    assert own_files(tmp_path) == [tmp_path / "ours.txt"]


def _write_many(folder):
    for number in range(20):
        write_text(folder / f"{os.getpid()}_{number}.txt", "x")


def test_processes_that_share_a_folder_keep_each_others_entries(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write_many, args=(tmp_path,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(own_files(tmp_path)) == 40


def test_what_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/result\.txt: cannot be written \((Not a directory|File exists)\)"):
        write_text(tmp_path / "file" / "result.txt", "x")
    with pytest.raises(OutputError, match="File name too long"):
        write_text(tmp_path / ("n" * 300), "x")
    with pytest.raises(OutputError, match="No space left"), replacing(tmp_path / "full.txt"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == ["file"]


def test_names_that_are_not_utf8(tmp_path):
    path = tmp_path / os.fsdecode(b"bild\xff.txt")
    for text in ("a", "b \udcff"):
        write_text(path, text)
    assert own_files(tmp_path) == [path]
    assert path.read_bytes() == b"b \\udcff"
