"""Recipes for common wishes: whole configurations, to be changed key by key.

``vocab_size=1`` and ``classes=1`` only stand where a number must: the data says what they are.
"""

from collections.abc import Callable, Collection

from addnorm.data.augment import Augment
from addnorm.data.image_sets import IMAGE
from addnorm.data.labelled import LABEL, TEXT
from addnorm.models.bert_config import BertConfig
from addnorm.models.classifier import ClassifierConfig
from addnorm.models.decisions import DecisionConfig
from addnorm.models.gpt import GPT
from addnorm.models.gpt_config import GPTConfig
from addnorm.models.recurrent import RecurrentConfig
from addnorm.models.seq2seq_config import Seq2SeqConfig
from addnorm.models.speech import SpeechConfig
from addnorm.models.vision_config import ViTConfig
from addnorm.tasks.answer import AnswerSettings
from addnorm.tasks.chat import ChatSettings
from addnorm.tasks.classify import ClassifySettings
from addnorm.tasks.classify_images import ClassifyImagesSettings
from addnorm.tasks.classify_sounds import ClassifySoundsSettings
from addnorm.tasks.decide import DecideSettings
from addnorm.tasks.finetune_bert import FinetuneBertSettings
from addnorm.tasks.language import LanguageSettings
from addnorm.tasks.pretrain_bert import PretrainBertSettings
from addnorm.tasks.recurrent import RecurrentSettings
from addnorm.tasks.transcribe import TranscribeSettings
from addnorm.tasks.translate import TranslateSettings
from addnorm.training.config import Config
from addnorm.training.loop_settings import LoopSettings


def stdlib_cpu() -> Config:
    """A small GPT on the source of Python's own library, in about three minutes on two cores."""
    return Config(
        task=LanguageSettings(
            data="stdlib",
            tokenizer="bpe:2048",
            tokens_per_step=2048,
            model=GPTConfig(
                vocab_size=1,
                context_length=128,
                dim=192,
                n_layers=4,
                n_heads=6,
                norm="rms",
                position="rope",
                bias=False,
            ),
        ),
        loop=LoopSettings(
            steps=450,
            optimizer="muon",
            lr=3e-3,
            muon_lr=2e-3,
            warmup=40,
            eval_every=100,
            save_every=250,
        ),
    )


def char_cpu() -> Config:
    """A character model on a text of about a megabyte, such as all of Shakespeare, on a CPU."""
    return Config(
        task=LanguageSettings(
            data="input.txt",
            tokenizer="characters",
            split="tail",
            tokens_per_step=12 * 64,
            model=GPTConfig(
                vocab_size=1,
                context_length=64,
                dim=128,
                n_layers=4,
                n_heads=4,
                norm="rms",
                position="rope",
                bias=False,
            ),
        ),
        loop=LoopSettings(
            steps=600, optimizer="muon", lr=4e-3, muon_lr=4e-3, warmup=50, eval_every=100
        ),
    )


def recurrent_cpu() -> Config:
    """A layer-normalized LSTM on the source of Python's own library, for a CPU."""
    return Config(
        task=RecurrentSettings(
            data="stdlib",
            tokenizer="bpe:2048",
            tokens_per_step=2048,
            model=RecurrentConfig(vocab_size=1, context_length=128, dim=256, n_layers=2),
        ),
        loop=LoopSettings(steps=450, lr=4e-3, warmup=40, eval_every=100, save_every=250),
    )


def gpt2_124m() -> Config:
    """GPT-2's smallest, 124 million parameters, for one GPU or several."""
    c = GPT.preset("gpt2", vocab_size=1, vocab_multiple=128)
    return Config(
        task=LanguageSettings(
            data="hf:HuggingFaceFW/fineweb-edu:sample-10BT:train#text",
            tokenizer="openai-community/gpt2",
            val_fraction=0.001,
            tokens_per_step=1 << 19,
            glance_tokens=1 << 20,
            model=c,
        ),
        loop=LoopSettings(
            steps=19_000, lr=6e-4, warmup=700, micro_rows=16, eval_every=250, save_every=1000
        ),
    )


def finetune_gpt2() -> Config:
    """Published GPT-2 weights, taught a text of one's own."""
    return Config(
        task=LanguageSettings(
            data="input.txt",
            init_from="openai-community/gpt2",
            tokens_per_step=8192,
            dropout=0.1,
        ),
        loop=LoopSettings(
            steps=200, lr=3e-5, warmup=20, schedule="linear", micro_rows=2, eval_every=50
        ),
    )


def classify_text() -> Config:
    """Which class a text is of, from a folder with one sub-folder of texts for each."""
    return Config(
        task=ClassifySettings(
            data="texts",
            tokenizer="bpe:8192",
            rows_per_step=32,
            token_dropout=0.4,
            model=ClassifierConfig(
                vocab_size=1, classes=1, dim=128, n_layers=2, n_heads=4, pairs=65536
            ),
        ),
        loop=LoopSettings(steps=1200, lr=1e-3, warmup=60, eval_every=200, save_every=200),
    )


def classify_gpt2() -> Config:
    """Which class a text is of, by published GPT-2 weights with a head."""
    return Config(
        task=ClassifySettings(
            data="texts",
            init_from="openai-community/gpt2",
            rows_per_step=32,
            token_dropout=0.0,
            label_smoothing=0.0,
        ),
        loop=LoopSettings(
            steps=300,
            lr=5e-5,
            warmup=30,
            schedule="linear",
            micro_rows=8,
            eval_every=100,
            save_every=100,
        ),
    )


