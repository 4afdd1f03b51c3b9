"""DATASET.CLASSES: names, files and parts of a partition."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apd.classes import RULE, Partition, chosen_names, folder_name, name_suffix, partition
from apd.errors import UserError

LETTERS = list("abcdefghij")


def test_a_partition_is_the_shuffled_sorted_names_cut_into_parts():
    shuffled = sorted(LETTERS)
    random.Random(5).shuffle(shuffled)
    cut = [shuffled[:4], shuffled[4:7], shuffled[7:]]
    assert [Partition(k, 3, 5).of(reversed(LETTERS)) for k in (1, 2, 3)] == [set(c) for c in cut]


def test_a_partition_is_the_same_everywhere():
    # Python's Mersenne Twister and shuffle are the same on all machines and versions since 3.2
    assert sorted(Partition(1, 3, 0).of(LETTERS)) == ["b", "f", "h", "i"]
    assert sorted(Partition(3, 3, 0).of(LETTERS)) == ["a", "g", "j"]


@settings(deadline=None)
@given(st.sets(st.text(min_size=1), min_size=1, max_size=40), st.integers(1, 40), st.integers(0, 9))
def test_each_class_is_in_one_part_and_parts_are_as_equal_as_can_be(names, parts, seed):
    if parts > len(names):
        with pytest.raises(UserError, match=f"{len(names)} classes .* into {parts} parts"):
            Partition(1, parts, seed).of(names)
        return
    found = [Partition(k, parts, seed).of(names) for k in range(1, parts + 1)]
    assert sorted(name for part in found for name in part) == sorted(names)
    sizes = [len(part) for part in found]
    assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)


def test_values_are_read_from_text_lists_and_files(tmp_path):
    assert RULE.read("3/10/0") == ["3/10/0"] and partition(["3/10/0"]) == (3, 10, 0)
    assert RULE.read("cat, dog") == RULE.read("['cat', 'dog']") == RULE.read(["cat", "dog"])
    assert RULE.read(["ear, nose"]) == ["ear, nose"]  # a name with a comma stands in a list
    assert RULE.read("") == RULE.read([]) == []
    (tmp_path / "pets.txt").write_text("cat\n\n  hot dog \n")
    assert RULE.read(str(tmp_path / "pets.txt")) == ["cat", "hot dog"]


@pytest.mark.parametrize("value", ["0/3/0", "4/3/0", "cat,cat", ["cat", 3], 7])
def test_values_that_name_no_classes_are_refused(value):
    with pytest.raises(ValueError):
        RULE.read(value)


def test_an_empty_or_missing_file_is_refused(tmp_path):
    (tmp_path / "none.txt").write_text("\n")
    with pytest.raises(ValueError):
        RULE.read(str(tmp_path / "none.txt"))
    with pytest.raises(UserError, match="gone.txt"):
        RULE.read(str(tmp_path / "gone.txt"))


def test_classes_that_there_are_not_are_told_with_those_near():
    with pytest.raises(UserError, match="no class cow, hen: did you mean crow"):
        chosen_names(["crow", "cat"], ["cow", "cat", "hen"])
    assert chosen_names("abc", []) == set("abc") and chosen_names("abc", ["b"]) == {"b"}


@pytest.mark.parametrize(
    "values, name, folder",
    [
        ([], "", "food"),
        (["3/10/0"], " 3/10", "food+3-10"),
        (["3/10/7"], " 3/10/7", "food+3-10-7"),
        (["sushi", "ramen"], ": ramen, sushi", "food+ramen-sushi"),
        (LETTERS, ": 10 classes 37f4c3", "food+10-classes-37f4c3"),  # sha256sum of the lines
    ],
)
def test_classes_have_a_name_and_a_folder(values, name, folder):
    assert name_suffix(values) == name
    assert folder_name("food", values) == folder == folder_name("food", ",".join(values))


def test_long_lists_have_a_name_of_their_own_whatever_their_order():
    assert name_suffix(LETTERS) == name_suffix(LETTERS[::-1]) != name_suffix([*LETTERS[:9], "k"])
    assert folder_name("food", "lists/hot.txt") == "food+hot"
