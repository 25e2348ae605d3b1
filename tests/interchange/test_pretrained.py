"""Checkpoints of other libraries: recorded logits, round trips, and what happens to bad files.

The comparison with transformers itself is tests/parity/test_transformers.py.
"""

import json
import random
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import zoo
from tests.interchange.foreign import CONFIGURATIONS, RECORDED, TOKENS, made
from zoo.interchange import LAYOUTS, export_weights, import_weights, load_tokenizer
from zoo.interchange.layouts.base import ONE_MORE
from zoo.interchange.tensor_files import INDEX, SINGLE

WANTED = json.loads(RECORDED.read_text())


def same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("name", list(CONFIGURATIONS))
def test_logits_are_those_that_transformers_computed(name):
    model, params = import_weights(*made(name))
    logits, _ = jax.jit(model.apply)(params, jnp.asarray(TOKENS))
    np.testing.assert_allclose(logits[:, -1], WANTED[name], atol=1e-4)


@pytest.mark.parametrize("name", [name for name in CONFIGURATIONS if "-" not in name])
def test_export_then_import_is_the_identity(name):
    fields, arrays = made(name)
    model, params = import_weights(fields, arrays)
    again_fields, again = export_weights(model, params, layout=name)
    assert set(again) == set(arrays)
    rounded = {w.key for w in LAYOUTS[name].weights(model, frozenset()) if w.transform is ONE_MORE}
    for key in arrays:  # 1 + weight - 1 is the weight up to roundings of the sum, which is below 4
        np.testing.assert_allclose(again[key], arrays[key], rtol=0, atol=2**-22 * (key in rounded), err_msg=key)
    assert {k: v for k, v in again_fields.items() if k in fields} == {
        k: v for k, v in fields.items() if k in again_fields
    }
    assert import_weights(again_fields, again)[0] == model


@pytest.mark.parametrize(("layout", "mixer"), [("mamba", "mamba"), ("llama", {"name": "attention", "window": 32})])
def test_widths_that_are_left_to_the_model_are_written_out(layout, mixer):
    """dt_rank and kv_heads = None: computed from the width, and so expressible."""
    model = zoo.LanguageModel(
        vocab_size=11, dim=16, pattern=(mixer,), depth=1, norm="rms", embedding_scale=1.0, tie_embeddings=True,
        mlp="none" if layout == "mamba" else "swiglu", norm_eps=1e-5, mlp_dim=None if layout == "mamba" else 24,
    )  # fmt: skip
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    params = jax.tree.map(lambda p: np.ones(p.shape, p.dtype), params)
    again, _ = import_weights(*export_weights(model, params, layout=layout))
    mixer = again.stack().blocks()[0][0]
    assert mixer["dt_rank" if layout == "mamba" else "kv_heads"] is not None


@pytest.mark.parametrize(("kind", "layout"), [("mamba", "mamba_ssm"), ("mamba2", "mamba2_ssm")])
def test_the_original_layout_holds_the_same_model(kind, layout, tmp_path):
    fields, arrays = made(kind)
    if kind == "mamba2":
        fields = {**fields, "use_bias": False, "tie_word_embeddings": True}
        arrays = {k: v for k, v in arrays.items() if not k.endswith("proj.bias")}
    model, params = import_weights(fields, {k: v for k, v in arrays.items() if k != "lm_head.weight"})
    folder = zoo.save_pretrained(model, params, tmp_path / "original", layout=layout)
    config = json.loads((folder / "config.json").read_text())
    assert config["d_model"] == 32 and "model_type" not in config
    assert "backbone.embedding.weight" in load_file(folder / SINGLE)
    again, loaded = zoo.load_pretrained(folder)
    assert again == model
    same(loaded, params)
    config["vocab_size"], config["pad_vocab_size_multiple"] = 61, 16  # as on the hub: padded to 64
    (folder / "config.json").write_text(json.dumps(config))
    assert zoo.load_pretrained(folder)[0].vocab_size == 64


