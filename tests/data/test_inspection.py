"""Looking through data: what a look tells, what counts as a finding, and what is counted."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from wsss_afa.data.folder.content import FolderDataModule
from wsss_afa.data.inspection import Look, Split, choose, co_occurrence, describe, find_problems, look_at_all
from wsss_afa.data.synthetic import SyntheticScenes

CLASSES = ("cat", "dog", "owl")


def seen(place, digest="", labels=(), problem=""):
    return Look(place, problem, (0, 0) if problem else (30, 40), "JPEG RGB", digest or place, labels)


def split(name, *images):
    """A split of (look, tags such as "cat dog")."""
    looks, tags = zip(*images, strict=True)
    multi_hot = np.array([[c in own.split() for c in CLASSES] for own in tags])
    return Split(name, CLASSES, multi_hot, list(looks))


def lines(*splits, kind):
    return [(f.level, f.message) for f in find_problems(splits) if f.kind == kind]


def photo(path, seed=0, size=(12, 16), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path):
    """Photos by class with masks for validation; looked through, it is (train set, val set)."""
    for part in ("train", "val"):
        for number, name in enumerate(("cat", "dog", "background")):
            photo(tmp_path / part / name / f"{part}{number}.png", seed=number + 10 * (part == "val"))
            mask = np.full((12, 16), number if name == "dog" else 0, np.uint8)
            mask[:3] = {"cat": 1, "dog": 2, "background": 255}[name]
            path = tmp_path / "masks" / part / name / f"{part}{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)
    return tmp_path


def looks(root, part, workers=0):
    data = FolderDataModule(str(root))
    return list(look_at_all(data.make_set(part), workers))


def test_a_look_tells_size_kind_content_and_labels(folder):
    background, cat, dog = looks(folder, "val")
    path = folder / "val" / "cat" / "val0.png"
    assert cat.place == str(path)
    assert (cat.problem, cat.size, cat.kind, cat.labels) == ("", (12, 16), "PNG RGB", (0, 1))
    assert cat.digest == hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    assert (dog.labels, background.labels) == ((1, 2), (0, 255))
    assert [each.labels for each in looks(folder, "train")] == [(), (), ()]


def test_what_training_refuses_is_the_problem(folder):
    (folder / "train" / "dog" / "train1.png").write_bytes(b"no image")
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(folder / "masks" / "val" / "cat" / "val0.png")
    Image.fromarray(np.full((12, 16), 9, np.uint8)).save(folder / "masks" / "val" / "dog" / "val1.png")
    _, _, dog = looks(folder, "train")
    assert dog.place.endswith("train1.png")
    assert (dog.size, dog.kind) == ((0, 0), "")
    assert "train1.png cannot be read as an image" in dog.problem
    _, cat, dog = looks(folder, "val")
    assert "val0.png is (5, 5) pixels, its image (12, 16)" in cat.problem
    assert "val1.png has label 9" in dog.problem
    assert cat.digest, "a copy is found even where the mask is of no use"


def test_processes_see_the_same_in_the_same_order(tmp_path):
    for number in range(70):
        photo(tmp_path / ("cat" if number % 2 else "background") / f"{number:02d}.png", seed=number)
    alone = looks(tmp_path, "train")
    assert len(alone) == 63
    assert looks(tmp_path, "train", workers=2) == alone


def test_sets_without_files_are_told_apart_by_pixels():
    scenes = SyntheticScenes(6, size=32, split="val", with_mask=True)
    found = list(look_at_all(scenes, 0))
    assert [each.place for each in found] == [f"val_{i:06d}" for i in range(6)]
    assert len({each.digest for each in found}) == 6
    shown = [tuple(np.flatnonzero(row) + 1) for row in scenes.labels]
    assert [tuple(label for label in each.labels if label) for each in found] == shown


def test_nothing_is_found_in_sound_data():
    train = split("train", (seen("a"), "cat"), (seen("b"), "dog"), (seen("c"), "owl"), (seen("d"), ""))
    val = split("val", (seen("e", labels=(0, 2, 255)), "dog"), (seen("f", labels=(0,)), ""))
    assert find_problems([train, val]) == []


def test_copies_across_splits_are_errors():
    train = split("train", (seen("a", "1"), "cat"), (seen("b", "2"), "dog"), (seen("c", "1"), "dog"))
    val = split("val", (seen("d", "1"), "cat"), (seen("b", "2"), "dog"))
    (level, copy), (_, twice) = lines(train, val, kind="leak")
    assert level == "error"
    assert copy == (
        "a in train and d in val are the same image (3 copies), so that the score does not count: "
        "take it out of one of them"
    )
    assert twice.startswith("b in train and b in val are the same image,")
    assert not lines(train, val, kind="duplicate")


def test_copies_within_a_split_are_warnings_and_their_tags_are_compared():
    train = split("train", (seen("a", "1"), "cat"), (seen("b", "1"), "cat"),
                  (seen("c", "2"), "dog owl"), (seen("d", "2"), ""))  # fmt: skip
    assert lines(train, kind="duplicate") == [
        ("warning", "a and b are the same image: delete all but one"),
        (
            "warning",
            "c (dog, owl) and d (no tag) are the same image with different tags: delete the wrong one",
        ),
    ]


def test_unreadable_files_come_first_and_are_no_copies_of_each_other():
    broken = [Look(name, f"{name} cannot be read: copy it", (0, 0), "", "", ()) for name in "ab"]
    train = split("train", *((each, "cat") for each in broken), (seen("c"), "dog"))
    findings = find_problems([train])
    assert [finding.message for finding in findings[:2]] == [each.problem for each in broken]
    assert [finding.kind for finding in findings] == ["unreadable", "unreadable", "tags"]


def test_masks_that_contradict_the_tags():
    val = split("val", (seen("a", labels=(0, 1, 3)), "cat"), (seen("b", labels=(0,)), "dog"),
                (seen("c", labels=(0, 255)), "dog"))  # fmt: skip
    assert lines(val, kind="mask") == [
        ("warning", "a has owl in its mask and not in its tags: add the tag or mend the mask"),
        ("warning", "b has tags and a mask of background alone: draw the mask or remove the tags"),
    ]


def test_tags_that_teach_little():
    images = [(seen(f"{i}"), "cat dog" if i < 12 else "cat") for i in range(150)]
    found = dict(enumerate(message for _, message in lines(split("train", *images), kind="tags")))
    assert found[0].startswith("train has no image of owl")
    assert found[1].startswith("dog never comes without cat in 12 images")
    assert found[2].startswith("train has 150 images of cat and 12 of dog: try data.balanced=true")
    assert len(found) == 3
    assert not lines(split("val", *images), kind="tags")


def test_counts():
    train = split("train", (seen("a"), "cat dog"), (seen("b"), "cat dog owl"), (seen("c"), ""),
                  (seen("d", problem="d is broken"), "cat"))  # fmt: skip
    report = describe(train)
    assert (report["images"], report["usable"], report["without_tags"]) == (4, 3, 1)
    assert report["classes"] == {"cat": 3, "dog": 2, "owl": 1}
    assert report["tags_per_image"] == 1.5
    assert report["height"] == {"min": 30, "median": 30, "max": 30}
    assert report["common_sizes"] == {"40 × 30": 3}
    assert report["kinds"] == {"JPEG RGB": 4}


def test_co_occurrence_agrees_with_counting_by_hand():
    tags = np.random.default_rng(0).random((200, 6)) < 0.3
    names = tuple("abcdef")
    pairs = co_occurrence(Split("train", names, tags, []), top=15)
    by_hand = {
        (names[i], names[j]): sum(bool(row[i] and row[j]) for row in tags)
        for i in range(6)
        for j in range(i + 1, 6)
    }
    assert {(one, other): count for one, other, count, _ in pairs} == by_hand
    assert [count for *_, count, _ in pairs] == sorted(by_hand.values(), reverse=True)
    one, other, count, share = pairs[0]
    assert share == count / min(tags[:, names.index(one)].sum(), tags[:, names.index(other)].sum())
    assert len(co_occurrence(Split("train", names, tags, []), top=4)) == 4


def test_pictures_show_as_many_classes_as_possible():
    tags = np.zeros((50, 4), bool)
    tags[:, 0] = True
    tags[7, 1] = tags[31, 2] = True
    assert {7, 31} <= set(choose(tags, 3))
    assert len(set(choose(tags, 20))) == 20
    assert choose(tags, 99) == list(range(50))
    assert choose(tags, 0) == choose(tags[:0], 5) == []
