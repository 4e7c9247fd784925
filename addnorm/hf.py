"""Our models as models of Hugging Face transformers: ``import addnorm.hf`` registers them.

From then on ``AutoModelForCausalLM.from_pretrained(folder)`` loads what ``GPT.save_pretrained`` or
the class here wrote, whatever the scheme, with ``generate``, ``Trainer`` and peft's adapters. A
scheme that cares for its weights after each optimizer step needs the callback ``AfterStep`` and
raises without it. What is not supported is refused by name; see docs/gpt2.md.

Everything that needs transformers is here.
"""

import dataclasses
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, redirect_stderr
from functools import partial
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

try:
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, TrainerCallback
    from transformers.modeling_outputs import CausalLMOutputWithPast
except ImportError as error:
    raise ImportError(
        f"addnorm.hf needs transformers ({error}): pip install 'addnorm[hf]'"
    ) from error

from addnorm.context import Context
from addnorm.files import config_json, folders
from addnorm.files import gpt as gpt_files
from addnorm.files.gpt import WeightsError
from addnorm.models.gpt import GPT
from addnorm.models.gpt_config import GPTConfig
from addnorm.stream import Stream

__all__ = ["AddnormConfig", "AddnormForCausalLM", "AfterStep"]


@final
class AddnormConfig(transformers.PreTrainedConfig):  # type: ignore[misc]
    """A ``GPTConfig``, field by field, among what transformers keeps in a configuration.

    A field that is not given is that of GPT-2. transformers' own names (``hidden_size``,
    ``num_hidden_layers``, ...) read and write the same fields.
    """

    model_type = config_json.GPT_TYPE
    keys_to_ignore_at_inference = ("past_key_values",)
    attribute_map = {  # noqa: RUF012 (its type is the parent's to say)
        "hidden_size": "dim",
        "intermediate_size": "hidden",
        "max_position_embeddings": "context_length",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
        "num_key_value_heads": "n_kv_heads",
        "tie_word_embeddings": "tied",
    }

    def __init__(self, **values: Any) -> None:
        for name, default in dataclasses.asdict(GPT.preset("gpt2")).items():
            setattr(self, name, values.pop(name, default))
        super().__init__(**values)
        self.gpt()  # raises on what makes no sense

    def gpt(self) -> GPTConfig:
        """The part that says what the model is."""
        return GPTConfig(**{f.name: getattr(self, f.name) for f in dataclasses.fields(GPTConfig)})


