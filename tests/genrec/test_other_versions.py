"""A checkpoint that another version of transformers has saved is read as it was meant, or refused."""

import json
import shutil

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import genrec_oracle as oracle  # noqa: E402
from eval_sidecar.genrec.cli import main  # noqa: E402
from eval_sidecar.genrec.errors import EvaluationError  # noqa: E402
from eval_sidecar.genrec.hf.model import load_model  # noqa: E402

pytestmark = pytest.mark.genrec

VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
CPU = torch.device("cpu")

#: A kind of model, and its rotary positions as transformers 5 and as transformers 4 writes them.
ROPE = {
    "base": ("qwen2", {"rope_type": "default", "rope_theta": 1e6}, {"rope_theta": 1e6, "rope_scaling": None}),
    "yarn": (
        "qwen2",
        {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0, "original_max_position_embeddings": 256},
        {
            "rope_theta": 5e5,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
        },
    ),
    "linear": (
        "llama",
        {"rope_type": "linear", "rope_theta": 2e4, "factor": 4.0},
        {"rope_theta": 2e4, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    ),
    "part": (
        "phi3",
        {"rope_type": "default", "rope_theta": 5e4, "partial_rotary_factor": 0.5},
        {"rope_theta": 5e4, "partial_rotary_factor": 0.5, "rope_scaling": None},
    ),
    "other names": (
        "gpt_neox",
        {"rope_type": "default", "rope_theta": 5e4, "partial_rotary_factor": 0.5},
        {"rotary_emb_base": 5e4, "rotary_pct": 0.5, "rope_scaling": None},
    ),
    "layers": (
        "gemma3_text",
        {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
        },
        {
            "rope_theta": 5e5, "rope_local_base_freq": 3e4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
}  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    """Return a function that saves a model and rewrites its config.json."""

    def save(model, remove=(), **settings):
        folder = tmp_path / "checkpoint-5"
        model.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        config = {name: value for name, value in config.items() if name not in remove} | settings
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return save


def logits(model):
    ids = torch.arange(3, 43)[None]
    with torch.no_grad():
        return (
            model(ids) if not model.config.is_encoder_decoder else model(ids, decoder_input_ids=ids)
        ).logits


def assert_same_model(folder, model):
    found, expected = logits(load_model(folder, CPU).module), logits(model)
    assert (found - expected).abs().max() < 1e-3 * expected.std()


@pytest.mark.parametrize("writer", [4, 5])
@pytest.mark.parametrize("rope", ROPE)
def test_rotary_positions_are_those_that_the_checkpoint_names(saved, rope, writer):
    kind, new, old = ROPE[rope]
    own = {"rope_parameters": new} if VERSION >= (5, 0) else old
    if kind == "gpt_neox" and VERSION[:1] == (5,) and VERSION < (5, 12):
        own = own | old  # which is what it reads
    layers = {"layer_types": ["sliding_attention", "full_attention"]} if kind == "gemma3_text" else {}
    if kind == "gemma3_text" and VERSION < (4, 53):
        layers = {"sliding_window_pattern": 2}
    model = oracle.make_kind(kind, 64, **own, **layers)
    if kind == "gemma3_text":
        layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window_pattern": 2}
    names = {"rope_parameters", *ROPE[rope][2], "rope_theta", "partial_rotary_factor"}
    settings = {"rope_parameters": new, "transformers_version": "5.24.0"} if writer == 5 else old
    assert_same_model(saved(model, names, **settings, **layers), model)


def test_rotary_positions_that_this_version_cannot_express_are_refused(saved):
    if VERSION >= (5, 0):
        pytest.skip("this version reads them all")
    new = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    folder = saved(oracle.make_kind("qwen2", 64), rope_parameters=new, transformers_version="5.24.0")
    with pytest.raises(
        EvaluationError, match=r"saved by transformers 5\.24\.0.*cannot express its rope_param"
    ):
        load_model(folder, CPU)


def test_experts_are_counted_under_either_name(saved):
    model = oracle.make_kind("qwen3_moe", 64)
    assert_same_model(saved(model, ["num_experts", "num_local_experts"], num_local_experts=4), model)
    assert_same_model(saved(model, ["num_experts", "num_local_experts"], num_experts=4), model)


def test_an_infinity_in_words_is_a_number(saved):
    model = oracle.make_kind("mamba2", 64)
    assert_same_model(saved(model, time_step_limit=[0.0, {"__float__": "Infinity"}]), model)


@pytest.mark.parametrize("settings", [{"tie_word_embeddings": False}, {"scale_decoder_outputs": False}])
def test_t5_scales_its_output_as_the_checkpoint_says(saved, settings):
    model = oracle.make_kind("t5, untied", 64)
    model.config.scale_decoder_outputs = False  # 5.0 overlooks the older name
    folder = saved(model, ["tie_word_embeddings", "scale_decoder_outputs"], **settings)
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = model.lm_head.weight.detach().clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert_same_model(folder, model)


def test_softcapping_is_not_left_out(saved):
    model = oracle.make_kind("gemma2", 64, attn_logit_softcapping=0.5)
    assert_same_model(saved(model), model)


def test_a_setting_that_this_version_does_not_know_is_named(saved, caplog):
    load_model(saved(oracle.make_model(64), new_kind_of_norm=True, transformers_version="99.0"), CPU)
    assert "saved by transformers 99.0; the installed" in caplog.text
    assert "new_kind_of_norm in its config.json" in caplog.text


def test_weights_that_the_model_does_not_use_are_named(saved, caplog):
    from safetensors.torch import load_file, save_file

    folder = saved(oracle.make_model(64))
    weights = load_file(folder / "model.safetensors") | {"model.layers.0.gate": torch.ones(3)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    load_model(folder, CPU)
    assert "1 weights" in caplog.text and "such as model.layers.0.gate" in caplog.text


# Tokenizers


@pytest.fixture
def copy(tiny, tmp_path):
    """A copy of the checkpoint, whose tokenizer files are to be changed."""
    return shutil.copytree(tiny.checkpoint, tmp_path / "model" / "checkpoint-5")


def change(path, remove=(), **values):
    settings = json.loads(path.read_text()) if path.exists() else {}
    settings = {name: value for name, value in settings.items() if name not in remove}
    path.write_text(json.dumps({**settings, **values}))


@pytest.fixture
def evaluate(tiny, tmp_path, replace, capsys):
    """Return a function that evaluates a checkpoint and returns its ranked lists, and what it printed."""

    def run(checkpoint, name):
        arguments = replace(tiny.arguments, checkpoint=checkpoint, output_root=tmp_path / name, num_beams=5)
        assert main(arguments) == 0, capsys.readouterr().err
        [path] = (tmp_path / name).rglob("final_result.json")
        return [row["predict"] for row in json.loads(path.read_text())], capsys.readouterr().err

    return run


def test_the_lists_do_not_depend_on_who_saved_the_tokenizer(tiny, copy, evaluate):
    expected, _ = evaluate(tiny.checkpoint, "expected")
    config = copy / "tokenizer_config.json"
    template = tiny.tokenizer.chat_template
    for number, (remove, settings) in enumerate([
        ([], {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers"}),
        ([], {"tokenizer_class": "ANameOfNextYear"}),
        (["additional_special_tokens"], {"extra_special_tokens": ["<end>"]}),
        (["extra_special_tokens"], {"additional_special_tokens": ["<end>"]}),
        ([], {"extra_special_tokens": {"image_token": "<end>"}}),
        (["auto_map"], {"chat_template": template}),
        ([], {"chat_template": [{"name": "default", "template": template}]}),
        (["chat_template"], {"eos_token": {"content": "<end>", "lstrip": False, "__type": "AddedToken"}}),
    ]):  # fmt: skip
        change(config, remove, **settings)
        if "chat_template" in settings:
            (copy / "chat_template.jinja").unlink(missing_ok=True)
        else:
            (copy / "chat_template.jinja").write_text(template)
        found, _ = evaluate(copy, str(number))
        assert found == expected, settings


def test_a_template_beside_the_tokenizer_is_found_in_each_file(tiny, copy, evaluate):
    expected, _ = evaluate(tiny.checkpoint, "expected")
    (copy / "chat_template.jinja").unlink(missing_ok=True)
    change(copy / "tokenizer_config.json", ["chat_template"])
    change(copy / "chat_template.json", chat_template=tiny.tokenizer.chat_template)
    assert evaluate(copy, "json")[0] == expected


def test_a_vocabulary_of_words_is_not_dropped_beside_a_model_that_has_another_kind(tiny, tmp_path, evaluate):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokens = sorted({token for levels in tiny.index.values() for token in levels})
    words = ["<unk>", "<end>", *tokens, "History:", ",", "Recommend.", "next?"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer.add_tokens(tokens)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unk>"
    )
    fast.chat_template = oracle.TEMPLATE
    model = oracle.make_model(len(fast) + 3)
    arguments = oracle.write_setup(tmp_path, tiny.index, tiny.rows[:3], fast, model)
    assert main([*arguments, "--num-beams", "5"]) == 0
    prompts = [oracle.encode(fast, row) for row in tiny.rows[:3]]
    expected = oracle.generate_each(model, fast, prompts, tiny.index, 5)
    [path] = (tmp_path / "results").rglob("final_result.json")
    for row, ranked in zip(json.loads(path.read_text()), expected, strict=True):
        oracle.assert_same_ranking(row["predict"], ranked)


def test_a_tokenizer_that_is_read_otherwise_than_it_was_saved_is_said(tiny, copy, evaluate, monkeypatch):
    expected, printed = evaluate(tiny.checkpoint, "expected")
    assert "otherwise than it was saved" not in printed
    real = transformers.AutoTokenizer.from_pretrained

    def shifted(path, **options):
        tokenizer = real(path, **options)
        original = type(tokenizer).__call__

        class Shifted(type(tokenizer)):
            def __call__(self, *args, **kwargs):
                answer = original(self, *args, **kwargs)
                answer["input_ids"] = [ids[1:] for ids in answer["input_ids"]]
                return answer

        tokenizer.__class__ = Shifted
        return tokenizer

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", shifted)
    found, printed = evaluate(copy, "shifted")
    assert found == expected
    assert printed.count("does not read its tokenizer.json as it was saved") == 1
