import numpy as np
import pytest

from ocdit_core.evaluation.metrics import LabelledScene, evaluate_scenes
from ocdit_core.inference.results import Instance, Segmentation
from ocdit_core.masks import tight_box
from ocdit_core.objects.archive import ObjectTemplates, save_templates
from ocdit_core.objects.library import ObjectLibrary


def block(left, width=10, shape=(20, 40)):
    mask = np.zeros(shape, bool)
    mask[5:15, left : left + width] = True
    return mask


def instance(name, score, mask):
    return Instance(object_id=name, score=score, box=tight_box(mask), mask=mask)


class Scripted:
    """Answers what it was told to, and notes which targets it was given."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.given = []

    def set_objects(self, library, object_ids):
        library.select(object_ids)
        self.given.append(tuple(object_ids))

    def segment(self, image):
        return Segmentation(instances=tuple(self.answers.pop(0)), image_size=image.shape[:2], target_ids=self.given[-1])


@pytest.fixture
def library(tmp_path):
    for name in ("cup", "mug", "jar"):
        mask = np.ones((1, 128, 128), bool)
        save_templates(
            tmp_path,
            ObjectTemplates(
                name=name, rgb=mask[..., None] * np.full(3, 99, np.uint8), mask=mask, box=np.ones((1, 4), np.float32),
                K=np.eye(3)[None], pose=np.eye(4)[None], points=np.ones((1, 3), np.float32), diameter=1.0,
                source_sha256="", unit="m",
            ),
        )  # fmt: skip
    return ObjectLibrary(tmp_path)


def test_only_the_best_instance_counts_and_absent_targets_are_counted_apart(library):
    image = np.zeros((20, 40, 3), np.uint8)
    finder = Scripted(
        [instance("mug", 0.9, block(5)), instance("mug", 0.3, block(0)), instance("jar", 0.4, block(0))],
        [instance("cup", 0.8, block(10))],
        [],
    )
    scenes = [
        LabelledScene(image=image, targets=("cup", "mug", "jar"), masks={"mug": block(0), "cup": block(20)}),
        LabelledScene(image=image, targets=("cup", "mug", "jar"), masks={"cup": block(10), "mug": block(0) & False}),
        LabelledScene(image=image, targets=("jar",), masks={}),
    ]
    metrics = evaluate_scenes(finder, library, scenes)
    assert finder.given == [("cup", "mug", "jar"), ("jar",)]
    assert metrics.present == 3
    assert metrics.found == 2
    assert metrics.mean_iou == pytest.approx((1 / 3 + 0 + 1) / 3)
    assert metrics.iou_by_object == {"cup": pytest.approx(0.5), "mug": pytest.approx(1 / 3)}
    assert (metrics.absent, metrics.false_masks) == (4, 1)
    assert metrics.false_mask_rate == pytest.approx(0.25)
    assert "IoU 0.444 on 3 present" in str(metrics)


def test_weak_instances_can_be_ignored(library):
    scene = LabelledScene(image=np.zeros((20, 40, 3), np.uint8), targets=("mug", "jar"), masks={"mug": block(0)})
    answers = [instance("jar", 0.4, block(0)), instance("mug", 0.5, block(0))]
    metrics = evaluate_scenes(Scripted(answers), library, [scene], threshold=0.5)
    assert (metrics.mean_iou, metrics.false_masks) == (1.0, 0)


def test_no_scene_is_an_error(library):
    with pytest.raises(ValueError, match="no scene"):
        evaluate_scenes(Scripted(), library, [])
