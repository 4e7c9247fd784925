"""The uses: each a file with its settings and what is learned, registered by name.

Also the door to training with settings: importing it makes the tasks of this package known.
"""

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
from addnorm.training.config import Config, TaskSettings, register
from addnorm.training.run import train

__all__ = [
    "AnswerSettings",
    "ChatSettings",
    "ClassifyImagesSettings",
    "ClassifySettings",
    "ClassifySoundsSettings",
    "Config",
    "DecideSettings",
    "FinetuneBertSettings",
    "LanguageSettings",
    "PretrainBertSettings",
    "RecurrentSettings",
    "TaskSettings",
    "TranscribeSettings",
    "TranslateSettings",
    "register",
    "train",
]