def pretrain_bert() -> Config:
    """A small BERT on text of one's own, masked tokens to be found, for a CPU. The published design
    (model.scheme=post_norm model.position=learned) learns far later what stands around a token."""
    return Config(
        task=PretrainBertSettings(
            data="input.txt",
            tokenizer="wordpiece:8192",
            tokens_per_step=4096,
            masked=0.3,
            dropout=0.0,
            model=BertConfig(
                vocab_size=1,
                context_length=128,
                dim=192,
                n_layers=4,
                n_heads=4,
                pooling="mean",
                scheme="pre_norm",
                position="rope",
            ),
        ),
        loop=LoopSettings(
            steps=2000,
            optimizer="muon",
            lr=3e-3,
            muon_lr=2e-3,
            warmup=50,
            schedule="linear",
            eval_every=200,
            save_every=500,
        ),
    )


def finetune_bert() -> Config:
    """Which labels a text has, by a BERT: as it stands, a small one from scratch. With init_from
    the model and the tokenizer are that one's, and lr=3e-5 suits one of the published size."""
    return Config(
        task=FinetuneBertSettings(
            data="texts",
            tokenizer="wordpiece:8192",
            model=BertConfig(
                vocab_size=1, context_length=128, dim=192, n_layers=4, n_heads=4, head="classify"
            ),
        ),
        loop=LoopSettings(
            steps=1000, lr=2e-4, warmup=100, schedule="linear", eval_every=200, save_every=200
        ),
    )


def answer() -> Config:
    """Where in a passage the answer to a question stands, from SQuAD's json."""
    return Config(
        task=AnswerSettings(data="squad.json"),
        loop=LoopSettings(steps=4000, lr=5e-4, warmup=400, eval_every=500, save_every=500),
    )


def translate() -> Config:
    """A translator from pairs of a source and its target, for a CPU."""
    return Config(
        task=TranslateSettings(
            data="pairs.tsv",
            tokenizer="bpe:8192",
            model=Seq2SeqConfig(vocab_size=2, dim=256, encoder_layers=3, decoder_layers=3),
        ),
        loop=LoopSettings(steps=3000, lr=1e-3, warmup=200, eval_every=500, save_every=500),
    )


def classify_sounds() -> Config:
    """Which label a sound has, such as a single word, from a folder with a sub-folder of each."""
    return Config(
        task=ClassifySoundsSettings(data="sounds"),
        loop=LoopSettings(steps=1000, lr=1e-3, warmup=100, eval_every=100, save_every=200),
    )


def transcribe() -> Config:
    """What is said in recordings, from a folder of them with their texts, for a CPU."""
    return Config(
        task=TranscribeSettings(
            data="recordings",
            model=SpeechConfig(vocab_size=2, dim=144, encoder_layers=6, n_heads=4),
        ),
        loop=LoopSettings(steps=2000, lr=1e-3, warmup=200, eval_every=200, save_every=500),
    )


def chat() -> Config:
    """A small model that answers as the conversations of a file do."""
    return Config(
        task=ChatSettings(
            data="chat.jsonl",
            tokenizer="bpe:2048",
            dropout=0.1,
            model=GPTConfig(
                vocab_size=1,
                context_length=256,
                dim=192,
                n_layers=4,
                n_heads=6,
                norm="rms",
                position="rope",
                bias=False,
            ),
        ),
        loop=LoopSettings(
            steps=400, optimizer="muon", lr=3e-3, muon_lr=2e-3, warmup=40, eval_every=100
        ),
    )


def classify_images() -> Config:
    """Which label a picture has, by a small Vision Transformer, for a CPU."""
    return Config(
        task=ClassifyImagesSettings(
            data="pictures",
            label_smoothing=0.1,
            augment=Augment(shift=0.1, turn=10.0),
            model=ViTConfig(
                classes=2,
                height=32,
                width=32,
                patch=4,
                dim=96,
                n_layers=4,
                n_heads=4,
                embedding="convolutions",
                pooling="mean",
                scheme="fan_in(pre_norm)",
            ),
        ),
        loop=LoopSettings(
            steps=2000,
            optimizer="muon",
            lr=4e-3,
            muon_lr=6e-3,
            warmup=50,
            eval_every=250,
            save_every=250,
        ),
    )


def decide() -> Config:
    """A model that acts as episodes show it, for as much return as it is asked for, on a CPU."""
    return Config(
        task=DecideSettings(
            data="episodes.jsonl",
            dropout=0.0,
            model=DecisionConfig(
                states=1, actions=1, context_length=5, dim=64, n_layers=2, n_heads=2
            ),
        ),
        loop=LoopSettings(steps=1000, lr=1e-2, warmup=50, eval_every=200, save_every=500),
    )


RECIPES: dict[str, Callable[[], Config]] = {
    f.__name__: f
    for f in (
        *(stdlib_cpu, char_cpu, recurrent_cpu, gpt2_124m, finetune_gpt2),
        *(classify_text, classify_gpt2, pretrain_bert, finetune_bert, answer, translate, chat),
        *(classify_images, decide, transcribe, classify_sounds),
    )
}


COLUMNS = (
    ("classify_text", (TEXT, LABEL)),
    ("classify_images", (IMAGE, LABEL)),
    ("translate", (("source",), ("target",))),
    ("chat", (("messages", "conversations"),)),
)
"""Recipe -> what the columns or keys of its data are called, one of each."""


def recipe_for(columns: Collection[str]) -> str | None:
    """The recipe that reads data with these columns or keys; None: none does."""
    for recipe, groups in COLUMNS:
        if all(any(name in columns for name in names) for names in groups):
            return recipe
    return None