@pytest.mark.parametrize(
    ("kind", "inner", "layers"), [("jamba", "feed_forward", (0, 2)), ("qwen3_next", "mlp", (0, 2, 3))]
)
def test_experts_one_by_one_and_merged_are_the_same(kind, inner, layers):
    fields, arrays = made(kind)
    _, params = import_weights(fields, arrays)
    merged = {k: v for k, v in arrays.items() if ".experts." not in k}
    for layer in layers:
        prefix = f"model.layers.{layer}.{inner}.experts."

        def each(name, prefix=prefix):
            return np.stack([arrays[f"{prefix}{j}.{name}_proj.weight"] for j in range(fields["num_experts"])])

        merged[f"{prefix}gate_up_proj"] = np.concatenate([each("gate"), each("up")], axis=1)
        merged[f"{prefix}down_proj"] = each("down")
    same(import_weights(fields, merged)[1], params)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a tiny Llama in several files, its model and its parameters."""
    model, params = import_weights(*made("llama"))
    path = tmp_path_factory.mktemp("llama") / "saved"
    return zoo.save_pretrained(model, params, path, layout="llama", shard_bytes=20_000), model, params


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved[0], tmp_path / "copy")


def test_files_are_sharded_and_load_again(saved):
    folder, model, params = saved
    assert len(list(folder.glob("*.safetensors"))) > 1 and (folder / INDEX).is_file()
    again, loaded = zoo.load_pretrained(folder)
    assert again == model
    same(loaded, params)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_storage_dtypes(saved, tmp_path, dtype):
    _, model, params = saved
    folder = zoo.save_pretrained(model, params, tmp_path / "saved", layout="llama", dtype=dtype)
    assert {str(a.dtype) for a in load_file(folder / SINGLE).values()} == {dtype}
    loaded = zoo.load_pretrained(folder)[1]
    rounded = jax.tree.map(lambda p: np.asarray(p).astype(np.dtype(getattr(ml_dtypes, dtype, dtype))), params)
    same(loaded, jax.tree.map(lambda p: p.astype(np.float32), rounded))


def test_options_of_loading(saved):
    folder, model, _ = saved
    shorter, _ = zoo.load_pretrained(folder, max_length=16, dtype="bfloat16", remat=True)
    assert shorter.pattern[0]["window"] == 16 and shorter.dtype == "bfloat16" and shorter.remat
    assert model.pattern[0]["window"] == 128
    with pytest.raises(ValueError, match="max_length must be a positive integer"):
        zoo.load_pretrained(folder, max_length=0)


def test_files_without_the_outer_name_and_with_old_buffers_are_read():
    """GPT-2 on the hub has keys such as h.0.attn.c_attn.weight, and masks among them."""
    fields, arrays = made("gpt2")
    bare = {k.removeprefix("transformer."): v for k, v in arrays.items()}
    bare["h.0.attn.bias"] = np.ones((1, 1, 128, 128), np.float32)
    same(import_weights(fields, bare)[1], import_weights(fields, arrays)[1])


def test_an_output_matrix_stored_beside_tied_embeddings_must_be_equal():
    fields, arrays = made("mamba")
    copied = {**arrays, "lm_head.weight": arrays["backbone.embeddings.weight"]}
    same(import_weights(fields, copied)[1], import_weights(fields, arrays)[1])
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from the embeddings"):
        import_weights(fields, {**copied, "lm_head.weight": 2 * copied["lm_head.weight"]})


def test_one_error_names_every_key_that_is_missing_too_many_or_wrong():
    fields, arrays = made("mamba")
    arrays["backbone.layers.0.mixer.E"] = arrays.pop("backbone.layers.0.mixer.D")
    arrays["backbone.layers.1.norm.weight"] = arrays["backbone.layers.1.norm.weight"][:-1]
    arrays["backbone.norm_f.weight"] = arrays["backbone.norm_f.weight"].astype(int)
    with pytest.raises(ValueError) as caught:
        import_weights(fields, arrays)
    message = str(caught.value)
    assert "missing: backbone.layers.0.mixer.D" in message and "not expected: backbone.layers.0.mixer.E" in message
    assert "backbone.layers.1.norm.weight has shape [31], expected [32]" in message
    assert "backbone.norm_f.weight is int64, expected one of F64" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "mambo"}, "model_type 'mambo', which is not known"),
        ({"hiden_size": 3}, "fields that are not known: hiden_size.*hidden_size"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu', got 'gelu'"),
        ({"hidden_size": 2.5}, "hidden_size must be an integer from 1"),
        ({"hidden_size": 10**12}, "hidden_size must be an integer from 1"),
        ({"vocab_size": 2**30}, r"embed_tokens\.weight has shape \[64, 32\], expected \[1073741824, 32\]"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be at most the number of tensors"),
        ({"num_key_value_heads": 3}, "cannot be"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type must be"),
        ({"rope_parameters": 3}, "rope_parameters must be an object"),
    ],
)
def test_wrong_configurations(copy, change, words):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=words):
        zoo.load_pretrained(copy)


def test_fields_known_to_change_nothing_can_be_named(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "note": "mine"}))
    zoo.load_pretrained(copy, ignore_fields=("note",))


def test_damaged_folders(copy, tmp_path):
    table = json.loads((copy / INDEX).read_text())
    key, name = next(iter(table["weight_map"].items()))
    for wrong in ("../model.safetensors", str(copy / name), "", ".."):
        (copy / INDEX).write_text(json.dumps({"weight_map": {**table["weight_map"], key: wrong}}))
        with pytest.raises(ValueError, match="outside of its folder"):
            zoo.load_pretrained(copy)
    (copy / INDEX).write_text(json.dumps({"weight_map": {**table["weight_map"], key: "gone.safetensors"}}))
    with pytest.raises(FileNotFoundError, match="gone"):
        zoo.load_pretrained(copy)
    (copy / INDEX).write_text("[1]")
    with pytest.raises(ValueError, match="JSON object"):
        zoo.load_pretrained(copy)
    (copy / INDEX).write_text(json.dumps(table))
    arrays = load_file(copy / name)
    arrays[key] = arrays[key].copy()
    arrays[key].flat[0] = np.nan
    save_file(arrays, copy / name)
    with pytest.raises(ValueError, match=rf"{name}: {key} has NaN or infinity"):
        zoo.load_pretrained(copy)
    for file in copy.glob("*.safetensors*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match="has neither"):
        zoo.load_pretrained(copy)
    (copy / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match="pickles only"):
        zoo.load_pretrained(copy)
    (copy / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        zoo.load_pretrained(copy)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        zoo.load_pretrained(tmp_path / "nowhere")


def test_saving_refuses_what_the_layout_cannot_say(saved, tmp_path):
    folder, model, params = saved
    for changed, words in (
        (model.clone(logit_cap=3.0), "logit_cap=3.0"),
        (model.clone(pattern=("lru",)), "attention"),
        (model.clone(mlp="gelu"), "pattern or mlp"),
    ):
        with pytest.raises(ValueError, match=words):
            zoo.save_pretrained(changed, params, tmp_path / "new", layout="llama")
    with pytest.raises(ValueError, match="params are not those of this model"):
        zoo.save_pretrained(model, {"params": {}}, tmp_path / "new", layout="llama")
    with pytest.raises(ValueError, match="layout"):
        zoo.save_pretrained(model, params, tmp_path / "new", layout="lama")
    with pytest.raises(FileExistsError):
        zoo.save_pretrained(model, params, folder, layout="llama")
    assert not list(tmp_path.iterdir())


def test_tokenizers_are_read_from_the_folder(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode("b a c").ids == [1, 0, 2]
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def mutate(folder, generator):
    """Changes one file of a checkpoint at random: cuts it, flips bytes, or puts odd values into its JSON."""
    path = generator.choice(sorted(folder.iterdir()))
    data = bytearray(path.read_bytes())
    how = generator.randrange(4)
    if how == 0:
        data = data[: generator.randrange(len(data))]
    elif how == 1 or path.suffix != ".json":
        region = len(data) if how == 1 else min(len(data), 600)  # the header of a safetensors file is in front
        for _ in range(generator.randrange(1, 8)):
            data[generator.randrange(region)] = generator.randrange(256)
    else:
        content = json.loads(data)
        odd = [None, -1, 0, 1, 2, 3, 7, 10**6, 2**31, 10**30, 0.5, 1e308, "x", "", True, [], {}, [1], {"a": 1}]
        inner = content.get("weight_map", content)
        inner[generator.choice([*inner, "more"])] = generator.choice(odd)
        data = json.dumps(content).encode()
    path.write_bytes(bytes(data))


def fuzz(folder, count, tmp_path, seed):
    generator, refused = random.Random(seed), 0
    for i in range(count):
        broken = shutil.copytree(folder, tmp_path / "fuzz", dirs_exist_ok=True)
        mutate(broken, generator)
        try:
            model, params = zoo.load_pretrained(broken)
        except (ValueError, FileNotFoundError) as error:
            assert str(tmp_path) in str(error) or "cannot be" in str(error), (i, error)
            refused += 1
        else:  # what is accepted is whole
            assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(params)), i
            assert jax.tree.structure(params) == jax.tree.structure(
                jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
            ), i
        shutil.rmtree(broken)
    return refused


@pytest.mark.parametrize("name", ["llama", "mamba2"])
def test_mutated_files_are_loaded_whole_or_refused_by_name(name, tmp_path):
    model, params = import_weights(*made(name))
    folder = zoo.save_pretrained(model, params, tmp_path / "good", layout=name, shard_bytes=20_000)
    assert fuzz(folder, 40, tmp_path, seed=1) > 10


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in LAYOUTS if name in CONFIGURATIONS])
def test_a_thousand_mutated_files(name, tmp_path):
    model, params = import_weights(*made(name))
    folder = zoo.save_pretrained(model, params, tmp_path / "good", layout=name, shard_bytes=20_000)
    count = -(-1000 // len([n for n in LAYOUTS if n in CONFIGURATIONS]))
    assert fuzz(folder, count, tmp_path, seed=0) > count // 4
