import pytest

from apd.host import (
    EVALUATOR_REGISTRY,
    HOST,
    Registry,
    build_dataset,
    build_trainer,
    check_availability,
)


def test_registers_as_decorator_and_as_call():
    registry = Registry("TOY")

    @registry.register()
    class First:
        pass

    def second():
        pass

    registry.register(second)
    assert registry.registered_names() == ["First", "second"]
    assert registry.get("First") is First and registry.get("second") is second


def test_a_name_is_taken_once_unless_forced():
    registry = Registry("TOY")

    class Twice:
        pass

    registry.register(Twice)
    with pytest.raises(KeyError, match="Twice"):
        registry.register(Twice)
    registry.register(Twice, force=True)


def test_unknown_name_is_a_key_error():
    with pytest.raises(KeyError, match="Nothing"):
        Registry("TOY").get("Nothing")


def test_unavailable_name_is_a_value_error_with_the_nearest_one():
    check_availability("CoOp", ["CoOp", "MaPLe"])
    with pytest.raises(ValueError, match="MaPLe"):
        check_availability("MaPle", ["CoOp", "MaPLe"])


def test_unknown_trainer_and_dataset_name_the_nearest(make_cfg):
    with pytest.raises(ValueError, match="ToyTrainer"):
        build_trainer(make_cfg("TRAINER.NAME", "ToyTrainr"))
    with pytest.raises(ValueError, match="ToyImages"):
        build_dataset(make_cfg("DATASET.NAME", "ToyImage"))


@pytest.mark.skipif(HOST == "dassl", reason="upstream's ValueError is not meant for users")
def test_unknown_name_is_a_user_error():
    from apd.errors import UserError

    with pytest.raises(UserError, match="did you mean CoOp"):
        check_availability("coop", ["CoOp", "ZeroshotCLIP"])


def test_the_standard_evaluator_is_registered():
    assert "Classification" in EVALUATOR_REGISTRY.registered_names()
