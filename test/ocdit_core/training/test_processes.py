"""Several processes (gloo) against one: the same training, and checkpoints that pass from one to the other."""

import pytest
import torch

from ocdit_core.models.ocdit import OCDiT
from ocdit_core.training.checkpoints import find_checkpoint, read_rank, read_weights

STEPS = 8


@pytest.fixture(scope="module")
def common(vae):
    common = [f"vae={vae}", f"loop.steps={STEPS}", "diffusion_loss.prior_only_steps=4"]
    return [*common, "loop.validate_every=8"]


@pytest.fixture(scope="module")
def alone(lab, common):
    """One process with twice the batch."""
    assert lab.train("smoke_coarse", "alone", *common, "loop.batch_groups=4") == 0
    return lab.logged("alone")


def same_losses(found, expected):
    assert found.keys() == expected.keys()
    return max(abs(found[step] - expected[step]) for step in expected) < 1e-4


def test_two_processes_train_as_one_with_twice_the_batch(lab, common, alone):
    """The matching prior's batch statistics, choice of targets, noise and noise levels included."""
    lab.train_together(2, "smoke_coarse", "ddp", *common, "loop.batch_groups=2")
    assert len(alone) == STEPS
    assert same_losses(lab.logged("ddp"), alone)
    assert lab.logged("ddp", "validation/iou") == pytest.approx(lab.logged("alone", "validation/iou"), abs=1e-3)


def test_gradients_of_several_batches_add_up_to_those_of_one(lab, common, alone):
    # Without the prior, whose statistics are those of each batch.
    plain = ["model.matching_prior=null", "loop.steps=6", "loop.validate_every=100"]
    assert lab.train("smoke_coarse", "large", *common, *plain, "loop.batch_groups=4") == 0
    assert lab.train("smoke_coarse", "small", *common, *plain, "loop.batch_groups=1", "loop.accumulate=4") == 0
    assert same_losses(lab.logged("small"), lab.logged("large"))


@pytest.fixture(scope="module")
def sharded(lab, common):
    """Fewer steps of the same schedule: the learning rate is still warming up."""
    steps = [*common, "loop.warmup_steps=10", "loop.steps=6", "loop.checkpoint_every=3", "loop.strategy=fsdp2"]
    lab.train_together(2, "smoke_coarse", "fsdp", *steps, "loop.batch_groups=2", "loop.workers=1")
    return steps


def test_a_sharded_run_trains_the_same_and_one_process_takes_over(lab, sharded, alone):
    losses = {step: loss for step, loss in alone.items() if step <= 6}
    assert same_losses(lab.logged("fsdp"), losses)
    path = find_checkpoint(lab.folder / "fsdp", 3)
    given = OCDiT.from_pretrained(lab.folder / "fsdp" / "model")
    assert {name: value.shape for name, value in read_weights(path).items()} == {
        name: value.shape for name, value in given.state_dict().items()
    }
    # Each process has written its own shards.
    sizes = [file.stat().st_size for file in path.glob("*.distcp")]
    assert len(sizes) == 2
    assert min(sizes) > 0.2 * max(sizes)
    # One process loads the shards, averages and moments included, and continues with the whole batch.
    source = f"resume={path}"
    assert lab.train("smoke_coarse", "taken_over", *sharded, "loop.batch_groups=4", source) == 0
    assert same_losses(lab.logged("taken_over"), {step: losses[step] for step in (4, 5, 6)})
    ours = OCDiT.from_pretrained(lab.folder / "taken_over" / "model").state_dict()
    for name, value in given.state_dict().items():
        torch.testing.assert_close(value, ours[name], atol=2e-3, rtol=0, msg=name)


def test_two_processes_resume_bit_for_bit(lab, sharded):
    """Each has random states and a place in the data of its own, and shards to fill."""
    source = f"resume={find_checkpoint(lab.folder / 'fsdp', 3)}"
    options = [*sharded, "loop.batch_groups=2", "loop.workers=1", source]
    lab.train_together(2, "smoke_coarse", "resumed", *options)
    whole, parts = lab.logged("fsdp"), lab.logged("resumed")
    assert parts == {step: whole[step] for step in (4, 5, 6)}
    paths = [find_checkpoint(lab.folder / run) for run in ("fsdp", "resumed")]
    for rank in (0, 1):
        one, other = (read_rank(path, rank) for path in paths)
        assert one["data"] == other["data"]
    for averaged in (False, True):
        whole, parts = (read_weights(path, averaged=averaged) for path in paths)
        for name, value in whole.items():
            assert torch.equal(value, parts[name]), name
