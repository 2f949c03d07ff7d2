"""A loaded model keeps its dtype and device, and is saved with its tokenizer."""

import copy
import io
import pickle
import shutil

import pytest
import torch

from gptoss_workbench import CheckpointError, load, prune_experts, save_checkpoint
from gptoss_workbench.nano import checkpoint_path

TEXT = "B is 1. G is B plus 7. Find G?"


@pytest.fixture(scope="module")
def model():
    return load(dtype="float32")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.half(),
        lambda m: m.double(),
        lambda m: m.bfloat16(),
        lambda m: m.to(torch.bfloat16),
        lambda m: m.to(torch.zeros(1, dtype=torch.float16)),
    ],
)
def test_another_dtype_is_refused_with_the_way_to_it(model, change):
    kept = {p.data_ptr(): p.dtype for p in model.parameters()}
    with pytest.raises(ValueError, match=r"stays in float32.*load\(dtype='bfloat16'\)"):
        change(model)
    assert {p.data_ptr(): p.dtype for p in model.parameters()} == kept


@pytest.mark.parametrize("device", ["meta", "cuda:63"])
def test_another_device_is_refused_with_the_way_to_it(model, device):
    with pytest.raises(ValueError, match=r"stays on cpu.*load\(device=\.\.\.\)"):
        model.to(device)
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_what_a_model_already_is_changes_nothing(model, nano):
    before = {name: (p.data_ptr(), p.dtype) for name, p in model.named_parameters()}
    for same in (model.to("cpu"), model.float(), model.to(torch.float32), model.cpu()):
        assert same is model
    assert nano.bfloat16() is nano.to("cpu", torch.bfloat16) is nano
    assert {name: (p.data_ptr(), p.dtype) for name, p in model.named_parameters()} == before


def test_dtypes_have_names_and_others_are_refused():
    assert load(dtype="bfloat16").activation_dtype == torch.bfloat16
    with pytest.raises(ValueError, match="use bfloat16 or float32"):
        load(dtype="float16")
    for wrong in ("float33", "nn", 32):
        with pytest.raises(ValueError, match="dtype is 'bfloat16' or 'float32'; got"):
            load(dtype=wrong)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("device", ["cuda:63", "gpu"])
def test_a_device_that_is_not_here_is_one_clear_message(device):
    with pytest.raises(ValueError, match=f"device='{device}' cannot be used .*leave device= out"):
        load(device=device)


def test_models_are_loaded_by_the_names_people_use(nano, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = load("gpt-oss-nano")
    assert (named.name, named.fingerprint) == (nano.name, nano.fingerprint)
    with pytest.raises(CheckpointError, match='Did you mean "openai/gpt-oss-20b"'):
        load("gpt-oss-20b")
    with pytest.raises(CheckpointError, match="no checkpoint at gpt-oss-nano"):
        (tmp_path / "gpt-oss-nano").touch()
        load("gpt-oss-nano")


def test_pickles_are_refused_and_name_the_way(model):
    for pickled in (pickle.dumps, lambda m: torch.save(m, io.BytesIO())):
        with pytest.raises(TypeError, match=r"save_checkpoint\(model, folder\)"):
            pickled(model)


def test_a_deep_copy_has_memory_of_its_own(model):
    twin = copy.deepcopy(model)
    with torch.no_grad():
        wanted = model(TEXT)
        assert torch.equal(twin(TEXT), wanted)
        twin.blocks[0].attn.sinks += 1
        assert not torch.equal(twin(TEXT), wanted) and torch.equal(model(TEXT), wanted)


def test_a_clone_is_saved_in_its_own_size(model):
    sizes = []
    for tensor in (model.blocks[0].attn.sinks, model.blocks[0].attn.sinks.clone()):
        torch.save(tensor, kept := io.BytesIO())
        sizes.append(len(kept.getvalue()))
    assert sizes[1] < 10_000 < sizes[0]


def test_a_saved_or_pruned_model_takes_text_as_the_first_did(model, tmp_path):
    saved = load(save_checkpoint(model, tmp_path / "saved"), dtype="float32")
    pruned = load(prune_experts(model, tmp_path / "pruned", keep=range(16)).folder, dtype="float32")
    for again in (saved, pruned):
        question = [{"role": "user", "content": TEXT}]
        assert again.render(question) == model.render(question)  # harmony.json came along too
        assert again.generate(messages=question).final == model.generate(messages=question).final
    bare = load(save_checkpoint(model, tmp_path / "bare", tokenizer_files_from=False))
    assert bare.tokenizer is None


def test_a_folder_that_is_gone_says_so(tmp_path):
    shutil.copytree(checkpoint_path(), tmp_path / "there")
    model = load(tmp_path / "there")
    shutil.rmtree(tmp_path / "there")
    for save in (save_checkpoint, lambda m, to: prune_experts(m, to, keep=range(8))):
        with pytest.raises(CheckpointError, match="is gone; pass tokenizer_files_from="):
            save(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()
