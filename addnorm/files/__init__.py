"""Models on disk: folders of weights, and who reads and writes which format.

``folders.py`` knows folders and no model, ``tensors.py`` lists the tensors in their files. One file
for each kind of model: ``gpt.py`` reads and writes GPT-2's format and our own, by the settings of
``config_json.py``; ``seq2seq.py`` Marian's and our own, by those of ``marian.py``;
``classifier.py`` a text classifier's.
"""