@final
class AddnormForCausalLM(transformers.PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A ``GPT`` as a causal language model of transformers; ``.gpt`` is the model itself.

    ``config``: what the model is. ``gpt``: the model, not copied, where it exists already: then
    ``config`` has to be of it, as ``of`` sees to. None: a new one is made.
    """

    config_class = AddnormConfig
    base_model_prefix = "gpt"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # the Trainer may tell num_items_in_batch
    _supports_sdpa = True
    _no_split_modules = ("Sublayer",)
    _skip_keys_device_placement = ("past_key_values",)

    def __init__(self, config: AddnormConfig, gpt: GPT | None = None) -> None:
        super().__init__(config)
        if gpt is not None and gpt.front:
            raise ValueError(
                "the model has a prompt in front of its text, which transformers would count as "
                "tokens: write it with addnorm.adapt.save and load it with peft, on a GPT-2"
            )
        if config._attn_implementation not in (None, "sdpa"):
            raise ValueError(
                f"attn_implementation={config._attn_implementation!r}: addnorm has its own "
                "attention, on PyTorch's scaled_dot_product_attention ('sdpa')"
            )
        self.gpt = GPT(config.gpt()) if gpt is None else gpt
        if gpt is None:
            self.gpt.tokenizer_identity = getattr(config, config_json.IDENTITY, None)
        self._layers: dict[Hashable, int] = {}  # sublayer with attention -> layer of the cache
        for sub in self.gpt.stack.sublayers():
            if sub.site.kind == "attn":
                self._layers[sub.site.index] = len(self._layers)
        self.post_init()

    @classmethod
    def of(cls, gpt: GPT) -> "AddnormForCausalLM":
        """A GPT as a model of transformers, in the same mode, with the same parameters, not
        copies."""
        config = AddnormConfig(
            **dataclasses.asdict(gpt.config),
            **({config_json.IDENTITY: gpt.tokenizer_identity} if gpt.tokenizer_identity else {}),
            dtype=gpt.tokens.weight.dtype,
        )
        return cls(config, gpt).train(gpt.training)

    # --- folders ----------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, but nothing is made up for weights that are missing, damaged or too
        many, nor is GPT-2's format read: a ``WeightsError``."""
        path_or_id = pretrained_model_name_or_path
        folder = Path(path_or_id or "")
        elsewhere = {"subfolder", "variant", "gguf_file", "state_dict"} & kwargs.keys()
        here = path_or_id and (folder / folders.CONFIG).is_file() and not elsewhere
        if here and gpt_files.check(folder).format != config_json.GPT_TYPE:
            raise WeightsError(
                f"{folder} is in GPT-2's format: AutoModelForCausalLM makes a GPT2LMHeadModel of "
                "it; for this class, AddnormForCausalLM.of(GPT.from_pretrained(folder))"
            )
        with_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(path_or_id, *args, output_loading_info=True, **kwargs)
        wrong = {kind: names for kind, names in info.items() if names and kind.endswith("_keys")}
        if wrong:
            raise WeightsError(f"{path_or_id}: the weights do not fit the model: {wrong}")
        return (model, info) if with_info else model

    def save_pretrained(
        self, save_directory: Any, is_main_process: bool = True, *args: Any, **kwargs: Any
    ) -> None:
        """As in transformers, with the checksums that ``from_pretrained`` verifies, written by the
        main process."""
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        folder = Path(save_directory)
        if is_main_process and (folder / folders.CONFIG).exists():
            files = [*folder.glob("model*.safetensors*"), folder / folders.CONFIG]
            folders.write_checksums(folder, [file.name for file in files])

    def _init_weights(self, module: torch.nn.Module) -> None:
        """The scheme filled every weight when the GPT was made; transformers would undo it."""

    # --- forward ----------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: transformers.Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        refuse_nonfinite: bool = False,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits (B, T, vocab_size), and the loss of ``labels``, which are shifted here.

        ``logits_to_keep``: only that many of the last places, 0 for all; without labels.
        ``attention_mask`` (B, S) is 1 for real tokens, the cached ones included; positions count
        these and need not be given. ``num_items_in_batch`` is the Trainer's: by how many tokens the
        sum of the loss is divided; None: those of this call. ``refuse_nonfinite``: a
        ``FloatingPointError`` if the logits of the last place are not finite.
        """
        refused = {
            "inputs_embeds": inputs_embeds is not None,
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
            "logits_to_keep that names places": not isinstance(logits_to_keep, int),
            "logits_to_keep beside labels": labels is not None and logits_to_keep,
        }
        for name, value in refused.items():
            if value:
                raise ValueError(f"AddnormForCausalLM does not support {name}")
        if input_ids is None:
            raise ValueError("AddnormForCausalLM needs input_ids")
        if past_key_values is None and use_cache:
            past_key_values = transformers.DynamicCache(config=self.config)
        cache = None if past_key_values is None else _Cache(past_key_values, self._layers)
        logits = self.gpt(
            input_ids, _valid(attention_mask), cache=cache, last=logits_to_keep or None
        )
        if refuse_nonfinite:
            _refuse_nonfinite(logits[:, -1])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits, labels, self.config.vocab_size, num_items_in_batch=num_items_in_batch
            )
        out = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)
        return out.to_tuple() if return_dict is False else out

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Every step of ``generate`` passes here: from NaN it would still choose a token."""
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        return {**inputs, "refuse_nonfinite": True}

    def after_step(self, step: int) -> None:
        """Call after every optimizer step, counted from 1; ``AfterStep`` does it in the Trainer."""
        self.gpt.after_step(step)

    # --- what transformers may change -------------------------------------------------------------

    def get_input_embeddings(self) -> torch.nn.Module:
        """The table of tokens."""
        return self.gpt.tokens

    def get_output_embeddings(self) -> torch.nn.Module | None:
        """The head, where it is not the table of tokens again."""
        return self.gpt.head

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> Any:
        """Another vocabulary, before the optimizer is made: the tables are new parameters.

        ``new_num_tokens`` None or 0 keeps the number. With ``mean_resizing`` new rows are the mean
        of the old, else as the scheme begins. ``pad_to_multiple_of`` pads the tables only
        (``GPTConfig.vocab_multiple``): no id and no logit comes of it.
        """
        gpt, old = self.gpt, self.gpt.config
        new = dataclasses.replace(
            old,
            vocab_size=new_num_tokens or old.vocab_size,
            vocab_multiple=pad_to_multiple_of or old.vocab_multiple,
        )
        common = min(old.vocab_size, new.vocab_size)
        for name, (role, rule) in gpt.init_rules().items():
            if name == "positions.weight":
                continue
            table = gpt.get_parameter(name)
            rows = torch.empty_like(table[:1]).repeat(new.padded_vocab_size, 1)
            with torch.no_grad():
                rule(role, rows)
                rows[:common] = table[:common]
                if mean_resizing:
                    rows[common:] = table[: old.vocab_size].mean(0)
                care = gpt.stack.cares[role]
                if care is not None and common < len(rows):
                    care(role, rows[common:], 0)
            holder = gpt.get_submodule(name.removesuffix(".weight"))
            holder.weight = torch.nn.Parameter(rows, requires_grad=table.requires_grad)
        gpt.tokens.num_embeddings = new.padded_vocab_size
        if gpt.head is not None:
            gpt.head.out_features = new.padded_vocab_size
        gpt.config = new
        self.config.vocab_size, self.config.vocab_multiple = new.vocab_size, new.vocab_multiple
        return gpt.tokens

    def _set_gradient_checkpointing(
        self,
        enable: bool = True,
        gradient_checkpointing_func: Any = None,
        every_n_layers: int = 1,
    ) -> None:
        """Recompute whole sublayers, in every n-th block from the first, by putting another forward
        on the sublayer itself; with ``enable`` False it is the class's again. Called by
        transformers, whose ``gradient_checkpointing_func`` is a partial of torch's checkpoint."""
        if enable and gradient_checkpointing_func.keywords.get("use_reentrant") is not False:
            raise ValueError(
                "gradient checkpointing needs gradient_checkpointing_kwargs={'use_reentrant': "
                "False}: the other kind loses the gradient of a stream of several tensors"
            )
        for sub in self.gpt.stack.sublayers():
            vars(sub).pop("forward", None)
            if enable and sub.site.block % every_n_layers == 0:
                recomputation = partial(_recomputed, sub.forward, gradient_checkpointing_func)
                sub.forward = recomputation  # type: ignore[method-assign]
        self.gradient_checkpointing = enable


@final
class AfterStep(TrainerCallback):  # type: ignore[misc]
    """``Trainer(callbacks=[AfterStep()])``: what a scheme wants done after every optimizer step."""

    def on_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **rest: Any
    ) -> None:
        """Called by the Trainer, whose count of steps is one behind here. Finds our models inside
        of whatever wraps them (DDP, torch.compile, peft)."""
        for module in model.modules():
            if isinstance(module, AddnormForCausalLM):
                module.after_step(state.global_step + 1)


