import pytest
import torch

from apd.errors import UserError
from apd.host import (
    load_checkpoint,
    load_pretrained_weights,
    resume_from_checkpoint,
    save_checkpoint,
)


def make_state(epoch=3, **extra):
    torch.manual_seed(epoch)
    return {"state_dict": torch.nn.Linear(4, 2).state_dict(), "epoch": epoch, **extra}


def test_layout(tmp_path):
    folder = tmp_path / "run" / "prompt_learner"
    save_checkpoint(make_state(3), str(folder))
    save_checkpoint(make_state(5), str(folder), is_best=True)
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["checkpoint", "model-best.pth.tar", "model.pth.tar-3", "model.pth.tar-5"]
    assert (folder / "checkpoint").read_text() == "model.pth.tar-5\n"
    assert load_checkpoint(folder / "model-best.pth.tar")["epoch"] == 5
    save_checkpoint(make_state(6), str(folder), model_name="model-best.pth.tar")
    assert (folder / "checkpoint").read_text() == "model-best.pth.tar\n"
    assert load_checkpoint(folder / "model-best.pth.tar")["epoch"] == 6


def test_what_is_saved_is_what_is_loaded(tmp_path):
    state = make_state(3, optimizer=None, val_result=81.25, classnames=["ant", "bee"])
    save_checkpoint(state, str(tmp_path))
    loaded = load_checkpoint(str(tmp_path / "model.pth.tar-3"))
    assert loaded.keys() == state.keys() and loaded["classnames"] == ["ant", "bee"]
    assert torch.equal(loaded["state_dict"]["weight"], state["state_dict"]["weight"])
    assert loaded["val_result"] == 81.25 and loaded["optimizer"] is None


def test_data_parallels_prefix_is_taken_off(tmp_path):
    state = {"state_dict": {"module.weight": torch.ones(1)}, "epoch": 1}
    save_checkpoint(state, str(tmp_path))
    assert list(load_checkpoint(tmp_path / "model.pth.tar-1")["state_dict"]) == ["weight"]
    assert list(state["state_dict"]) == ["module.weight"]  # the caller's stays as it is
    save_checkpoint(state, str(tmp_path), remove_module_from_keys=False)
    assert list(load_checkpoint(tmp_path / "model.pth.tar-1")["state_dict"]) == ["module.weight"]


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="no checkpoint .*model.pth.tar-9"):
        load_checkpoint(tmp_path / "model.pth.tar-9")
    with pytest.raises(UserError, match="no checkpoint to resume"):
        resume_from_checkpoint(str(tmp_path), torch.nn.Linear(4, 2))


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_truncated_file_is_one_clear_error(tmp_path, kept):
    save_checkpoint(make_state(1), str(tmp_path))
    path = tmp_path / "model.pth.tar-1"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(UserError, match="model.pth.tar-1.*truncated or damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [b"not a checkpoint\n" * 9, b"\x80\x02.", b"\0" * 300])
def test_other_files_are_one_clear_error(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UserError, match="truncated or damaged"):
        load_checkpoint(path)


def test_pickled_objects_are_not_loaded(tmp_path):
    torch.save({"scheduler": pytest.approx(1)}, tmp_path / "model.pth.tar-1")
    with pytest.raises(UserError, match="plain data"):
        load_checkpoint(tmp_path / "model.pth.tar-1")


def test_a_crash_while_saving_keeps_the_old_file(tmp_path, monkeypatch):
    save_checkpoint(make_state(1), str(tmp_path), model_name="last")

    def crash(state, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(make_state(2), str(tmp_path), model_name="last")
    assert load_checkpoint(tmp_path / "last")["epoch"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "last"]


def test_resuming_restores_model_optimizer_and_epoch(tmp_path):
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    state = {"state_dict": model.state_dict(), "epoch": 7, "optimizer": optimizer.state_dict()}
    save_checkpoint(state, str(tmp_path))
    fresh = torch.nn.Linear(4, 2)
    restored = torch.optim.SGD(fresh.parameters(), lr=0.5, momentum=0.9)
    assert resume_from_checkpoint(str(tmp_path), fresh, restored) == 7
    assert torch.equal(fresh.weight, model.weight)
    assert restored.param_groups[0]["lr"] == 0.1
    buffers = [o.state_dict()["state"][0]["momentum_buffer"] for o in (optimizer, restored)]
    assert torch.equal(*buffers)


def test_pretrained_weights_that_fit_are_taken(tmp_path, capsys):
    path = tmp_path / "weights.pt"
    weights = {"module.weight": torch.ones(2, 4), "bias": torch.ones(5), "head": torch.ones(1)}
    torch.save(weights, path)
    model = torch.nn.Linear(4, 2)
    bias = model.bias.detach().clone()
    load_pretrained_weights(model, str(path))
    assert torch.equal(model.weight, torch.ones(2, 4)) and torch.equal(model.bias, bias)
    out = capsys.readouterr().out
    assert "bias" in out and "head" in out
    torch.save({"state_dict": {"head": torch.ones(1)}}, path)
    with pytest.warns(UserWarning, match="weights.pt"):
        load_pretrained_weights(model, str(path))
