import pytest

from cotnet.errors import DataError
from data.sets.read import read_split


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the first line is not split,path,class; add it"),
        ("path,class\na.png,a\n", "the first line is not split,path,class; add it"),
        ("split,path,class\ntrain,a.png\n", "line 2 has not the 3 values"),
        ("split,path,class\nval,a.png,a\n", "no row of split train"),
        ("split,path,class\ntrain,a.gif,a\n", "unsupported files a.gif"),
    ],
)
def test_malformed_lists(tmp_path, content, message):
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(DataError) as caught:
        read_split(tmp_path / "list.csv", "train")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_absolute_paths_and_order(tmp_path):
    (tmp_path / "list.csv").write_text(
        "split,path,class\ntrain,/images/2.png,b\ntrain,z.png,a\ntrain,/images/1.png,b\n"
    )
    found = read_split(tmp_path / "list.csv", "train")
    assert [str(found.path(i)) for i in range(3)] == [str(tmp_path / "z.png"), "/images/1.png", "/images/2.png"]
    assert found.labels.tolist() == [0, 1, 1]
