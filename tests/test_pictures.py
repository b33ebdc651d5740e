"""--picture: heat maps in a file."""

import sys

import pytest
from test_heatmaps import DIRECTIONS

from plumbing.base.errors import InputError
from plumbing.score.pictures import draw_picture, refuse_picture

pytest.importorskip("matplotlib")
REPORTS = {name: {"directions": DIRECTIONS} for name in ("a", "$x$ <&> 日", "c", "d", "e")}


@pytest.mark.parametrize(
    "name, magic", [("a.png", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.SVG", b"<")]
)
def test_the_name_says_the_format_and_the_same_figures_give_the_same_bytes(tmp_path, name, magic):
    path = tmp_path / name
    refuse_picture(str(path))
    pictures = []
    for _ in range(2):
        draw_picture(str(path), REPORTS, [("it", "nl")])
        pictures.append(path.read_bytes())
    assert pictures[0] == pictures[1] and pictures[0].startswith(magic)
    assert [x.name for x in tmp_path.iterdir()] == [name]


def test_every_system_and_figure_is_in_it(tmp_path):
    draw_picture(str(tmp_path / "a.svg"), REPORTS, [("it", "nl")])
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    for name in ("a", "$x$ &lt;&amp;&gt; 日", "e"):
        assert f">{name}: OTR, %" in text and f">{name}: zero-shot outputs, %" in text
    assert text.count(">75</text>") == len(REPORTS)


def test_what_could_not_be_written_is_said_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "d.png").mkdir()
    for name, said in [("a.jpg", "ends in .png"), ("a", "ends in"), ("d.png", "is a directory")]:
        with pytest.raises(InputError, match=said):
            refuse_picture(str(tmp_path / name))
    for name in ("nowhere/a.png", "x" * 300 + ".png"):
        with pytest.raises(InputError, match="choose another file"):
            refuse_picture(str(tmp_path / name))
    assert [x.name for x in tmp_path.iterdir()] == ["d.png"]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match="pip install -r requirements-optional.txt"):
        refuse_picture(str(tmp_path / "a.png"))


def test_a_full_disk_leaves_the_picture_of_before(tmp_path, monkeypatch):
    path = tmp_path / "a.svg"
    path.write_text("old")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError):
        draw_picture(str(path), REPORTS, [])
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_link_stays_one_and_long_names_fit(tmp_path):
    (tmp_path / "a.svg").write_text("old")
    (tmp_path / "link.svg").symlink_to("a.svg")
    refuse_picture(str(tmp_path / "link.svg"))
    draw_picture(str(tmp_path / "link.svg"), {"x" * 50: REPORTS["a"]}, [])
    assert (tmp_path / "link.svg").is_symlink()
    assert f">{'x' * 19}…: OTR" in (tmp_path / "a.svg").read_text(encoding="utf-8")
