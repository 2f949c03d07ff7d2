"""The real vocabulary, and openai-harmony reading it offline, as fixtures."""

from pathlib import Path

import pytest

import gptoss_workbench
from gptoss_workbench import vocabulary
from gptoss_workbench.tokenizer import Tokenizer

NANO = Path(gptoss_workbench.__file__).parent / "nano" / "checkpoint"


@pytest.fixture(scope="session")
def tokenizer():
    return Tokenizer.o200k_harmony()


@pytest.fixture(scope="session")
def nano():
    return Tokenizer.from_folder(NANO)


@pytest.fixture(scope="session")
def encoding(tmp_path_factory):
    import openai_harmony

    folder = vocabulary.write_tiktoken(tmp_path_factory.mktemp("tiktoken")).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_ENCODINGS_BASE", str(folder))
        name = openai_harmony.HarmonyEncodingName.HARMONY_GPT_OSS
        return openai_harmony.load_harmony_encoding(name)