# --- helpers --------------------------------------------------------------------------------------


@final
class _Cache:
    """transformers' cache, which counts layers, as ours, which is asked by sublayer."""

    def __init__(self, cache: Any, layers: dict[Hashable, int]) -> None:
        if cache.is_compileable:
            raise ValueError(
                f"{type(cache).__name__} is not supported, whose keys have places that are still "
                "empty: leave cache_implementation out, or say 'dynamic'"
            )
        self.cache, self.layers = cache, layers

    def lead(self, places: int) -> None:
        """transformers takes every place in the cache for a token."""
        raise NotImplementedError(
            "a prompt in front of the tokens is for GPT.generate: transformers does not know of it"
        )

    def length(self, key: Hashable) -> int:
        """How many tokens the cache holds for a sublayer."""
        return int(self.cache.get_seq_length(self.layers[key]))

    def update(self, key: Hashable, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append (B, Hkv, T, D) and return all."""
        keys, values = self.cache.update(k, v, self.layers[key])
        return keys, values

    def memory(
        self, key: Hashable, make: Callable[[], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """A GPT has no encoder to remember."""
        raise NotImplementedError("AddnormForCausalLM has no cross-attention")


def _valid(mask: Tensor | None) -> Tensor | None:
    """A mask (B, S) of transformers, 1 = real token, as our boolean, else a ``ValueError``; None
    where all are real, which attention does faster."""
    if mask is None:
        return None
    if mask.dim() != 2:
        raise ValueError(f"attention_mask must be (B, S), got {tuple(mask.shape)}")
    valid = mask.bool()
    return None if not torch.compiler.is_compiling() and valid.all() else valid


def _refuse_nonfinite(logits: Tensor) -> None:
    """Raise if logits (B, vocab_size) are not finite, naming the rows."""
    bad = ~torch.isfinite(logits).all(-1)
    if bad.any():
        raise FloatingPointError(
            f"the logits of rows {bad.nonzero().flatten().tolist()} are not finite: no token can "
            "be chosen from them. Look for NaN in the weights, or overflow in half precision"
        )


def _recomputed(forward: Any, checkpoint: Any, s: Stream, ctx: Context) -> Stream:
    """A sublayer's ``forward``, the bound method, done again in backward by ``checkpoint``; as it
    is where a cache is around, which would be written twice, and outside of training."""
    again = forward.__self__.training and ctx.cache is None
    stream: Stream = checkpoint(forward, s, ctx) if again else forward(s, ctx)
    return stream


# --- models of transformers that are not ours -----------------------------------------------------


def open_any(folder: Path, weights: bool) -> torch.nn.Module:
    """A model of any kind, by the class that its config.json names; where there are no weights, as
    that class initializes it. From then on transformers reports errors only: no bars, no advice."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config = AutoConfig.from_pretrained(folder)
    name = next(iter(getattr(config, "architectures", None) or ()), None)
    architecture = getattr(transformers, name, None) if name else None
    model: torch.nn.Module
    if weights:
        model = (architecture or transformers.AutoModel).from_pretrained(folder)
    else:
        model = (architecture or transformers.AutoModel.from_config)(config)
    return model


# --- what transformers makes of an export ---------------------------------------------------------

VERSION = f"transformers {transformers.__version__}"


def reader(
    folder: Path, gguf_file: str | None = None, vocab_size: int | None = None
) -> Callable[[Tensor], Tensor]:
    """A function ids (B, T) -> logits (B, T, vocab_size) in float32, without gradients, by the
    model that transformers makes of a folder or of a GGUF file in it; a ``WeightsError`` where the
    weights are not that model's. ``vocab_size`` is for a GGUF file without a tokenizer, where
    transformers looks for it.
    """
    options: dict[str, Any] = {}
    with _quiet():
        if gguf_file is not None:
            import_module("accelerate")  # transformers reads GGUF with it only
            config = AutoConfig.from_pretrained(folder, gguf_file=gguf_file)
            # It reads these from the file, and then keeps them where GPT2Config does not look.
            config.n_positions, config.n_inner = config.n_ctx, config.feed_forward_length
            config.vocab_size = vocab_size or config.vocab_size
            options = {"gguf_file": gguf_file, "config": config}
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, **options
        )
    wrong = {kind: names for kind, names in info.items() if names and kind.endswith("_keys")}
    if wrong:
        raise WeightsError(f"transformers finds other weights than its model has: {wrong}")

    def logits(ids: Tensor) -> Tensor:
        with torch.no_grad():
            return model(ids).logits

    return logits


def encoder(folder: Path, gguf_file: str | None = None) -> Callable[[str], list[int]]:
    """A function text -> ids, without special ones, by the tokenizer that transformers makes of a
    folder or of a GGUF file in it."""
    options = {} if gguf_file is None else {"gguf_file": gguf_file}
    with _quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Within it transformers shows no bars and gives no advice, and nothing is written to stderr;
    afterwards it does as before. What fails, raises."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with redirect_stderr(StringIO()):  # the bar of its GGUF reader knows no switch
            yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


AutoConfig.register(config_json.GPT_TYPE, AddnormConfig)
AutoModelForCausalLM.register(AddnormConfig, AddnormForCausalLM)
