"""One small checkpoint with its index and test set, shared by the tests that only read it."""

import os
from types import SimpleNamespace

import pytest

# As the evaluator's command line does, and for the same reason; torch reads it when it is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Arguments of an evaluation of 10 rows over 100-odd items, with what they were made of."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import genrec_oracle as oracle

    folder = tmp_path_factory.mktemp("tiny")
    index = oracle.make_index(levels=(3, 4), width=6)
    rows = oracle.make_rows(index)
    tokenizer = oracle.make_tokenizer(sorted({token for tokens in index.values() for token in tokens}))
    model = oracle.make_model(len(tokenizer) + 9)
    arguments = oracle.write_setup(folder, index, rows, tokenizer, model)
    return SimpleNamespace(
        folder=folder, index=index, rows=rows, tokenizer=tokenizer, model=model, arguments=arguments,
        checkpoint=folder / "model" / "checkpoint-5",
    )  # fmt: skip


@pytest.fixture
def replace():
    """Return a function that gives arguments with some values replaced: ``replace(args, index=path)``."""

    def replaced(arguments, **values):
        arguments = list(arguments)
        for name, value in values.items():
            flag = "--" + name.replace("_", "-")
            if flag in arguments:
                arguments[arguments.index(flag) + 1] = str(value)
            else:
                arguments += [flag, str(value)]
        return arguments

    return replaced
