"""Files exactly as annotation tools write them: the tags of every photo, and what cannot be read."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from wsss_afa.data.folder.content import read_folder
from wsss_afa.data.folder.tags import read_tags
from wsss_afa.errors import UserError

TAGS = {"a": {"cat"}, "b": {"cat", "hot, <b>dog</b>"}, "c": set(), "d d": {"müll"}}
CLASSES = ("cat", "hot, <b>dog</b>", "müll")


def photos(root, *folders, names=tuple(TAGS)):
    """The photos, in turn in each of the folders."""
    for i, name in enumerate(names):
        path = root / (folders or ("",))[i % len(folders or ("",))] / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 12, 3), 40 * i, np.uint8)).save(path)


def write(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        (root / name).write_text(text, encoding="utf-8")


def found(content):
    """Tags by photo, in names."""
    return {
        file.rpartition("/")[2].removesuffix(".jpg"): {content.class_names[c] for c in np.flatnonzero(own)}
        for file, own in zip(content.files, content.labels, strict=True)
    }


# Label Studio 1.x

UPLOADS = {name: f"/data/upload/3/{k}1b2c3d4-{name.replace(' ', '_')}.jpg" for k, name in enumerate(TAGS)}


def choices(names, control="choice"):
    return {
        "value": {"choices": names}, "id": "x9Gk", "from_name": control, "to_name": "image",
        "type": "choices", "origin": "manual",
    }  # fmt: skip


def annotation(result, when="2024-05-01T10:00:00.000000Z", **more):
    return {
        "id": 7, "completed_by": 1, "result": result, "was_cancelled": False, "ground_truth": False,
        "created_at": when, "updated_at": when, "draft_created_at": None, "lead_time": 3.25, "task": 1,
    } | more  # fmt: skip


def task(n, address, annotations):
    return {
        "id": n, "annotations": annotations, "file_upload": address.rpartition("/")[2], "drafts": [],
        "predictions": [], "data": {"image": address}, "meta": {}, "project": 3, "inner_id": n,
    }  # fmt: skip


def tasks(addresses=UPLOADS):
    answers = {name: [choices(sorted(tags))] if tags else [] for name, tags in TAGS.items()}
    return [task(n, addresses[name], [annotation(answers[name])]) for n, name in enumerate(TAGS, 1)]


def short(value_of):
    own = {"annotator": 1, "annotation_id": 7, "lead_time": 3.25}
    own |= {"created_at": "2024-05-01T10:00:00Z", "updated_at": "2024-05-01T10:00:00Z"}
    rows = []
    for n, (name, tags) in enumerate(TAGS.items(), 1):
        names = sorted(tags)
        chosen = {"choice": value_of(names[0] if len(names) == 1 else {"choices": names})} if names else {}
        rows.append({"image": UPLOADS[name], "id": n, **chosen, **own})
    return rows


def csv_of(rows):
    """As Python's csv.QUOTE_NONNUMERIC has it, columns in the alphabet's order."""
    columns = sorted({key for row in rows for key in row})

    def cell(value):
        return str(value) if isinstance(value, int | float) else '"' + value.replace('"', '""') + '"'

    lines = [",".join(f'"{column}"' for column in columns)]
    return "\n".join([*lines, *(",".join(cell(row.get(c, "")) for c in columns) for row in rows)]) + "\n"


REGION = {"original_width": 12, "original_height": 9, "image_rotation": 0, "x": 1.5, "y": 2, "width": 3}
LOCAL = {name: f"/data/local-files/?d=photos/{name.replace(' ', '%20')}.jpg" for name in TAGS}
BUCKET = {name: f"s3://bucket/some/{name}.jpg" for name in TAGS}
WEB = {name: f"https://host/x/{name.replace(' ', '%20')}.jpg?X-Amz-Date=2" for name in TAGS}

LABEL_STUDIO = {
    "JSON": {"project-3-at-2024-05-01.json": tasks()},
    "JSON of local storage": {"export.json": tasks(LOCAL)},
    "JSON of a bucket": {"export.json": tasks(BUCKET)},
    "JSON of the web": {"export.json": tasks(WEB)},
    "JSON-MIN": {"export.json": short(lambda value: value)},
    "CSV": {"export.csv": csv_of(short(lambda v: v if isinstance(v, str) else json.dumps(v)))},
    "JSON of boxes": {"export.json": [
        task(n, UPLOADS[name], [annotation([
            {"value": {**REGION, "rectanglelabels": [tag]}, "from_name": "label", "type": "rectanglelabels"}
            for tag in sorted(tags)])])
        for n, (name, tags) in enumerate(TAGS.items(), 1)]},
}  # fmt: skip


@pytest.mark.parametrize("form", LABEL_STUDIO)
def test_label_studio(tmp_path, form):
    photos(tmp_path)
    write(tmp_path, LABEL_STUDIO[form])
    content = read_folder(tmp_path)
    assert (content.class_names, found(content)) == (CLASSES, TAGS)
    assert "Label Studio's form" in content.summary
    assert not content.doubts


def test_a_photo_of_the_uploaded_name_comes_first(tmp_path):
    photos(tmp_path, names=("0a1b2c3d-a", "a", "b"))
    files = (
        "/data/upload/1/0a1b2c3d-a.jpg",
        "/data/upload/1/9a1b2c3d-a.jpg",
        "/data/upload/1/9a1b2c3d-b.jpg",
    )
    tags = (["cat"], ["dog"], [])
    rows = [
        task(n, *both)
        for n, both in enumerate(zip(files, [[annotation([choices(own)])] for own in tags], strict=True))
    ]
    write(tmp_path, {"x.json": rows})
    assert found(read_folder(tmp_path)) == {"0a1b2c3d-a": {"cat"}, "a": {"dog"}, "b": set()}


def test_the_newest_annotation_counts_and_skipped_ones_do_not(tmp_path):
    photos(tmp_path, names="abc")
    newest = [annotation([choices(["dog"])], "2024-05-02T09:00:00Z"), annotation([choices(["cat"])])]
    skipped = [annotation([choices(["cat"])], "2024-05-09T09:00:00Z", was_cancelled=True), annotation([])]
    write(tmp_path, {"x.json": [task(1, "a.jpg", newest), task(2, "b.jpg", skipped), task(3, "c.jpg", [])]})
    content = read_folder(tmp_path, ignore_unlisted=True)
    assert found(content) == {"a": {"dog"}, "b": set()}
    (doubt,) = content.doubts
    assert "x.json has 1 further annotations of the same photos: the newest of each is read" in doubt
    with pytest.raises(UserError, match=r"photos without tags: 1, c\.jpg first: add rows, or set"):
        read_folder(tmp_path)


def test_two_questions_are_said_to_be(tmp_path):
    photos(tmp_path, names="ab")
    two = annotation([choices(["cat"]), choices(["blurred"], "quality")])
    write(tmp_path, {"x.json": [task(1, "a.jpg", [two]), task(2, "b.jpg", [annotation([])])]})
    content = read_folder(tmp_path)
    assert found(content) == {"a": {"blurred", "cat"}, "b": set()}
    assert "has answers to choice and quality, all read as tags" in content.doubts[0]


# CVAT 2.x, FiftyOne, YOLO, rows


def cvat(shape='<tag label={} source="manual"></tag>', subsets=()):
    from xml.sax.saxutils import quoteattr

    images = "".join(
        f'  <image id="{n}" name={quoteattr(f"{name}.jpg")}'
        + (f' subset="{subsets[n]}" task_id="4"' if subsets else "")
        + ' width="12" height="9">\n'
        + "".join("    " + shape.format(quoteattr(tag)) + "\n" for tag in sorted(tags))
        + "  </image>\n"
        for n, (name, tags) in enumerate(TAGS.items())
    )
    labels = "".join(
        f"<label><name>{name.replace('<', '&lt;').replace('>', '&gt;')}</name><color>#fa3253</color>"
        "<type>any</type><attributes></attributes></label>"
        for name in reversed(CLASSES)
    )
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n  <meta><job>'
        f"<id>9</id><mode>annotation</mode><labels>{labels}</labels></job></meta>\n{images}</annotations>\n"
    )


BOX = '<box label={} source="manual" occluded="0" xtl="1.00" ytl="1.00" xbr="5.00" ybr="4.5" z_order="0"/>'


@pytest.mark.parametrize("shape", ["tag", "box"])
def test_cvat(tmp_path, shape):
    photos(tmp_path, "images")
    write(tmp_path, {"annotations.xml": cvat(*[BOX] * (shape == "box"))})
    content = read_folder(tmp_path)
    assert (content.class_names, found(content)) == (CLASSES[::-1], TAGS)
    assert "annotations.xml, CVAT's form" in content.summary


def test_cvat_in_utf_16(tmp_path):
    photos(tmp_path, "images")
    (tmp_path / "annotations.xml").write_text(cvat().replace("utf-8", "utf-16"), encoding="utf-16")
    assert found(read_folder(tmp_path)) == TAGS


def test_cvat_subsets_are_splits(tmp_path):
    photos(tmp_path)
    write(tmp_path, {"annotations.xml": cvat(subsets=["Train", "Train", "Validation", "Test"])})
    assert read_folder(tmp_path).splits == ["train", "train", "val", "test"]
    write(tmp_path, {"annotations.xml": cvat(subsets=["default"] * 4)})
    assert sorted(read_folder(tmp_path).splits) == ["train"] * 3 + ["val"]


FIFTYONE = {
    "places in a list": ([0], [0, 1], [], [2]),
    "with attributes": ([{"label": 0, "confidence": 0.9}], [{"label": 1}, {"label": 0}], [], [{"label": 2}]),
    "names": (["cat"], [*CLASSES[:2]], [], ["müll"]),
}


@pytest.mark.parametrize("form", FIFTYONE)
def test_fiftyone(tmp_path, form):
    photos(tmp_path, "data")
    classes = None if form == "names" else list(CLASSES)
    labels = {name: own or None for name, own in zip(TAGS, FIFTYONE[form], strict=True)}
    write(tmp_path, {"labels.json": {"classes": classes, "labels": labels}})
    content = read_folder(tmp_path)
    assert (content.class_names, found(content)) == (CLASSES, TAGS)
    assert "labels.json, FiftyOne's form" in content.summary
    assert re.search("has null for 1 images, read as no tag", content.doubts[0])


def test_fiftyone_of_one_class_each(tmp_path):
    photos(tmp_path, "data", names="abc")
    write(
        tmp_path, {"labels.json": {"classes": ["cat", "dog"], "labels": {"a": 0, "b": {"label": 1}, "c": 1}}}
    )
    assert found(read_folder(tmp_path)) == {"a": {"cat"}, "b": {"dog"}, "c": {"dog"}}


SAMPLES = {
    "Classification": lambda names: {"_cls": "Classification", "label": names[0]} if names else None,
    "Classifications": lambda names: {
        "_cls": "Classifications",
        "classifications": [{"label": n} for n in names],
    },
    "Detections": lambda names: {
        "_cls": "Detections",
        "detections": [{"label": name, "bounding_box": [0, 0, 1, 1]} for name in names * 2],
    },
}


@pytest.mark.parametrize("form", SAMPLES)
@pytest.mark.parametrize("split", [None, "validation"])
def test_fiftyone_samples(tmp_path, form, split):
    """The field may have any name; ``metadata`` and the like hold no labels."""
    photos(tmp_path, "data")
    tags = {name: sorted(own)[: 1 if form == "Classification" else None] for name, own in TAGS.items()}
    samples = [
        {
            "filepath": f"data/{name}.jpg", "metadata": {"_cls": "ImageMetadata", "width": 12},
            "tags": [(split if i == 1 else "train")] if split else ["blurred"],
            "subject": SAMPLES[form](own), "uniqueness": 0.5,
        }
        for i, (name, own) in enumerate(tags.items())
    ]  # fmt: skip
    write(tmp_path, {"samples.json": {"samples": samples}, "metadata.json": {"name": "x"}})
    content = read_folder(tmp_path, "samples.json")
    assert found(content) == {name: set(own) for name, own in tags.items()}
    assert "samples.json, FiftyOne's form" in content.summary
    if split:
        assert content.splits == ["train", "val", "train", "train"]


YOLO_TEXT = {
    "a": "0 0.5 0.5 0.2 0.2\n0 0.1 0.1 0.2 0.2\n",
    "b": "1 0.1 0.2 0.3 0.3 0.5 0.4\n0 .5 .5 .1 .1",
    "c": "",
}
YOLO = {
    "Ultralytics": (
        "data.yaml", "path: .\nnames:\n  0: cat\n  1: 'hot, <b>dog</b>'\n  2: müll\n", "labels/{}/{}.txt"),
    "Roboflow": ("data.yaml", "nc: 3\nnames: ['cat', 'hot, <b>dog</b>', müll]\n", "{}/labels/{}.txt"),
    "Label Studio": ("classes.txt", "cat\nhot, <b>dog</b>\nmüll\n", "labels/{}/{}.txt"),
    "Darknet": ("obj.names", "cat\nhot, <b>dog</b>\nmüll\n", "obj/{}/{}.txt"),
}  # fmt: skip


@pytest.mark.parametrize("form", YOLO)
def test_yolo(tmp_path, form):
    listing, names, place = YOLO[form]
    splits = ("train", "val")
    pictured = place.replace("labels", "images").rpartition("/")[0]
    photos(tmp_path, *(pictured.format(split) for split in splits))
    texts = YOLO_TEXT | {"d d": "2 0.5 0.5 0.2 0.2 0.1 0.1\n"}
    written = {place.format(splits[i % 2], name): text for i, (name, text) in enumerate(texts.items())}
    write(tmp_path, {listing: names, **written})
    if form == "Label Studio":
        write(tmp_path, {"notes.json": {"categories": [{"id": 0, "name": "cat"}], "info": {"year": 2024}}})
    content = read_folder(tmp_path)
    assert (content.class_names, found(content)) == (CLASSES, TAGS)
    assert "YOLO's label files" in content.summary
    assert content.splits == ["train", "train", "val", "val"]
    next(iter(tmp_path.rglob("c.txt"))).unlink()
    assert found(read_folder(tmp_path)) == TAGS
    assert "has 1 photos without a label file" in read_folder(tmp_path).doubts[0]


def test_a_row_for_each_photo_and_tag(tmp_path):
    photos(tmp_path)
    rows = [f'{name}.jpg,"{tag}"' for name, tags in TAGS.items() for tag in sorted(tags) * 2 or [""]]
    write(
        tmp_path,
        {"labels.csv": "\n".join(["image,label", *reversed(rows)]), "classes.txt": "\n".join(CLASSES)},
    )
    content = read_folder(tmp_path)
    assert found(content) == TAGS
    assert "labels.csv, a row for each photo and tag" in content.summary


MISTAKES = {
    "video of CVAT": ({"a.xml": "<annotations><track/></annotations>"}, r"a\.xml has no image: export"),
    "entities": (
        {"a.xml": "<!DOCTYPE x []><annotations></annotations>"}, "no XML of CVAT .a document type.: export"),
    "torn XML": ({"a.xml": "<annotations><image"}, "is no XML of CVAT"),
    "nameless image": ({"a.xml": '<annotations><image id="3"/></annotations>'}, "image 3 has no name: exp"),
    "class unknown to FiftyOne": (
        {"labels.json": {"classes": ["x"], "labels": {"a": 1}}}, "'a' has the label 1, need"),
    "labels of FiftyOne in two fields": (
        {"a.json": {"samples": [{"x": {"_cls": "Detections"}, "y": {"_cls": "Classification"}}]}},
        "in the fields x and y, need one field"),
    "nameless FiftyOne label": (
        {"a.json": {"samples": [{"filepath": "a.jpg", "x": {"_cls": "Classification"}}]}},
        "sample 1' has the label None, need"),
    "no task": ({"a.json": [*tasks(), {"id": 5}]}, "task 5 is no task of Label Studio: export"),
    "no image in a task": (
        {"a.json": [task(1, "x", [annotation([])]) | {"data": {"text": "x"}}]}, "tasks without an image"),
    "several questions": (
        {"a.csv": "annotation_id,lead_time,image,mood,scene\n1,2,a.jpg,x,y\n"},
        r"\['mood', 'scene'\], need one"),
    "YOLO beyond its names": (
        {"data.yaml": "names: [cat]", "a.txt": "1 .5 .5 .1 .1\n"}, "begins with '1', need"),
    "broken YAML": ({"data.yaml": "names: [cat", "a.txt": "0 .5 .5 .1 .1\n"}, r"data\.yaml is no YAML"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_line(tmp_path, mistake):
    files, pattern = MISTAKES[mistake]
    photos(tmp_path)
    write(tmp_path, files)
    with pytest.raises(UserError, match=pattern) as error:
        read_folder(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "annotations", [["x"], [None], [{"result": "x"}], [{"result": [3]}], [{"result": [None]}]]
)
def test_label_studio_broken_inside_is_refused(tmp_path, annotations):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"id": 7, "data": {"image": "a.png"}, "annotations": annotations}]))
    with pytest.raises(UserError, match=r"task 7 is no task of Label Studio: export"):
        read_tags(path)


def test_label_studio_answers_that_name_nothing_are_doubted(tmp_path):
    path = tmp_path / "x.json"
    results = [{"value": {"rating": 3}}], [{"value": {"choices": [1]}, "from_name": None}], None
    path.write_text(json.dumps([
        {"id": i, "data": {"image": f"http://[x/{i}.png"}, "annotations": [{"result": result}]}
        for i, result in enumerate(results)
    ]))  # fmt: skip
    table = read_tags(path)
    assert [row.tags for row in table.rows] == [(), ("1",), ()]
    assert "has 1 annotations without a name, such as ratings" in table.doubts[0]


def test_a_subset_of_cvat_that_is_no_split_is_refused_beside_tests(tmp_path):
    path = tmp_path / "annotations.xml"
    images = "".join(
        f'<image id="{i}" name="{i}.png" subset="{name}"/>' for i, name in enumerate(["Test", "x"])
    )
    path.write_text(f"<annotations>{images}</annotations>")
    with pytest.raises(UserError, match=r"subset 'x', need Train, Validation or Test"):
        read_tags(path)
